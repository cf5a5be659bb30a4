"""Supernovae and tidal disruption events from published light-curve shapes."""

from __future__ import annotations

import numpy as np

from applecider_batch.simulate.cadence import FloatArray, IntArray
from applecider_batch.simulate.source import (
    FluxFunction,
    Source,
    band_array,
    black_body_mag,
    peak_mag,
    redshift_of_modulus,
    ujy,
)

RARE = "fast blue transient"
# Fainter ones are rarely recognised: the real classified sample has its median peak near 18.3 mag.
FAINTEST_PEAK = 19.1

# Mean SN Ia in g, r, i: mag below the g maximum against rest-frame days since that maximum, read off the
# templates of Hsiao et al. 2007 (doi:10.1086/518232) at 3 per cent; the i band has its second maximum.
_IA_PHASE = np.array(
    [-18, -17, -15, -12, -9, -6, -3, 0, 3, 6, 10, 15, 20, 25, 30, 40, 50, 60, 80, 120], float
)
_IA_MAG = {
    1: np.array([9, 4.5, 2.6, 1.25, 0.6, 0.22, 0.05, 0, 0.06, 0.2, 0.5, 1.0, 1.55, 2.05, 2.4, 2.75, 2.95,
        3.15, 3.55, 4.35]),
    2: np.array([9, 4.4, 2.5, 1.2, 0.6, 0.25, 0.1, 0.05, 0.06, 0.16, 0.44, 0.72, 0.8, 0.98, 1.32, 1.87,
        2.27, 2.57, 3.12, 4.2]),
    3: np.array([9, 4.7, 2.8, 1.5, 0.95, 0.68, 0.55, 0.58, 0.72, 0.92, 1.18, 1.25, 1.12, 1.05, 1.25, 1.9,
        2.4, 2.8, 3.5, 4.6]),
}  # fmt: skip


def bazin(phase: FloatArray, rise: float, fall: FloatArray | float) -> FloatArray:
    """Bazin et al. 2009 (doi:10.1051/0004-6361/200911847) eq. 1, scaled to maximum 1.

    f(t) = A exp(-t/fall) / (1 + exp(-t/rise)); `phase` in days relative to t0, which lies
    ``rise * ln(fall/rise - 1)`` before the maximum.
    """
    fall_array = np.broadcast_to(np.asarray(fall, dtype=np.float64), phase.shape)
    at_max = rise * np.log(fall_array / rise - 1.0)
    t = phase + at_max
    value = np.exp(-np.clip(t / fall_array, -50, 50)) / (1.0 + np.exp(-np.clip(t / rise, -50, 50)))
    top = np.exp(-at_max / fall_array) / (1.0 + np.exp(-at_max / rise))
    return np.asarray(value / top)


def villar(
    phase: FloatArray, rise: float, plateau_slope: FloatArray, plateau: float, fall: float
) -> FloatArray:
    """Villar et al. 2019 (doi:10.3847/1538-4357/ab418c) eq. 1: linear decline on a plateau, then exponential.

    `plateau_slope` is the fraction lost per day on the plateau (n,), `plateau` its length in days.  A cobalt
    tail (0.0098 mag/day) 2.2 mag below takes over at the end.
    """
    t = np.asarray(phase, dtype=np.float64)
    on = 1.0 / (1.0 + np.exp(-np.clip((t + 3.0 * rise) / rise, -50, 50)))
    before = 1.0 - plateau_slope * np.clip(t, 0.0, plateau)
    after = np.exp(-np.clip(t - plateau, 0.0, 400.0) / fall)
    tail = 0.13 * np.exp(-np.clip(t - plateau, 0.0, 400.0) / 111.0) * (t > plateau)
    return np.asarray(on * np.maximum(before * after, tail))


def seen_abs_mag(rng: np.random.Generator, mean: float, sigma: float) -> float:
    """Absolute magnitude of an event of a given apparent magnitude, from that of events in a given volume.

    The brighter ones are seen farther, in a volume that grows by 10^(0.6 M): a Gaussian moves by
    ``0.6 ln(10) sigma^2`` (Malmquist 1922).
    """
    return float(rng.normal(mean - 0.6 * np.log(10.0) * sigma**2, sigma))


# Mean and scatter of a host's r magnitude: old ones of SN I and TDE, star-forming ones down to dwarfs of
# SN II (masses of Schulze et al. 2021, arXiv:2008.05988, at about one solar mass per luminosity).
_HOST_ABS = {"SN I": (-20.3, 1.3), "TDE": (-20.2, 1.3), "SN II": (-19.3, 1.5)}


def _host(source: Source, rng: np.random.Generator, modulus: float, nuclear: bool) -> None:
    redshift = max(source.redshift or 0.0, 0.003)
    r_abs = rng.normal(*_HOST_ABS[source.class5 or "SN II"])
    color = rng.normal(0.6, 0.12) + redshift
    r = modulus + r_abs
    source.host_mag = {1: r + color, 2: r, 3: r - 0.32}
    angular_mpc = 10 ** ((modulus - 25.0) / 5.0) / (1.0 + redshift) ** 2
    kpc_per_arcsec = 4.848e-3 * angular_mpc
    radius_kpc = 4.5 * 10 ** (-0.13 * (r_abs + 20.2)) * rng.lognormal(0.0, 0.25)
    source.host_radius_arcsec = float(np.clip(radius_kpc / kpc_per_arcsec, 0.4, 12.0))
    source.host_sersic = float(rng.choice([1.0, 1.0, 1.5, 2.5, 4.0]))
    if nuclear:
        source.host_offset_arcsec = float(rng.rayleigh(0.09))
    else:  # as the light: a disc's radius is Gamma(2) distributed, SN Ia also follow bulge and halo
        shape, scale = (1.3, 0.8) if source.class5 == "SN I" else (2.0, 0.45)
        source.host_offset_arcsec = float(
            min(rng.gamma(shape, scale) * min(source.host_radius_arcsec, 7.0), 20.0)
        )


def _finish(
    kind: str, class5: str, rng: np.random.Generator, t_peak: float, rise_days: float,
    abs_mag: float, shape: FluxFunction, redshift: float, mag: float, nuclear: bool = False,
) -> Source:  # fmt: skip
    source = Source(
        kind=kind, class5=class5, gate="in_scope", flux=shape, t_onset=t_peak - rise_days * (1 + redshift),
        t_peak=t_peak, redshift=redshift, peak_abs_mag=abs_mag,
    )  # fmt: skip
    _host(source, rng, mag - abs_mag, nuclear)
    return source


def _reddening(rng: np.random.Generator) -> dict[int, float]:
    ebv = float(rng.exponential(0.12))
    return {1: 3.5 * ebv, 2: 2.5 * ebv, 3: 1.9 * ebv}


def _cooled(phase: FloatArray, fid: IntArray, redder: float, days: float) -> FloatArray:
    """How much fainter g has become, as the photosphere cools after maximum, mag (n,)."""
    return np.asarray(np.where(fid == 1, redder * (1.0 - np.exp(-np.clip(phase, 0.0, 400.0) / days)), 0.0))


def sn_ia(rng: np.random.Generator, t_peak: float) -> Source:
    """SN Ia with stretch and colour (Guy et al. 2007, doi:10.1051/0004-6361:20066930)."""
    stretch = float(np.clip(rng.normal(0.98, 0.09), 0.7, 1.25))
    color = float(rng.normal(0.0, 0.06) + rng.exponential(0.04))
    abs_mag = -19.25 - 1.4 * (stretch - 1.0) + 2.5 * color + rng.normal(0.0, 0.12)
    mag = peak_mag(rng, 15.0, FAINTEST_PEAK)
    redshift = redshift_of_modulus(mag - abs_mag)
    shift = {1: 0.0, 2: -1.0 * color - 0.4 * redshift, 3: -1.6 * color}

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = (jd - t_peak) / ((1.0 + redshift) * stretch)
        delta = np.choose(fid - 1, [np.interp(phase, _IA_PHASE, _IA_MAG[k]) for k in (1, 2, 3)])
        out = ujy(mag + delta + band_array(shift, fid))
        late = phase > _IA_PHASE[-1]
        out = np.where(late, out * np.exp(-(phase - _IA_PHASE[-1]) / 60.0), out)
        return np.asarray(np.where(phase < _IA_PHASE[0], 0.0, out))

    return _finish("SN Ia", "SN I", rng, t_peak, 18.0 * stretch, abs_mag, flux, redshift, mag)


def _bazin_source(
    kind: str, class5: str, rng: np.random.Generator, t_peak: float, *, abs_mean: float, abs_sigma: float,
    rise: tuple[float, float], fall: tuple[float, float], color: tuple[float, float], reddens: float,
    bump: float = 0.0,
) -> Source:  # fmt: skip
    abs_mag = float(rng.normal(abs_mean, abs_sigma))
    mag = peak_mag(rng, 15.5, FAINTEST_PEAK)
    redshift = redshift_of_modulus(mag - abs_mag)
    tau_rise = float(rng.uniform(*rise))
    tau_fall = float(max(rng.lognormal(np.log(fall[0]), fall[1]), 2.5 * tau_rise))
    falls = {1: max(0.72 * tau_fall, 2.2 * tau_rise), 2: tau_fall, 3: 1.2 * tau_fall}
    gr = float(rng.normal(*color))
    dust = _reddening(rng)
    shift = {1: gr + dust[1] - dust[2], 2: 0.0, 3: -0.25 * gr + dust[3] - dust[2]}
    onset = 4.5 * tau_rise
    cooling = float(rng.uniform(0.5, 1.0)) * bump
    redder = float(rng.uniform(0.5, 1.5)) * reddens

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = (jd - t_peak) / (1.0 + redshift)
        main = bazin(phase, tau_rise, band_array(falls, fid))
        if cooling:  # first, blue maximum of the cooling shock-heated envelope (SN IIb)
            age = phase + onset
            blue = np.choose(fid - 1, [1.3, 1.0, 0.7])
            main = main + cooling * blue * np.where(age > 0, np.exp(-np.clip(age, 0, 99) / 2.5), 0.0)
        main = np.where(phase < -onset, 0.0, main)
        return np.asarray(ujy(mag + band_array(shift, fid) + _cooled(phase, fid, redder, 12.0)) * main)

    return _finish(kind, class5, rng, t_peak, onset, abs_mag, flux, redshift, mag)


def sn_ibc(kind: str, rng: np.random.Generator, t_peak: float) -> Source:
    """SN Ib or Ic: Bazin shape with the time scales of Taddia et al. 2018
    (doi:10.1051/0004-6361/201730844)."""
    return _bazin_source(
        kind,
        "SN I",
        rng,
        t_peak,
        abs_mean=-17.6,
        abs_sigma=0.8,
        rise=(3.2, 5.5),
        fall=(26.0, 0.25),
        color=(0.4, 0.15),
        reddens=0.45,
    )


def sn_iib(rng: np.random.Generator, t_peak: float) -> Source:
    """SN IIb: stripped-envelope shape with a first blue peak (as SN 1993J, Richmond et al. 1994,
    doi:10.1086/116915)."""
    return _bazin_source(
        "SN IIb",
        "SN II",
        rng,
        t_peak,
        abs_mean=-17.3,
        abs_sigma=0.6,
        rise=(3.5, 5.5),
        fall=(27.0, 0.2),
        color=(0.35, 0.15),
        reddens=0.45,
        bump=0.7,
    )


def sn_iin(rng: np.random.Generator, t_peak: float) -> Source:
    """SN IIn: slow and blue (Nyholm et al. 2020, doi:10.1051/0004-6361/201936097)."""
    return _bazin_source(
        "SN IIn",
        "SN II",
        rng,
        t_peak,
        abs_mean=-18.8,
        abs_sigma=0.9,
        rise=(4.0, 13.0),
        fall=(65.0, 0.45),
        color=(0.1, 0.15),
        reddens=0.25,
    )


def sn_iip(rng: np.random.Generator, t_peak: float) -> Source:
    """SN IIP: fast rise, plateau and fall (Villar et al. 2019; plateau lengths of Anderson et al. 2014,
    doi:10.1088/0004-637X/786/1/67)."""
    abs_mag = seen_abs_mag(rng, -16.9, 0.8)
    mag = peak_mag(rng, 15.5, FAINTEST_PEAK)
    redshift = redshift_of_modulus(mag - abs_mag)
    rise = float(rng.uniform(1.2, 3.0))
    plateau = float(np.clip(rng.normal(88.0, 15.0), 45.0, 130.0))
    fall = float(rng.uniform(7.0, 16.0))
    lost = {
        1: float(rng.uniform(0.3, 0.6)),
        2: float(rng.uniform(0.1, 0.4)),
        3: float(rng.uniform(0.0, 0.25)),
    }
    slope = {k: v / plateau for k, v in lost.items()}
    gr, redder = float(rng.normal(0.0, 0.12)), float(rng.uniform(0.35, 0.85))
    dust = _reddening(rng)
    shift = {1: gr + dust[1] - dust[2], 2: 0.0, 3: 0.1 + dust[3] - dust[2]}

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = (jd - t_peak) / (1.0 + redshift)
        value = villar(phase, rise, band_array(slope, fid), plateau, fall)
        color = band_array(shift, fid) + _cooled(phase, fid, redder, 20.0)
        return np.asarray(ujy(mag + color) * np.where(phase < -8.0 * rise, 0.0, value))

    return _finish("SN IIP", "SN II", rng, t_peak, 8.0 * rise, abs_mag, flux, redshift, mag)


def tde(rng: np.random.Generator, t_peak: float) -> Source:
    """Tidal disruption event: Gaussian rise, power-law decline, constant temperature.

    van Velzen et al. 2021 (doi:10.3847/1538-4357/abc258) eqs. 1-2 with p near -5/3, at log T = 4.32 +- 0.13.
    """
    abs_mag = float(rng.normal(-19.3, 0.7))
    mag = peak_mag(rng, 16.0, 19.7)
    redshift = redshift_of_modulus(mag - abs_mag)
    sigma = float(rng.lognormal(np.log(13.0), 0.35))
    t0 = float(rng.lognormal(np.log(45.0), 0.4))
    power = float(rng.normal(-1.67, 0.2))
    temperature = float(10 ** np.clip(rng.normal(4.32, 0.13), 4.05, 4.7))
    dust = float(rng.exponential(0.1))  # E(g-r) of what reddens the nucleus
    shift = black_body_mag(temperature, redshift)
    shift = {1: shift[1] + dust, 2: 0.0, 3: shift[3] - 0.5 * dust}

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = (jd - t_peak) / (1.0 + redshift)
        rise = np.exp(-0.5 * (np.minimum(phase, 0.0) / sigma) ** 2)
        fall = ((np.maximum(phase, 0.0) + t0) / t0) ** power
        return np.asarray(ujy(mag + band_array(shift, fid)) * rise * fall)

    return _finish("TDE", "TDE", rng, t_peak, 3.0 * sigma, abs_mag, flux, redshift, mag, nuclear=True)


def fast_blue(rng: np.random.Generator, t_peak: float) -> Source:
    """Fast blue optical transient, rare and of no class: up in three days, down by a magnitude in five.

    As AT 2018cow (Perley et al. 2019, doi:10.1093/mnras/sty3420): hot for weeks, a power law after maximum.
    """
    abs_mag = float(rng.normal(-20.0, 0.6))
    mag = peak_mag(rng, 16.5, 18.5)
    redshift = redshift_of_modulus(mag - abs_mag)
    rise = float(rng.uniform(1.0, 1.8))
    shift = black_body_mag(float(rng.uniform(18000.0, 28000.0)), redshift)

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = (jd - t_peak) / (1.0 + redshift)
        up = np.exp(-0.5 * (np.minimum(phase, 0.0) / rise) ** 2)
        down = (1.0 + np.maximum(phase, 0.0) / 4.0) ** -1.4
        return np.asarray(ujy(mag + band_array(shift, fid)) * np.where(phase < -4.0 * rise, 0.0, up * down))

    source = _finish(RARE, "SN I", rng, t_peak, 4.0 * rise, abs_mag, flux, redshift, mag)
    source.class5 = None
    return source
