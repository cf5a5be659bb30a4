"""Science, template and difference stamps: a PSF, a host, neighbours and noise, rendered for many alerts at
once.

The difference stamp holds exactly the flux that `magpsf` states (DN at the exposure's zero point) under a
Moffat profile (Moffat 1969, A&A 3, 455), the science stamp the same plus scene and sky, the template the
scene as it was when the reference was made.  A negative subtraction is stored as reference minus science, as
in ZTF.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from applecider_batch.simulate.cadence import PIXEL_SCALE_ARCSEC, ZERO_POINT, FloatArray, IntArray
from applecider_batch.simulate.environment import Environment
from applecider_batch.simulate.observe import GAIN, Observations
from applecider_batch.simulate.source import Source

SIZE = 63
HALF = SIZE // 2
BETA = 3.0
PIXEL_NOISE = 0.5  # pixel noise of a stamp against the white noise that the stated limit would need
TEMPLATE_SEEING = 1.9
TEMPLATE_NOISE = 0.19  # of a template against its science image, in the median
# Resampling before the sum has smoothed a template's noise: 1 pixel apart it is correlated by 0.3.
RESAMPLED = np.array([0.16, 1.0, 0.16], np.float32) / np.float32(np.sqrt(1.0 + 2.0 * 0.16**2))
APERTURES = (7.0, 9.0)  # radii in pixels of magap and magapbig
MAX_NEIGHBOURS = 5

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stamps:
    """Stamps of n alerts, float32 (n, 63, 63) each, and what is measured on the difference.

    `aperture_dn` (n, 2) sums in the two apertures, `aperture_sigma` (n, 2) their noise, `nneg` (n,) negative
    pixels and `sumrat` (n,) sum over absolute sum in the central 5 x 5.
    """

    science: Float32Array
    template: Float32Array
    difference: Float32Array
    aperture_dn: FloatArray
    aperture_sigma: FloatArray
    nneg: IntArray
    sumrat: FloatArray


def moffat_alpha(fwhm: FloatArray) -> FloatArray:
    """Scale radius in pixels of a Moffat profile with exponent 3."""
    return np.asarray(fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / BETA) - 1.0)))


def effective_pixels(fwhm: FloatArray) -> FloatArray:
    """Noise-equivalent area in pixels of that profile, 1 / sum(P^2)."""
    return np.asarray(np.pi * moffat_alpha(fwhm) ** 2 * (2.0 * BETA - 1.0) / (BETA - 1.0) ** 2)


def _offsets(centre: FloatArray) -> Float32Array:
    """Pixel coordinate minus centre, (n, 63)."""
    grid = np.arange(-HALF, HALF + 1, dtype=np.float32)
    return grid[None, :] - centre.astype(np.float32)[:, None]


def _moffat(dx: Float32Array, dy: Float32Array, alpha: FloatArray) -> tuple[Float32Array, Float32Array]:
    """Unit-flux profile (n, 63, 63) and ``1 / (1 + r^2 / alpha^2)``; the exponent 3 needs no power
    function."""
    a2 = (alpha**2).astype(np.float32)[:, None]
    u = np.float32(1.0) / ((1.0 + dy * dy / a2)[:, :, None] + (dx * dx / a2)[:, None, :])
    norm = ((BETA - 1.0) / (np.pi * alpha**2)).astype(np.float32)[:, None, None]
    profile: Float32Array = np.multiply(norm, u * u * u, dtype=np.float32)
    return profile, u.astype(np.float32, copy=False)


def _sersic(environment: Environment, source: Source, which: int) -> Float32Array:
    """Unit-flux Sersic profile of the host around the stamp's centre (63, 63), softened by the seeing.

    Sersic 1963, with b_n of Ciotti & Bertin 1999 (A&A 352, 447) eq. 18.
    """
    n = source.host_sersic
    b = 2.0 * n - 1.0 / 3.0 + 4.0 / (405.0 * n)
    radius = source.host_radius_arcsec / PIXEL_SCALE_ARCSEC
    grid = np.arange(-HALF, HALF + 1, dtype=np.float64)
    x = grid[None, :] - environment.east[which] / PIXEL_SCALE_ARCSEC
    y = grid[:, None] - environment.north[which] / PIXEL_SCALE_ARCSEC
    c, s = np.cos(environment.host_pa), np.sin(environment.host_pa)
    major, minor = c * x + s * y, (-s * x + c * y) / environment.host_ratio
    r = np.sqrt(major**2 + minor**2 + 0.8**2) / np.hypot(radius, 0.6)
    profile = np.exp(-b * (r ** (1.0 / n) - 1.0))
    analytic = 2.0 * np.pi * environment.host_ratio * np.hypot(radius, 0.6) ** 2
    # Light outside the stamp stays outside: normalise by the larger of the sum and a rough total.
    return np.asarray(profile / max(float(profile.sum()), 0.5 * analytic), dtype=np.float32)


def render(
    source: Source, environment: Environment, seen: Observations, index: IntArray, rng: np.random.Generator
) -> Stamps:
    """Render the stamps of the exposures `index` (n,) of one object."""
    visits = seen.visits
    n = len(index)
    fid = visits.fid[index]
    seeing = visits.seeing[index]
    alpha = moffat_alpha(seeing)
    ref_alpha = moffat_alpha(np.full(n, TEMPLATE_SEEING))
    to_dn = 10.0 ** (0.4 * visits.zero_point[index])
    ref_zero = np.array([ZERO_POINT[int(f)] for f in fid])
    ref_to_dn = 10.0 ** (0.4 * ref_zero)
    # The stamp is centred on the pixel that holds the candidate, so its sub-pixel phase varies.
    phase_x, phase_y = rng.uniform(-0.5, 0.5, n), rng.uniform(-0.5, 0.5, n)
    flux = seen.flux_dn[index]

    scene = np.zeros((n, SIZE, SIZE), dtype=np.float32)
    reference = np.zeros((n, SIZE, SIZE), dtype=np.float32)
    residual = np.zeros((n, SIZE, SIZE), dtype=np.float32)
    for k in _visible(environment):
        mag = environment.mag[k, fid - 1]
        if environment.is_host[k]:
            light = np.array([source.host_mag[int(f)] for f in fid]) if source.host_mag else mag
            profile = _sersic(environment, source, k)
            scene += (10.0 ** (-0.4 * light) * to_dn).astype(np.float32)[:, None, None] * profile
            reference += (10.0 ** (-0.4 * light) * ref_to_dn).astype(np.float32)[:, None, None] * profile
            if source.core_mag is None:
                continue
            mag = np.array([source.core_mag[int(f)] for f in fid])
        dx = _offsets(phase_x + environment.east[k] / PIXEL_SCALE_ARCSEC)
        dy = _offsets(phase_y + environment.north[k] / PIXEL_SCALE_ARCSEC)
        brightness = (10.0 ** (-0.4 * mag) * to_dn).astype(np.float32)[:, None, None]
        psf, u = _moffat(dx, dy, alpha)
        scene += brightness * psf
        psf_ref, _ = _moffat(dx, dy, ref_alpha)
        reference += (10.0 ** (-0.4 * mag) * ref_to_dn).astype(np.float32)[:, None, None] * psf_ref
        if environment.mag[k, 1] < 17.5:
            # A registration error of some hundredths of a pixel leaves a dipole: dF = -shift * dP/dx.
            sx, sy = rng.normal(0.0, 0.02, (2, n)).astype(np.float32)
            slope = (2.0 * BETA / alpha**2).astype(np.float32)[:, None, None] * psf * u
            residual += (
                brightness * slope * (sx[:, None, None] * dx[:, None, :] + sy[:, None, None] * dy[:, :, None])
            )

    sigma_limit = 10.0 ** (0.4 * (visits.zero_point[index] - seen.limit[index])) / 5.0
    pixel_sigma = (PIXEL_NOISE * sigma_limit / np.sqrt(effective_pixels(seeing))).astype(np.float32)[
        :, None, None
    ]
    target = _target(source, flux, phase_x, phase_y, alpha, rng)
    noise = rng.standard_normal((n, SIZE, SIZE), dtype=np.float32)
    photon = np.maximum(scene + target, 0.0) / np.float32(GAIN)
    noise *= np.sqrt(pixel_sigma**2 + photon)
    depth = (TEMPLATE_NOISE * rng.lognormal(0.0, 0.35)) * pixel_sigma
    template_noise = _resampled(rng.standard_normal((n, SIZE + 2, SIZE + 2), dtype=np.float32)) * depth
    sky = (visits.sky[index] * rng.normal(1.0, 0.02, n)).astype(np.float32)[:, None, None]
    ref_sky = (
        np.array([{1: 110.0, 2: 210.0, 3: 340.0}[int(f)] for f in fid]) + rng.normal(0.0, 4.0, n)
    ).astype(np.float32)
    science: Float32Array = scene + target + noise + sky
    template: Float32Array = reference + template_noise + ref_sky[:, None, None]
    sign = np.sign(flux).astype(np.float32)[:, None, None]
    difference = ((target + noise - 0.5 * template_noise + residual) * sign).astype(np.float32, copy=False)
    return _measured(science, template, difference, phase_x, phase_y, pixel_sigma[:, 0, 0], flux)


def _resampled(noise: Float32Array) -> Float32Array:
    """White noise (n, 65, 65) smoothed in both directions, of the same variance (n, 63, 63)."""
    rows = sum(w * noise[:, k : k + SIZE] for k, w in enumerate(RESAMPLED))
    return np.asarray(sum(w * rows[:, :, k : k + SIZE] for k, w in enumerate(RESAMPLED)), np.float32)


def _visible(environment: Environment) -> list[int]:
    """Indices of the sources worth rendering: own star and host always, then the brightest inside the
    stamp."""
    limit = (HALF + 3) * PIXEL_SCALE_ARCSEC
    near = (np.abs(environment.east) < limit) & (np.abs(environment.north) < limit)
    near &= environment.mag[:, 1] < 22.0
    ranked = [int(k) for k in np.argsort(environment.mag[:, 1], kind="stable") if near[k]]
    chosen = ranked[:MAX_NEIGHBOURS]
    for k in [*np.flatnonzero(environment.is_host).tolist(), environment.own_star]:
        if k >= 0 and k not in chosen:
            chosen.append(int(k))
    return chosen


def _target(
    source: Source,
    flux: FloatArray,
    phase_x: FloatArray,
    phase_y: FloatArray,
    alpha: FloatArray,
    rng: np.random.Generator,
) -> Float32Array:
    """Signed light of the transient itself (n, 63, 63); artefacts have shapes of their own."""
    n = len(flux)
    dx, dy = _offsets(phase_x), _offsets(phase_y)
    amount = flux.astype(np.float32)[:, None, None]
    if source.artefact == "cosmic_ray":
        spike, _ = _moffat(dx, dy, np.full(n, 0.55))
        return np.asarray(amount * spike / spike.sum(axis=(1, 2), keepdims=True), dtype=np.float32)
    if source.artefact == "streak":
        angle = rng.uniform(0.0, np.pi, n).astype(np.float32)[:, None, None]
        across = np.sin(angle) * dx[:, None, :] - np.cos(angle) * dy[:, :, None]
        line = np.exp(-0.5 * (across / np.float32(1.2)) ** 2)
        return np.asarray(amount * line / np.float32(36.0), dtype=np.float32)
    if source.artefact == "ghost":
        blob, _ = _moffat(dx, dy, alpha * 4.0)
        return amount * blob
    psf, u = _moffat(dx, dy, alpha)
    if source.artefact == "residual":
        angle = rng.uniform(0.0, 2.0 * np.pi, n).astype(np.float32)[:, None, None]
        along = np.cos(angle) * dx[:, None, :] + np.sin(angle) * dy[:, :, None]
        return np.asarray(amount * (psf + np.float32(3.0) * along * psf * u), dtype=np.float32)
    return amount * psf


def _measured(
    science: Float32Array, template: Float32Array, difference: Float32Array,
    phase_x: FloatArray, phase_y: FloatArray, pixel_sigma: Float32Array, flux: FloatArray,
) -> Stamps:  # fmt: skip
    centre = slice(HALF - 9, HALF + 10)
    dx = _offsets(phase_x)[:, centre]
    dy = _offsets(phase_y)[:, centre]
    r2 = (dy * dy)[:, :, None] + (dx * dx)[:, None, :]
    inner = difference[:, centre, centre]
    sums, sigmas = [], []
    for radius in APERTURES:
        mask = r2 <= radius * radius
        sums.append((inner * mask).sum(axis=(1, 2)))
        sigmas.append(
            np.sqrt(mask.sum(axis=(1, 2)) * pixel_sigma.astype(np.float64) ** 2 + np.abs(flux) / GAIN)
        )
    core = difference[:, HALF - 2 : HALF + 3, HALF - 2 : HALF + 3].astype(np.float64)
    # ZTF takes `sumrat` after a median filter; a 3 x 3 one here.
    window = np.lib.stride_tricks.sliding_window_view(
        difference[:, HALF - 3 : HALF + 4, HALF - 3 : HALF + 4], (3, 3), axis=(1, 2)
    )
    smooth = np.median(window.reshape(len(flux), 5, 5, 9), axis=3).astype(np.float64)
    return Stamps(
        science=science, template=template, difference=difference,
        aperture_dn=np.stack(sums, axis=1).astype(np.float64), aperture_sigma=np.stack(sigmas, axis=1),
        nneg=(core < 0).sum(axis=(1, 2)).astype(np.int64),
        sumrat=smooth.sum(axis=(1, 2)) / np.maximum(np.abs(smooth).sum(axis=(1, 2)), 1e-9),
    )  # fmt: skip


def crop_bounds(xpos: float, ypos: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Rows and columns (y0, y1, x0, x1) of a 63 x 63 stamp that lie on the detector; fewer at its edges."""
    x, y = round(xpos), round(ypos)
    x0, y0 = max(0, HALF - x), max(0, HALF - y)
    x1, y1 = min(SIZE, HALF + width - x), min(SIZE, HALF + height - y)
    return y0, y1, x0, x1
