"""Spectra of the five classes: a continuum, the lines of the class, the host galaxy, noise.

Line lists and velocities are textbook ones (Filippenko 1997, doi:10.1146/annurev.astro.35.1.309, for
supernovae; Vanden Berk et al. 2001, doi:10.1086/321167, for active nuclei; van Velzen et al. 2021,
doi:10.3847/1538-4357/abc258, for tidal disruptions; Warner 1995 for dwarf novae).
"""

from __future__ import annotations

import numpy as np

from applecider_batch.simulate.cadence import FloatArray
from applecider_batch.simulate.source import BAND_WAVELENGTH, Source

LIGHT_SPEED = 299792.458
BALMER = (6562.8, 4861.3, 4340.5, 4101.7)
# (rest wavelength, depth or height relative to the continuum) of P-Cygni features near maximum.
_P_CYGNI: dict[str, tuple[tuple[float, float], ...]] = {
    "SN Ia": ((6355, 0.55), (5972, 0.16), (5640, 0.3), (5454, 0.28), (4900, 0.45), (4481, 0.4), (3945,
        0.6), (8579, 0.4), (7773, 0.15)),
    "SN Ib": ((5876, 0.45), (6678, 0.25), (7065, 0.25), (4471, 0.2), (5018, 0.35), (4924, 0.25), (8579,
        0.35), (3945, 0.4), (7773, 0.2)),
    "SN Ic": ((7773, 0.4), (5169, 0.45), (4924, 0.3), (6355, 0.15), (8579, 0.45), (3945, 0.5), (4481, 0.3)),
    "SN IIP": ((6562.8, 0.35), (4861.3, 0.4), (4340.5, 0.35), (4101.7, 0.25), (5169, 0.2), (8579, 0.2),
        (5876, 0.12)),
    "SN IIb": ((6562.8, 0.4), (4861.3, 0.3), (4340.5, 0.2), (5876, 0.35), (6678, 0.12), (7065, 0.15),
        (5169, 0.3), (8579, 0.3), (3945, 0.4)),
}  # fmt: skip
_VELOCITY = {"SN Ia": 11000.0, "SN Ib": 9500.0, "SN Ic": 10500.0, "SN IIP": 7000.0, "SN IIb": 10500.0}
_GALAXY_LINES = (
    (6562.8, 1.0),
    (4861.3, 0.35),
    (5006.8, 0.4),
    (4958.9, 0.13),
    (3727.4, 0.6),
    (6583.4, 0.35),
    (6716.4, 0.2),
    (6730.8, 0.15),
)


def _gauss(wave: FloatArray, centre: float, sigma: float) -> FloatArray:
    return np.asarray(np.exp(-0.5 * ((wave - centre) / sigma) ** 2))


def _planck(wave: FloatArray, temperature: float) -> FloatArray:
    """Black body per wavelength, 1 at 5500 Angstrom."""

    def f(w: FloatArray | float) -> FloatArray:
        return np.asarray(np.asarray(w) ** -5.0 / np.expm1(1.4388e8 / (np.asarray(w) * temperature)))

    return np.asarray(f(wave) / f(5500.0))


def _host_galaxy(wave: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Old stars with a 4000 Angstrom break and absorption, plus nebular lines of star formation."""
    young = float(rng.random())
    shape = (0.55 + 0.45 * young) * _planck(wave, 4800.0 + 3500.0 * young)
    shape = shape * (1.0 - (0.45 - 0.3 * young) / (1.0 + np.exp((wave - 4000.0) / 25.0)))
    for line, depth in ((3933.7, 0.4), (3968.5, 0.35), (4304.4, 0.2), (5175.3, 0.2), (5892.9, 0.15)):
        shape = shape * (1.0 - (1.0 - 0.7 * young) * depth * _gauss(wave, line, 8.0))
    for line, height in _GALAXY_LINES:
        shape = shape + young * 1.2 * height * _gauss(wave, line, 3.5)
    return np.asarray(shape)


def _supernova(kind: str, wave: FloatArray, phase: float, rng: np.random.Generator) -> FloatArray:
    if kind == "SN IIn":
        shape = _planck(wave, float(rng.uniform(8500.0, 13000.0)) * np.exp(-max(phase, 0.0) / 120.0))
        for line, height in zip(BALMER, (1.6, 0.7, 0.4, 0.25), strict=True):
            narrow = _gauss(wave, line, line * rng.uniform(250.0, 500.0) / LIGHT_SPEED)
            wide = 0.4 * _gauss(wave, line, line * rng.uniform(1200.0, 2200.0) / LIGHT_SPEED)
            shape = shape + height * (narrow + wide)
        return np.asarray(shape)
    temperature = np.clip(
        (11500.0 if kind in ("SN Ia", "SN IIP") else 8500.0) * np.exp(-phase / 60.0), 4600.0, 15000.0
    )
    shape = _planck(wave, float(temperature))
    velocity = (
        _VELOCITY[kind] * float(rng.normal(1.0, 0.07)) * float(np.exp(-np.clip(phase, -15, 120) / 160.0))
    )
    strength = float(np.clip(0.65 + phase / 40.0, 0.25, 1.25)) * float(rng.normal(1.0, 0.1))
    for line, depth in _P_CYGNI[kind]:
        width = line * velocity * 0.28 / LIGHT_SPEED
        blue = line * (1.0 - velocity / LIGHT_SPEED)
        shape = shape * (1.0 - min(0.95, strength * depth) * _gauss(wave, blue, width))
        shape = shape * (1.0 + 0.8 * strength * depth * _gauss(wave, line, width * 1.4))
    return np.asarray(shape)


def _other(kind: str, wave: FloatArray, rng: np.random.Generator) -> FloatArray:
    if kind == "AGN":
        shape = (wave / 5500.0) ** float(rng.normal(-1.5, 0.35))
        sigma = float(rng.uniform(1200.0, 3200.0)) / LIGHT_SPEED
        for line, height in (
            (6562.8, 2.2),
            (4861.3, 0.75),
            (4340.5, 0.35),
            (4101.7, 0.2),
            (2798.8, 1.1),
            (1908.7, 0.6),
            (1549.1, 1.4),
        ):
            shape = shape + 0.7 * height * _gauss(wave, line, line * sigma)
        for line, height in ((5006.8, 0.9), (4958.9, 0.3), (3727.4, 0.3), (6583.4, 0.3), (3868.8, 0.15)):
            shape = shape + rng.uniform(0.4, 1.2) * height * _gauss(wave, line, 6.0)
        for line in (4570.0, 5250.0):  # the blended Fe II bumps on both sides of H beta
            shape = shape + 0.15 * _gauss(wave, line, 110.0)
        return np.asarray(shape)
    if kind == "TDE":
        shape = _planck(wave, float(rng.uniform(15000.0, 30000.0)))
        helium = float(rng.choice([0.0, 0.35, 0.5]))
        hydrogen = float(rng.choice([0.0, 0.3, 0.5])) if helium else 0.45
        width = float(rng.uniform(4500.0, 9000.0)) / LIGHT_SPEED
        shape = (
            shape
            + helium * _gauss(wave, 4685.7, 4685.7 * width)
            + 0.5 * helium * _gauss(wave, 4640.0, 4640.0 * width)
        )
        for line, height in zip(BALMER, (0.9, 0.6, 0.3, 0.2), strict=True):
            shape = shape + hydrogen * height * _gauss(wave, line, line * width)
        return np.asarray(shape)
    if (
        kind == "CV"
    ):  # outburst: blue disc with Balmer absorption and emission cores; near quiescence emission only
        shape = _planck(wave, float(rng.uniform(9000.0, 20000.0)))
        emission = float(rng.random())
        for line in (*BALMER, 5875.6, 4685.7):
            weak = 0.5 if line in (5875.6, 4685.7) else 1.0
            core, wing = line * 550.0 / LIGHT_SPEED, line * 1800.0 / LIGHT_SPEED
            shape = shape * (1.0 - 0.3 * (1.0 - emission) * weak * _gauss(wave, line, wing))
            shape = shape + weak * (0.1 + 1.1 * emission) * _gauss(wave, line, core)
        return np.asarray(shape)
    raise ValueError(f"no spectrum for {kind!r}")


def make_spectrum(
    source: Source, mjd: float, mag_r: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Observed-frame spectrum of `source` taken at `mjd` when it has the r magnitude `mag_r`.

    Returns
    -------
    wavelength : float64 array, shape (n,)
        Angstrom, observed frame.
    flux : float64 array, shape (n,)
        erg / s / cm^2 / Angstrom.
    """
    low_resolution = rng.random() < 0.5
    step, fwhm = (18.0, 45.0) if low_resolution else (4.0, 8.0)
    first, last = float(rng.uniform(3500.0, 3900.0)), float(rng.uniform(8600.0, 9600.0))
    wave = np.arange(first, last, step)
    redshift = source.redshift or 0.0
    rest = wave / (1.0 + redshift)
    if source.kind.startswith("SN"):
        phase = (mjd + 2400000.5 - (source.t_peak or 0.0)) / (1.0 + redshift)
        shape = _supernova(source.kind, rest, phase, rng)
    else:
        shape = _other(source.kind, rest, rng)
    shape = shape / max(float(np.interp(BAND_WAVELENGTH[2], wave, shape)), 1e-6)
    if source.kind != "CV":
        share = float(rng.beta(1.2, 3.0) * (1.2 if source.kind == "TDE" else 0.9))
        galaxy = _host_galaxy(rest, rng)
        shape = (1.0 - share) * shape + share * galaxy / max(
            float(np.interp(BAND_WAVELENGTH[2], wave, galaxy)), 1e-6
        )
    kernel_sigma = max(fwhm / 2.355 / step, 0.3)
    half = int(np.ceil(4 * kernel_sigma))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / kernel_sigma) ** 2)
    shape = np.convolve(np.pad(shape, half, mode="edge"), kernel / kernel.sum(), mode="valid")
    snr = float(np.clip(10 ** rng.normal(1.15, 0.25), 4.0, 80.0))
    edge = 1.0 + 1.5 * np.exp(-(wave - first) / 250.0) + 1.0 * np.exp((wave - last) / 250.0)
    shape = shape + rng.normal(size=len(wave)) * edge * np.mean(np.abs(shape)) / snr
    level = 10.0 ** (-0.4 * (mag_r + 48.6)) * 2.998e18 / BAND_WAVELENGTH[2] ** 2
    return wave, np.asarray(shape * level)
