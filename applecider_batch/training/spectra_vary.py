"""How training spectra are varied: what another night, spectrograph or redshift would have changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from applecider_batch.training.spectra_data import FWHM_TO_SIGMA, blurred, standardised

_LEAST_SHOWN = 0.1


@dataclass(frozen=True)
class SpectraAugmentation:
    """How much of what.

    Attributes
    ----------
    unknown : float
        Share of spectra shown as if the redshift were not known, at 0.
    redshift : float
        Standard deviation of an error of ln(1 + z).
    wrong : float
        Share of spectra shown at a wrong redshift and to be told as such.
    wrong_by : tuple (float, float)
        Least and largest error of ln(1 + z) of these, drawn evenly in the logarithm, of either sign.
    edge : float
        At most this share of the grid is blanked at each end.
    edge_share : float
        Share of spectra with blanked edges.
    noise : float
        Largest standard deviation of white noise, in units of the spectrum's own spread.
    tilt : float
        Standard deviation of an added low-order polynomial (flux calibration, reddening, light of the host),
        in the same units.
    blur_share : float
        Share of spectra shown at a lower resolution.
    resolution : tuple (float, float)
        Lowest and highest R of these, drawn evenly in the logarithm.
    """

    unknown: float = 0.2
    redshift: float = 0.004
    wrong: float = 0.0
    wrong_by: tuple[float, float] = (0.012, 0.25)
    edge: float = 0.25
    edge_share: float = 0.5
    noise: float = 0.4
    tilt: float = 0.6
    blur_share: float = 0.6
    resolution: tuple[float, float] = (100.0, 1000.0)


def vary_spectra(
    flux: np.ndarray, a: SpectraAugmentation, rng: np.random.Generator, log_step: float
) -> tuple[np.ndarray, np.ndarray]:
    """Varied spectra.

    Parameters
    ----------
    flux : ndarray of float32, shape (b, n)
        Zero mean and unit spread, 0 where not covered.
    a : SpectraAugmentation
    rng : numpy.random.Generator
    log_step : float
        ln(wavelength) between neighbours, of an evenly spaced grid at its middle.

    Returns
    -------
    tuple of ndarray
        float32 (b, n), zero mean and unit spread over what is shown, 0 elsewhere; what a shift moves in is
        not covered. bool (b,), True where the redshift is wrong.
    """
    b, n = flux.shape
    out = np.zeros_like(flux)
    wrong = np.asarray(rng.random(b) < a.wrong)
    low, high = np.log(a.wrong_by)
    error = rng.normal(0, a.redshift, b)
    error += wrong * np.exp(rng.uniform(low, high, b)) * rng.choice((-1.0, 1.0), b)
    for i, shift in enumerate(np.rint(error / log_step).astype(int)):
        to, where = (
            (slice(shift, n), slice(0, n - shift)) if shift >= 0 else (slice(0, shift), slice(-shift, n))
        )
        out[i, to] = flux[i, where]
    covered = out != 0
    shown = _shown(covered, a, rng)
    lower = np.flatnonzero(rng.random(b) < a.blur_share)
    low, high = np.log(a.resolution)
    resolution = np.exp(rng.uniform(low, high, len(lower)))
    if len(lower):
        out[lower] = blurred(out[lower], covered[lower], FWHM_TO_SIGMA / resolution / log_step)
    ramp = np.linspace(-1, 1, n)
    # Legendre polynomials of degree 1 to 3: the higher ones with less of each.
    basis = np.polynomial.legendre.legvander(ramp, 3)[:, 1:]
    out += ((rng.normal(0, a.tilt, (b, 3)) * np.array([1.0, 1.0, 0.7])) @ basis.T).astype(np.float32)
    noise = np.float32(a.noise) * rng.random((b, 1), np.float32) ** 2
    out += noise * rng.standard_normal((b, n), np.float32)
    return standardised(out, shown), wrong


def _shown(covered: np.ndarray, a: SpectraAugmentation, rng: np.random.Generator) -> np.ndarray:
    """What is left with blanked edges; all of it where that were too little. bool (b, n)."""
    b, n = covered.shape
    cut = rng.uniform(0, a.edge * n, (b, 2)) * (rng.random((b, 1)) < a.edge_share)
    position = np.arange(n)
    shown = covered & (position >= cut[:, :1]) & (position < n - cut[:, 1:])
    enough = shown.sum(1, keepdims=True) > _LEAST_SHOWN * n
    return np.where(enough, shown, covered)
