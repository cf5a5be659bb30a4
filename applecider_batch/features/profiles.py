"""Named profiles: everything that turns packets into a network's input, fixed and hashed.

The paper (arXiv:2507.16088), upstream's main and upstream's archived code disagree on image size and
channels, the spectrum's grid, the merge weights and the metadata; a checkpoint belongs to one of them and
says so in its card.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError

#: The 19 numbers of the paper's Table 2, and the peak magnitude that section 4.1's magnitude tower reads as
#: well.
PAPER_METADATA: tuple[str, ...] = (
    "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "ra", "dec", "magpsf", "sigmapsf", "chinr", "sharpnr",
    "sky", "classtar", "ndethist", "ncovhist", "scorr", "nmtchps", "diffmaglim", "age", "nnondet",
    "peakmag_so_far",
)  # fmt: skip

#: The 24 columns that the indices of upstream's towers imply.
UPSTREAM_METADATA: tuple[str, ...] = (
    "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "nmtchps", "sharpnr", "scorr", "ra", "dec",
    "diffmaglim", "sky", "ndethist", "ncovhist", "sigmapsf", "chinr", "magpsf", "nnondet", "classtar", "fid",
    "days_since_peak", "days_to_peak", "age", "peakmag_so_far", "maxmag_so_far",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What a network's inputs are.

    Attributes
    ----------
    name : str
    image_size, image_channels : int
        Side in pixels and number of channels of the cutout.
    stamp_fill : {"median", "zero", "keep"}
        What takes the place of pixels that are not finite: the stamp's median, 0, or nothing.
    stamp_norm : {"asinh_mad", "l2", "none"}
        Per stamp: arcsinh of (x - median) / (1.4826 MAD); division by the L2 norm; nothing.
    stamp_pad : float
        Value outside the stamp, after normalisation.
    stamp_align : {"centre", "corner"}
        Cut and pad around the centre, or keep the first pixel and pad at the bottom and right.
    radial_channel : bool
        Append the distance from the centre, 0 at the centre and 1 at the corners.
    metadata_names : tuple of str
        Metadata columns, in order.
    missing_value : float
        Stands for a missing number at the model's input, nowhere else.
    scale_sky : bool
        ra/180 - 1 and dec/90 instead of degrees.
    peak_zero_point : float
        Zero-point of the magnitudes that are made from fluxes in µJy (23.9: AB).
    spectrum_grid : tuple (float, float, int)
        First and last wavelength in Angstrom and number of points.
    spectrum_rest_frame : bool
        Divide wavelengths by 1 + z first.
    spectrum_norm : {"zscore", "mad", "mad_unguarded"}
        Over the covered points; (x - mean) / MAD with or without the fall-back for a MAD of 0.
    spectrum_outside : {"zero", "extrapolate"}
        What stands where the spectrum does not cover the grid.
    merge_hours : float
        Points of a band within this time of a group's first are one event.
    merge_weights : {"inverse_variance", "inverse_error"}
    signed_flux : bool
        Negative subtractions are negative flux; upstream takes the absolute value.
    forced_snr : float or None
        Forced points count from this signal-to-noise ratio on; None: not used.
    one_per_exposure : bool
        Keep the first detection of each (band, jd to 5 decimals) only.
    cut_on_dt : bool
        Besides the wall, keep only events with dt <= horizon.
    event_dtype : {"float64", "float32"}
        Precision in which the features of an event are computed.
    max_events : int
        The first so many events.
    flux_floor : float
        µJy, before the logarithm.
    """

    name: str
    image_size: int
    image_channels: int
    stamp_fill: str
    stamp_norm: str
    stamp_pad: float
    stamp_align: str
    radial_channel: bool
    metadata_names: tuple[str, ...]
    scale_sky: bool
    peak_zero_point: float
    spectrum_grid: tuple[float, float, int]
    spectrum_rest_frame: bool
    spectrum_norm: str
    spectrum_outside: str
    merge_weights: str
    signed_flux: bool
    forced_snr: float | None
    one_per_exposure: bool
    cut_on_dt: bool
    event_dtype: str
    merge_hours: float = 12.0
    missing_value: float = -999.0
    max_events: int = 257
    flux_floor: float = 1e-6

    def as_dict(self) -> dict[str, Any]:
        """All settings, JSON-ready."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def digest(self) -> str:
        """Hex digest of all settings; written into every model card."""
        return json_digest(self.as_dict())


_UPSTREAM: dict[str, Any] = {
    "image_size": 63,
    "metadata_names": UPSTREAM_METADATA,
    "scale_sky": True,
    "peak_zero_point": 0.0,
    "merge_weights": "inverse_error",
    "signed_flux": False,
    "forced_snr": None,
    "one_per_exposure": True,
    "cut_on_dt": True,
    "event_dtype": "float32",
    "stamp_align": "corner",
}

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="paper",
            image_size=49,
            image_channels=4,
            stamp_fill="median",
            stamp_norm="asinh_mad",
            stamp_pad=0.0,
            stamp_align="centre",
            radial_channel=True,
            metadata_names=PAPER_METADATA,
            scale_sky=False,
            peak_zero_point=23.9,
            spectrum_grid=(3850.0, 8500.0, 4096),
            spectrum_rest_frame=True,
            spectrum_norm="zscore",
            spectrum_outside="zero",
            merge_weights="inverse_variance",
            signed_flux=True,
            forced_snr=5.0,
            one_per_exposure=False,
            cut_on_dt=False,
            event_dtype="float64",
        ),
        Profile(
            name="upstream-main",
            image_channels=3,
            radial_channel=False,
            stamp_fill="zero",
            stamp_norm="none",
            stamp_pad=0.0,
            spectrum_grid=(4500.0, 7980.0, 3481),
            spectrum_rest_frame=False,
            spectrum_norm="mad",
            spectrum_outside="extrapolate",
            **_UPSTREAM,
        ),
        Profile(
            name="upstream-archive",
            # The archived network reads four channels, the archived triplets have three: the paper's fourth
            # is added.
            image_channels=4,
            radial_channel=True,
            stamp_fill="zero",
            stamp_norm="l2",
            stamp_pad=1e-9,
            spectrum_grid=(3850.0, 8500.0, 4096),
            spectrum_rest_frame=True,
            spectrum_norm="zscore",
            spectrum_outside="zero",
            **_UPSTREAM,
        ),
    )
}


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises
    ------
    UserError
        If there is none.
    """
    if name not in PROFILES:
        raise UserError(f"Unknown profile '{name}'; allowed are {', '.join(PROFILES)}.")
    return PROFILES[name]
