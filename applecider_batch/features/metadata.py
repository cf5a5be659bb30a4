"""Metadata of one packet, by name: the 19 numbers of the paper's Table 2 and upstream's columns.

Most are fields of ``candidate``. The others follow from counters of the packet and from the merged events
known when the packet was sent (never from later ones):

- ``nnondet`` = ncovhist - ndethist
- ``days_since_peak`` = packet - brightest event so far, ``days_to_peak`` = that event - first event,
  ``age`` = their sum = packet - first event, all in days
- ``peakmag_so_far``, ``maxmag_so_far`` = smallest and largest magnitude of the events so far, zero-point of
  the profile
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.light_curves import Events, in_sequence
from applecider_batch.features.points import Alerts
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import counts_of, reduce_segments

#: Fields taken from the packet as they are.
CANDIDATE_FIELDS: tuple[str, ...] = (
    "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "nmtchps", "sharpnr", "scorr", "ra", "dec",
    "diffmaglim", "sky", "ndethist", "ncovhist", "sigmapsf", "chinr", "magpsf", "classtar", "fid", "rb",
    "chipsf", "distnr", "magnr", "ranr", "decnr", "fwhm", "srmag1", "sgmag1", "simag1", "szmag1",
    "srmag2", "sgmag2", "simag2", "szmag2", "clrcoeff", "clrcounc", "zpclrcov",
)  # fmt: skip
HISTORY_FIELDS: tuple[str, ...] = (
    "days_since_peak", "days_to_peak", "age", "peakmag_so_far", "maxmag_so_far", "max_over_peak_mag",
    "n_photometry_total", "n_photometry_fid_1", "n_photometry_fid_2", "n_photometry_fid_3",
)  # fmt: skip
KNOWN_FEATURES: tuple[str, ...] = (*CANDIDATE_FIELDS, "drb", "nnondet", *HISTORY_FIELDS)
_MAG_FLUX_FLOOR = 1e-12


@dataclass(frozen=True)
class History:
    """What the events so far say, one value per sequence; NaN where there is no event."""

    values: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]


def event_history(events: Events, n_sequences: int, now_jd: np.ndarray, profile: Profile) -> History:
    """The history fields of each sequence at a moment.

    Parameters
    ----------
    events : Events
        Only those known at that moment.
    n_sequences : int
    now_jd : ndarray of float64, shape (n_sequences,)
        jd of the packet.
    profile : Profile

    Returns
    -------
    History
    """
    events = events.take(in_sequence(events))
    nan = float("nan")
    first = reduce_segments(np.minimum, events.jd, events.sequence, n_sequences, nan)
    brightest = reduce_segments(np.maximum, events.flux, events.sequence, n_sequences, nan)
    faintest = reduce_segments(np.minimum, events.flux, events.sequence, n_sequences, nan)
    # The first of several equally bright events: events are in time order.
    at_peak = events.flux == brightest[events.sequence]
    peak = reduce_segments(np.minimum, events.jd[at_peak], events.sequence[at_peak], n_sequences, nan)
    peak_mag, max_mag = _mag(brightest, profile), _mag(faintest, profile)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = max_mag / peak_mag
    values = {
        "days_since_peak": now_jd - peak,
        "days_to_peak": peak - first,
        "age": (now_jd - peak) + (peak - first),
        "peakmag_so_far": peak_mag,
        "maxmag_so_far": max_mag,
        "max_over_peak_mag": ratio,
        "n_photometry_total": counts_of(events.sequence, n_sequences).astype(np.float64),
    }
    for fid in (1, 2, 3):
        count = counts_of(events.sequence, n_sequences, events.fid == fid)
        values[f"n_photometry_fid_{fid}"] = count.astype(np.float64)
    return History(values)


def _mag(flux: np.ndarray, profile: Profile) -> np.ndarray:
    return profile.peak_zero_point - 2.5 * np.log10(np.maximum(flux, _MAG_FLUX_FLOOR))


def packet_metadata(alerts: Alerts, position: np.ndarray, history: History, profile: Profile) -> np.ndarray:
    """Metadata of packets, in the profile's order.

    Parameters
    ----------
    alerts : Alerts
    position : ndarray of int64, shape (n,)
        Packets in ``alerts``.
    history : History
        One value per packet.
    profile : Profile

    Returns
    -------
    ndarray, float32, shape (n, F)
        Missing, NaN and infinite numbers are ``profile.missing_value``.

    Raises
    ------
    UserError
        If the profile names a feature that cannot be made.
    """
    if unknown := [name for name in profile.metadata_names if name not in KNOWN_FEATURES]:
        raise UserError(
            f"The profile '{profile.name}' names unknown metadata features: {', '.join(unknown)};"
            f" allowed are {', '.join(KNOWN_FEATURES)}."
        )
    columns = [_feature(alerts, position, history, profile, name) for name in profile.metadata_names]
    values = np.stack(columns, axis=1) if columns else np.empty((len(position), 0))
    with np.errstate(over="ignore"):
        out = values.astype(np.float32)
    return np.where(np.isfinite(out), out, np.float32(profile.missing_value))


def _feature(
    alerts: Alerts, position: np.ndarray, history: History, profile: Profile, name: str
) -> np.ndarray:
    if name in HISTORY_FIELDS:
        return history[name]
    if name == "nnondet":
        return (alerts.floats("ncovhist") - alerts.floats("ndethist"))[position]
    values = alerts.floats(name)[position]
    if profile.scale_sky and name == "ra":
        return values / 180.0 - 1.0
    if profile.scale_sky and name == "dec":
        return values / 90.0
    return values
