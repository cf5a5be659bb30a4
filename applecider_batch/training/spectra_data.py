"""Labelled spectra of an archive on a profile's grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.profiles import Profile
from applecider_batch.features.segments import float_column, text_column
from applecider_batch.features.spectra import preprocess_spectrum, redshifts
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.population import Population
from applecider_batch.training.splits import PARTS, SplitRule

FWHM_TO_SIGMA = 1 / (2 * np.sqrt(2 * np.log(2)))
SEDM_RESOLUTION = 100.0


@dataclass(frozen=True)
class SpectraSet:
    """Labelled spectra.

    Attributes
    ----------
    classes : tuple of str
    spec_id, object_id, group, instrument : ndarray of str, shape (n,)
    label : ndarray of int64, shape (n,)
    redshift : ndarray of float64, shape (n,)
        NaN where none is given.
    jd, ra, dec : ndarray of float64, shape (n,)
        NaN where unknown.
    flux : ndarray of float32, shape (n, n_points)
        On the profile's grid, at the redshift given (0 where none is).
    flux_unknown : ndarray of float32, shape (n, n_points)
        The same spectra with the redshift taken for unknown (0 assumed); all zero where nothing is covered.
    part : ndarray of int8, shape (n,)
    left_out : dict
        Spectra that were not used, by reason.
    population : Population
        All labelled objects of the archive, of which the split is made.
    """

    classes: tuple[str, ...]
    spec_id: np.ndarray
    object_id: np.ndarray
    group: np.ndarray
    instrument: np.ndarray
    label: np.ndarray
    redshift: np.ndarray
    jd: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray
    flux_unknown: np.ndarray
    part: np.ndarray
    left_out: dict[str, int]
    population: Population

    def __len__(self) -> int:
        return len(self.label)

    def members(self, part: str) -> np.ndarray:
        """Positions of the spectra of a part; int64."""
        return np.flatnonzero(self.part == PARTS.index(part))

    def split(self, rule: SplitRule) -> SpectraSet:
        """The same with parts; all spectra of an object go together."""
        return replace(self, part=self.population.parts(rule, self.group))


def load_spectra(archive: Archive, labels: LabelTable, profile: Profile) -> SpectraSet:
    """The labelled spectra of an archive; those with the continuum removed are left out.

    A spectrum's label is its object's, by objectId or else by the name that its source gave.

    Raises
    ------
    UserError
        If none has a label.
    """
    table = archive.read_spectra(0, 1 << 64)
    at = labels.positions(table.column("objectId").to_pylist())
    by_name = labels.positions(table.column("object_name").to_pylist())
    at = np.where(at >= 0, at, by_name)
    z, given = redshifts(table)
    kinds = text_column(table, "flux_kind").to_pylist()
    kept: list[int] = []
    flux: list[np.ndarray] = []
    unknown: list[np.ndarray] = []
    left_out = {"no label": 0, "continuum removed": 0, "not on the grid": 0}
    wavelengths, fluxes = table.column("wavelength"), table.column("flux")
    for i in range(table.num_rows):
        if at[i] < 0:
            left_out["no label"] += 1
            continue
        if kinds[i] and "flattened" in kinds[i].lower():
            left_out["continuum removed"] += 1
            continue
        wave = np.asarray(wavelengths[i].values, np.float64)
        values = np.asarray(fluxes[i].values, np.float64)
        made = preprocess_spectrum(wave, values, profile, float(z[i]))
        if made is None or not np.isfinite(made).all():
            left_out["not on the grid"] += 1
            continue
        observed = preprocess_spectrum(wave, values, profile, 0.0)
        kept.append(i)
        flux.append(made)
        unknown.append(observed if observed is not None else np.zeros_like(made))
    if not kept:
        raise UserError(
            f"The archive has no labelled spectrum that can be used: {left_out}.",
            hint="The label table's objects must be named as the spectra's objects.",
        )
    rows = np.array(kept)
    instrument = text_column(table, "instrument").to_pylist()
    return SpectraSet(
        classes=labels.classes,
        spec_id=np.array(table.column("spec_id").to_pylist(), object)[rows],
        object_id=np.array(table.column("objectId").to_pylist(), object)[rows],
        group=labels.group[at[rows]],
        instrument=np.array([v or "" for v in instrument], object)[rows],
        label=labels.label[at[rows]],
        redshift=np.where(given, z, np.nan)[rows],
        jd=float_column(table, "jd")[rows],
        ra=float_column(table, "ra")[rows],
        dec=float_column(table, "dec")[rows],
        flux=np.stack(flux),
        flux_unknown=np.stack(unknown),
        part=np.full(len(rows), -1, np.int8),
        left_out=left_out,
        population=Population(archive, labels),
    )


def at_resolution(flux: np.ndarray, profile: Profile, resolution: float = SEDM_RESOLUTION) -> np.ndarray:
    """Spectra as a spectrograph of a lower resolution would show them.

    Parameters
    ----------
    flux : ndarray of float32, shape (n, n_points)
        On the profile's grid, 0 where not covered.
    profile : Profile
    resolution : float
        R = lambda / FWHM of a Gaussian, at the middle of the grid; SEDM has about 100 (Blagorodnova et al.
        2018, doi:10.1088/1538-3873/aaa53f).

    Returns
    -------
    ndarray of float32, shape (n, n_points)
        Smoothed over the covered points, 0 elsewhere, with zero mean and unit spread again.
    """
    covered = flux != 0
    sigma = FWHM_TO_SIGMA / resolution / log_step(profile)
    return standardised(blurred(flux, covered, np.full(len(flux), sigma)), covered)


def log_step(profile: Profile) -> float:
    """Distance in ln(wavelength) between points of the profile's grid, at its middle."""
    low, high, n = profile.spectrum_grid
    return (high - low) / (n - 1) / ((low + high) / 2)


def blurred(flux: np.ndarray, covered: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Spectra smoothed by Gaussians over the covered points, 0 elsewhere.

    Parameters
    ----------
    flux : ndarray of float, shape (b, n)
        0 where not covered.
    covered : ndarray of bool, shape (b, n)
    sigma : ndarray of float, shape (b,)
        Standard deviations in points.

    Returns
    -------
    ndarray of float32, shape (b, n)
    """
    n = flux.shape[1]
    # Twice the length, so that the ends do not meet.
    transfer = np.exp(-2 * (np.pi * np.fft.rfftfreq(2 * n) * np.asarray(sigma)[:, None]) ** 2)

    def smooth(values: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.fft.rfft(values, 2 * n, axis=1) * transfer, axis=1)[:, :n]

    weight = np.maximum(smooth(covered.astype(np.float64)), 1e-6)
    return np.where(covered, smooth(flux) / weight, 0.0).astype(np.float32)


def standardised(flux: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Zero mean and unit spread over the covered points, 0 elsewhere; float32 (b, n)."""
    count = np.maximum(covered.sum(1, keepdims=True), 1)
    mean = np.where(covered, flux, 0.0).sum(1, keepdims=True) / count
    centred = np.where(covered, flux - mean, 0.0)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    return (centred / np.maximum(spread, 1e-6)).astype(np.float32)
