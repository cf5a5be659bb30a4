"""Cataclysmic variables, active galactic nuclei and variable stars: sources that were there before."""

from __future__ import annotations

import numpy as np

from applecider_batch.simulate.cadence import HISTORY_NIGHTS, FloatArray, IntArray
from applecider_batch.simulate.source import FluxFunction, Source, band_array, modulus_of_redshift, ujy


def dwarf_nova(rng: np.random.Generator, start_jd: float, end_jd: float) -> Source:
    """Dwarf nova with recurring outbursts and superoutbursts.

    Shapes and amplitudes after Warner 1995 (doi:10.1017/CBO9780511586491) and Osaki 1996
    (doi:10.1086/133689): rise in a day, plateau with a slow linear decline, fall in one or two days.
    """
    quiet_r = float(np.clip(rng.normal(19.1, 1.5), 15.0, 22.8))
    amplitude = float(np.clip(rng.normal(2.0 + 0.55 * (quiet_r - 19.0), 0.6), 1.0, 7.0))
    cycle = float(rng.lognormal(np.log(17.0), 0.5) * 1.6 ** max(amplitude - 2.5, 0.0))
    first = float(rng.uniform(start_jd - 4.0, max(end_jd - 8.0, start_jd + 1.0)))
    onsets = [first]
    while onsets[-1] < end_jd + 30:
        onsets.append(onsets[-1] + max(cycle * rng.lognormal(0.0, 0.25), 8.0))
    while onsets[0] > start_jd - HISTORY_NIGHTS - 30:
        onsets.insert(0, onsets[0] - max(cycle * rng.lognormal(0.0, 0.25), 8.0))
    supers = rng.random(len(onsets)) < 0.3
    width = np.where(supers, rng.uniform(9.0, 16.0, len(onsets)), rng.uniform(2.0, 5.0, len(onsets)))
    height = amplitude * np.where(supers, 1.1, rng.uniform(0.75, 1.0, len(onsets)))
    index = onsets.index(first)
    height[index], width[index] = max(height[index], min(amplitude, 9.0)), max(width[index], 4.0)
    quiet = {1: quiet_r + 0.15, 2: quiet_r, 3: quiet_r - 0.25}
    blue = float(rng.normal(-0.05, 0.1))
    flicker_seed = int(rng.integers(0, 2**31))

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        brighter = np.zeros(len(jd))
        for onset, days, peak in zip(onsets, width, height, strict=True):
            t = jd - onset
            rise = np.clip(t / 0.9, 0.0, 1.0)
            decline = 0.1 * np.clip(t - 0.9, 0.0, days)
            fall = 1.1 * np.clip(t - 0.9 - days, 0.0, 99.0)
            brighter = np.maximum(brighter, np.clip(peak * rise - decline - fall, 0.0, 99.0) * (t > 0))
        noise = np.random.default_rng([flicker_seed, len(jd)]).normal(0.0, 0.07, len(jd))
        tint = np.where(fid == 1, blue - 0.12, np.where(fid == 3, 0.12, 0.0)) * np.minimum(brighter, 1.0)
        base = band_array(quiet, fid)
        return np.asarray(ujy(base - brighter + tint + noise) - ujy(base))

    return Source(
        kind="CV", class5="CV", gate="in_scope", flux=flux, t_onset=first, t_peak=first + 0.9, star_mag=quiet,
        past_detection_rate=float(np.clip(8.0 / cycle, 0.0, 0.4)),
    )  # fmt: skip


def _damped_walk(rng: np.random.Generator, times: FloatArray, tau: float, sigma: float) -> FloatArray:
    """Damped random walk at sorted `times`, exactly (Kelly et al. 2009, doi:10.1088/0004-637X/698/1/895, eq.
    6)."""
    value = np.empty(len(times))
    kicks = rng.normal(size=len(times))
    value[0] = sigma * kicks[0]
    decay = np.exp(-np.diff(times) / tau)
    for k in range(1, len(times)):
        value[k] = value[k - 1] * decay[k - 1] + sigma * np.sqrt(1.0 - decay[k - 1] ** 2) * kicks[k]
    return value


def agn(rng: np.random.Generator, start_jd: float, end_jd: float) -> Source:
    """Active nucleus as a damped random walk with the amplitudes of MacLeod et al. 2010
    (doi:10.1088/0004-637X/721/2/1014); a fifth of them flare."""
    mean_r = float(rng.uniform(17.8, 21.2))
    redshift = float(np.clip(rng.lognormal(np.log(0.25), 0.9), 0.01, 2.5))
    tau = float(rng.lognormal(np.log(220.0), 0.5)) * (1.0 + redshift)
    sigma = float(np.clip(rng.lognormal(np.log(0.16), 0.4), 0.06, 0.6))
    gr = float(rng.normal(0.2, 0.1))
    mean = {1: mean_r + gr, 2: mean_r, 3: mean_r - 0.15}
    # The reference image is years older: the walk has wandered off since.
    offset = float(rng.normal(0.0, sigma))
    grid = np.arange(start_jd - HISTORY_NIGHTS - 40.0, end_jd + 40.0, 1.0)
    walk = _damped_walk(rng, grid, tau, sigma)
    flare = float(rng.uniform(0.4, 1.1)) if rng.random() < 0.2 else 0.0
    flare_t = float(rng.uniform(start_jd - 30.0, end_jd))
    flare_w = float(rng.uniform(12.0, 50.0))

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        delta = np.interp(jd, grid, walk) + offset
        delta = delta - flare * np.exp(-0.5 * ((jd - flare_t) / flare_w) ** 2)
        scale = np.choose(fid - 1, [1.15, 1.0, 0.85])
        base = band_array(mean, fid)
        return np.asarray(ujy(base + scale * delta) - ujy(base))

    source = Source(
        kind="AGN", class5="AGN", gate="in_scope", flux=flux, redshift=redshift, core_mag=mean,
        past_detection_rate=0.5 * float(rng.random()) ** 4,
    )  # fmt: skip
    host_r = max(mean_r + float(rng.normal(-0.7, 1.0)), modulus_of_redshift(redshift) - 23.0)
    source.host_mag = {1: host_r + 0.8, 2: host_r, 3: host_r - 0.4}
    source.host_radius_arcsec = float(np.clip(0.45 / redshift, 0.4, 6.0))
    source.host_sersic = float(rng.choice([1.0, 2.5, 4.0]))
    source.host_offset_arcsec = float(rng.rayleigh(0.06))
    return source


def _star(
    kind: str, rng: np.random.Generator, mean: dict[int, float], shape: FluxFunction, rate: float
) -> Source:
    reference = float(rng.normal(0.0, 0.02))
    # `ndethist` counts one field and channel only, so what it knows of a star's past differs much.
    past = rate * float(rng.random()) ** 2

    def flux(jd: FloatArray, fid: IntArray) -> FloatArray:
        base = band_array(mean, fid)
        return np.asarray(ujy(base + shape(jd, fid)) - ujy(base + reference))

    return Source(
        kind=kind, class5=None, gate="variable_star", flux=flux, star_mag=mean, past_detection_rate=past
    )


def rr_lyrae(rng: np.random.Generator) -> Source:
    """RR Lyrae ab: saw-tooth of four Fourier terms (phases of Simon & Teays 1982, ApJ 261, 586)."""
    r = float(rng.uniform(14.2, 18.6))
    mean = {1: r + float(rng.normal(0.25, 0.08)), 2: r, 3: r - 0.1}
    period, zero = float(rng.uniform(0.45, 0.72)), float(rng.random())
    amplitude = float(rng.uniform(0.5, 1.1))

    def shape(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = 2.0 * np.pi * (((jd - 2458000.0) / period + zero) % 1.0)
        wave = sum(a * np.sin(k * phase) for k, a in ((1, 0.50), (2, 0.22), (3, 0.13), (4, 0.07)))
        return np.asarray(-amplitude * np.choose(fid - 1, [0.62, 0.44, 0.35]) * wave)

    return _star("RR Lyrae", rng, mean, shape, 0.7)


def eclipsing(rng: np.random.Generator) -> Source:
    """Eclipsing binary: two minima per period; contact systems also vary between them (Kallrath & Milone
    2009, doi:10.1007/978-1-4419-0699-1)."""
    r = float(rng.uniform(14.0, 18.3))
    mean = {1: r + float(rng.normal(0.6, 0.3)), 2: r, 3: r - 0.2}
    contact = rng.random() < 0.6
    period = float(rng.uniform(0.25, 0.45) if contact else rng.lognormal(np.log(1.8), 0.5))
    zero, deep = float(rng.random()), float(rng.uniform(0.35, 1.1))
    second, width = float(rng.uniform(0.3, 0.95)), float(0.11 if contact else rng.uniform(0.03, 0.06))

    def shape(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = ((jd - 2458000.0) / period + zero) % 1.0
        primary = np.exp(-0.5 * ((phase - 0.25) / width) ** 2)
        secondary = second * np.exp(-0.5 * ((phase - 0.75) / width) ** 2)
        out = deep * (primary + secondary)
        if contact:
            out = out + 0.12 * np.cos(4.0 * np.pi * (phase - 0.25))
        return np.asarray(out)

    return _star("eclipsing binary", rng, mean, shape, 0.6 if contact else 0.25)


def long_period(rng: np.random.Generator) -> Source:
    """Mira or semi-regular: red, slow, amplitude up to several mag in g (Samus et al. 2017,
    doi:10.1134/S1063772917010085)."""
    r = float(rng.uniform(12.8, 16.5))
    mean = {1: r + float(rng.uniform(1.2, 2.4)), 2: r, 3: r - float(rng.uniform(0.8, 1.6))}
    period, zero = float(rng.uniform(120.0, 480.0)), float(rng.random())
    amplitude = float(rng.uniform(0.25, 2.2))

    def shape(jd: FloatArray, fid: IntArray) -> FloatArray:
        phase = 2.0 * np.pi * ((jd - 2458000.0) / period + zero)
        wave = np.sin(phase) + 0.2 * np.sin(2.0 * phase + 0.6)
        return np.asarray(0.5 * amplitude * np.choose(fid - 1, [1.2, 1.0, 0.6]) * wave)

    return _star("long-period variable", rng, mean, shape, 0.7)


def irregular(rng: np.random.Generator, start_jd: float, end_jd: float) -> Source:
    """Young or irregular star: a fast damped random walk (Kelly et al. 2009) on a point source."""
    r = float(rng.uniform(14.5, 18.5))
    mean = {1: r + float(rng.uniform(0.8, 1.6)), 2: r, 3: r - 0.5}
    grid = np.arange(start_jd - HISTORY_NIGHTS - 40.0, end_jd + 40.0, 0.5)
    walk = _damped_walk(rng, grid, float(rng.uniform(3.0, 30.0)), float(rng.uniform(0.12, 0.35)))

    def shape(jd: FloatArray, fid: IntArray) -> FloatArray:
        return np.asarray(np.choose(fid - 1, [1.25, 1.0, 0.8]) * np.interp(jd, grid, walk))

    return _star("irregular variable", rng, mean, shape, 0.7)
