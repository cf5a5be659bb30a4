"""What every simulated object is: a class, a position on the sky, and a signed difference flux with time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from applecider_batch.simulate.cadence import FloatArray, IntArray

AB_ZERO_UJY = 23.9  # mag of 1 microjansky
BAND_WAVELENGTH = {1: 4770.0, 2: 6231.0, 3: 7625.0}  # Angstrom, ZTF g, r, i

FluxFunction = Callable[[FloatArray, IntArray], FloatArray]


@dataclass
class Source:
    """One simulated object.

    `flux` maps jd (n,) and fid (n,) to the signed flux of the difference image in microjansky (n,), float64.
    `star_mag` is the point source that the reference image holds at the object's own place (None: none).
    `host_mag` is the host galaxy, `host_offset_arcsec` the object's distance from its centre,
    `core_mag` a point source at that centre (an active nucleus).  `past_detection_rate` is the fraction of
    the visits before the simulated history with a raw detection, `only_visits` restricts a moving or spurious
    source to some exposures, `moving` is the name, mag and distance in arcsec of a known solar-system object
    there.
    """

    kind: str
    class5: str | None
    gate: str
    flux: FluxFunction
    t_onset: float | None = None
    t_peak: float | None = None
    redshift: float | None = None
    peak_abs_mag: float | None = None
    star_mag: dict[int, float] | None = None
    host_mag: dict[int, float] | None = None
    host_offset_arcsec: float = 0.0
    host_radius_arcsec: float = 1.0
    host_sersic: float = 1.5
    core_mag: dict[int, float] | None = None
    past_detection_rate: float = 0.0
    only_visits: IntArray | None = None
    moving: tuple[str, float, float] | None = None
    artefact: str | None = None


def ujy(mag: FloatArray | float) -> FloatArray:
    """AB magnitude to microjansky."""
    return np.asarray(10.0 ** (0.4 * (AB_ZERO_UJY - np.asarray(mag, dtype=np.float64))))


def band_array(values: dict[int, float], fid: IntArray) -> FloatArray:
    """Per-exposure value of a per-band constant, shape of `fid`."""
    table = np.array([0.0, values[1], values[2], values[3]])
    return np.asarray(table[fid])


_Z_GRID = np.concatenate([[0.0], np.geomspace(1e-4, 3.0, 600)])
# Flat LCDM, H0 = 70, Om = 0.3: comoving distance in Mpc by the trapezoid rule.
_INVERSE_E = 1.0 / np.sqrt(0.3 * (1.0 + _Z_GRID) ** 3 + 0.7)
_COMOVING = np.concatenate(
    [[0.0], np.cumsum(0.5 * (_INVERSE_E[1:] + _INVERSE_E[:-1]) * np.diff(_Z_GRID))]
) * (299792.458 / 70.0)
_MODULUS = 5.0 * np.log10(np.maximum(_COMOVING * (1.0 + _Z_GRID), 1e-6)) + 25.0


def redshift_of_modulus(modulus: float) -> float:
    """Redshift at a distance modulus in mag (flat LCDM, H0 = 70 km/s/Mpc, Om = 0.3)."""
    return float(np.interp(modulus, _MODULUS[1:], _Z_GRID[1:]))


def modulus_of_redshift(redshift: float) -> float:
    """Distance modulus in mag at a redshift (same cosmology)."""
    return float(np.interp(redshift, _Z_GRID[1:], _MODULUS[1:]))


COUNT_SLOPE = 0.5


def peak_mag(rng: np.random.Generator, bright: float, faint: float) -> float:
    """Draw an apparent peak magnitude from N(<m) proportional to 10^(0.5 m).

    A uniform volume has 0.6; the real classified sample is flatter, because bright events are classified
    more completely (docs/simulation.md).
    """
    low, high = 10.0 ** (COUNT_SLOPE * (bright - faint)), 1.0
    return float(faint + np.log10(rng.uniform(low, high)) / COUNT_SLOPE)


def black_body_mag(temperature: float, redshift: float) -> dict[int, float]:
    """AB colours of a black body relative to r, per fid (temperature in K, rest frame)."""

    def f_nu(wavelength: float) -> float:
        x = 1.4388e8 / (wavelength / (1.0 + redshift) * temperature)
        return float(wavelength**-3.0 / np.expm1(x))

    reference = f_nu(BAND_WAVELENGTH[2])
    return {fid: float(-2.5 * np.log10(f_nu(w) / reference)) for fid, w in BAND_WAVELENGTH.items()}
