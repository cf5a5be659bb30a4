"""What a prepared shard consists of, how parts are joined, and how a bad object is kept from spoiling the
rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.digest import hash64
from applecider_batch.errors import AppleciderError
from applecider_batch.features.light_curves import N_FEATURES
from applecider_batch.features.profiles import Profile
from applecider_batch.logs import get_logger
from applecider_batch.schema import load_table

#: Columns of the ``catalogue`` schema that are known before inference, in its order.
ROW_COLUMNS: tuple[str, ...] = (
    "hash64", "objectId", "ra", "dec", "galactic_b", "episode", "t0", "jd_first", "jd_last", "as_of_jd",
    "horizon_days", "horizon_complete", "gate", "prob_in_scope", "gate_reason", "programid_mask",
    "n_visits_before_t0", "n_det_before_t0", "candid_first", "candid_last", "n_det", "n_det_g", "n_det_r",
    "n_det_i", "n_neg", "n_nondet", "n_fp", "mag_peak_g", "mag_peak_r", "rb_max", "drb_max", "drb_median",
    "drb_available", "frac_ss", "ssdistnr_min", "distpsnr1", "sgscore1", "schemavsn_min", "schemavsn_max",
    "quality_flags", "cut_ipac", "cut_ztfrest", "cut_boom", "cut_fink", "cuts_own", "cuts_own_na",
    "simulated", "candid_image", "image_age_days", "spec_id", "spec_mjd", "redshift_used",
    "redshift_source", "error_code", "object_error",
)  # fmt: skip
FAILED = "features_failed"
_log = get_logger(__name__)


class Shard(Protocol):
    """What this room needs of ``archive.read.ShardData``."""

    @property
    def objects(self) -> Sequence[str]: ...
    @property
    def alerts(self) -> pa.Table: ...
    @property
    def photometry(self) -> pa.Table: ...
    @property
    def spectra(self) -> pa.Table: ...


@dataclass(frozen=True)
class CurveSummary:
    """Upper limits and summary numbers of sequences, see `features.curve_summary`.

    Attributes
    ----------
    limits : ndarray, float32, shape (M, 3)
    offsets : ndarray, int64, shape (n + 1,)
        Limits of sequence k are ``limits[offsets[k]:offsets[k + 1]]``.
    values : ndarray, float32, shape (n, F)
        NaN where a number is not defined.
    """

    limits: np.ndarray
    offsets: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class PhotometryInputs:
    """Distinct light-curve sequences.

    Attributes
    ----------
    values : ndarray, float32, shape (N, 7)
        Not standardised: log1p(dt), log1p(dt_prev), log10 flux, its error, one-hot g, r, i.
    offsets : ndarray, int64, shape (n + 1,)
    row_index : ndarray, int32, shape (n_rows,)
    curve_summary : CurveSummary or None
        Where it was asked for.
    """

    values: np.ndarray
    offsets: np.ndarray
    row_index: np.ndarray
    curve_summary: CurveSummary | None = None


@dataclass(frozen=True)
class ImageInputs:
    """Distinct packets whose stamps and metadata are read together.

    Attributes
    ----------
    candid : ndarray, int64, shape (n,)
    hash64 : ndarray, uint64, shape (n,)
        Sharding hash of the object, for the stamp reader.
    metadata : ndarray, float32, shape (n, F)
        In the profile's order; missing is the profile's ``missing_value``.
    row_index : ndarray, int32, shape (n_rows,)
    """

    candid: np.ndarray
    hash64: np.ndarray
    metadata: np.ndarray
    row_index: np.ndarray


@dataclass(frozen=True)
class SpectraInputs:
    """Distinct spectra on the profile's grid; one without a redshift is there at several trial redshifts.

    Attributes
    ----------
    flux : ndarray, float32, shape (m, n_points)
        A row per spectrum and trial redshift.
    redshift : ndarray, float32, shape (m,)
        At which the row was made: the one given, or a trial.
    offsets : ndarray, int64, shape (n + 1,)
        Spectrum i has the rows offsets[i] to offsets[i + 1] - 1, at least one.
    spec_id : list of str, length n
    row_index : ndarray, int32, shape (n_rows,)
    """

    flux: np.ndarray
    redshift: np.ndarray
    offsets: np.ndarray
    spec_id: list[str]
    row_index: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """Rows and inputs of a shard.

    Attributes
    ----------
    rows : pyarrow.Table
        One row per (objectId, episode, horizon), sorted by (hash64, objectId, episode, horizon ascending,
        full last); the columns of the ``catalogue`` schema that are known before inference.
    photometry, image, spectra
        Inputs of the networks.
    light_curves : pyarrow.Table
        Merged events behind the last wall of each episode: hash64, objectId, episode, jd, fid, flux_ujy,
        flux_err_ujy, n_points, in_sequence.
    """

    rows: pa.Table
    photometry: PhotometryInputs
    image: ImageInputs
    spectra: SpectraInputs
    light_curves: pa.Table


LIGHT_CURVE_SCHEMA = pa.schema(
    [
        ("hash64", pa.uint64()),
        ("objectId", pa.string()),
        ("episode", pa.int16()),
        ("jd", pa.float64()),
        ("fid", pa.int8()),
        ("flux_ujy", pa.float64()),
        ("flux_err_ujy", pa.float64()),
        ("n_points", pa.int32()),
        ("in_sequence", pa.bool_()),
    ]
)


def rows_schema() -> pa.Schema:
    """Arrow schema of :attr:`Prepared.rows`."""
    table = load_table("catalogue")
    return pa.schema([pa.field(name, table.column(name).arrow_type) for name in ROW_COLUMNS])


def prepare_isolating(
    shard: Shard, prepare: Callable[[Shard], Prepared], snapshot_jd_max: float, profile: Profile
) -> Prepared:
    """Prepare a shard; where that raises, halve it until the objects that raise stand alone.

    A part gives the same rows and inputs as the whole, so what is joined again is what the shard would have
    given without its bad objects. Those have one row with ``error_code`` and no inputs.

    Raises
    ------
    AppleciderError, MemoryError
        As ``prepare`` raised them: they are no single object's fault.
    """
    try:
        return prepare(shard)
    except (AppleciderError, MemoryError):
        raise
    except Exception as error:
        names = list(shard.objects)
        if len(names) <= 1:
            _log.warning("Object %s failed: %s: %s", *names, type(error).__name__, error)
            said = (FAILED, f"{type(error).__name__}: {error}")
            return failed_objects(dict.fromkeys(names, said), snapshot_jd_max, profile)
    ordered = _in_order(names)
    half = len(ordered) // 2
    parts = (subset(shard, ordered[:half]), subset(shard, ordered[half:]))
    return join_prepared([prepare_isolating(part, prepare, snapshot_jd_max, profile) for part in parts])


@dataclass(frozen=True)
class _Part:
    objects: Sequence[str]
    alerts: pa.Table
    photometry: pa.Table
    spectra: pa.Table


def _in_order(names: list[str]) -> list[str]:
    return [name for _, name in sorted(zip(hash64(names).tolist(), names, strict=True))]


def subset(shard: Shard, names: list[str]) -> Shard:
    """Some objects of a shard."""
    wanted = pa.array(names, pa.string())

    def of(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table.column("objectId").cast(pa.string()), value_set=wanted))

    return _Part(names, of(shard.alerts), of(shard.photometry), of(shard.spectra))


def failed_objects(
    reasons: Mapping[str, tuple[str, str]], snapshot_jd_max: float, profile: Profile
) -> Prepared:
    """One row and no input for each objectId, with its (error_code, sentence)."""
    names, n = list(reasons), len(reasons)
    known = {
        "hash64": pa.array(hash64(names), pa.uint64()),
        "objectId": pa.array(names, pa.string()),
        "episode": pa.array([0] * n, pa.int16()),
        "as_of_jd": pa.array([snapshot_jd_max] * n, pa.float64()),
        "error_code": pa.array([code for code, _ in reasons.values()], pa.string()),
        "object_error": pa.array([said for _, said in reasons.values()], pa.string()),
    }
    schema = rows_schema()
    rows = pa.table([known.get(field.name, pa.nulls(n, field.type)) for field in schema], schema=schema)
    none = np.full(n, -1, np.int32)
    return Prepared(
        rows,
        PhotometryInputs(np.empty((0, N_FEATURES), np.float32), np.zeros(1, np.int64), none),
        ImageInputs(
            np.empty(0, np.int64),
            np.empty(0, np.uint64),
            np.empty((0, len(profile.metadata_names)), np.float32),
            none,
        ),
        SpectraInputs(
            np.empty((0, profile.spectrum_grid[2]), np.float32),
            np.empty(0, np.float32),
            np.zeros(1, np.int64),
            [],
            none,
        ),
        LIGHT_CURVE_SCHEMA.empty_table(),
    )


def join_prepared(parts: Sequence[Prepared]) -> Prepared:
    """Prepared parts of a shard, in object order, as one."""
    sequences = [len(p.photometry.offsets) - 1 for p in parts]
    return Prepared(
        pa.concat_tables([p.rows for p in parts]),
        PhotometryInputs(
            np.concatenate([p.photometry.values for p in parts]),
            _join_offsets([p.photometry.offsets for p in parts]),
            _join_index([p.photometry.row_index for p in parts], sequences),
            _join_summaries([p.photometry.curve_summary for p in parts]),
        ),
        ImageInputs(
            np.concatenate([p.image.candid for p in parts]),
            np.concatenate([p.image.hash64 for p in parts]),
            np.concatenate([p.image.metadata for p in parts]),
            _join_index([p.image.row_index for p in parts], [len(p.image.candid) for p in parts]),
        ),
        SpectraInputs(
            np.concatenate([p.spectra.flux for p in parts]),
            np.concatenate([p.spectra.redshift for p in parts]),
            _join_offsets([p.spectra.offsets for p in parts]),
            [name for p in parts for name in p.spectra.spec_id],
            _join_index([p.spectra.row_index for p in parts], [len(p.spectra.spec_id) for p in parts]),
        ),
        pa.concat_tables([p.light_curves for p in parts]),
    )


def _before(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _join_offsets(offsets: Sequence[np.ndarray]) -> np.ndarray:
    sizes = [int(o[-1]) for o in offsets]
    ends = [o[1:] + shift for o, shift in zip(offsets, _before(sizes), strict=True)]
    return np.concatenate([np.zeros(1, np.int64), *ends])


def _join_summaries(parts: Sequence[CurveSummary | None]) -> CurveSummary | None:
    """Parts without sequences (objects that failed) have none."""
    made = [p for p in parts if p is not None]
    if not made:
        return None
    return CurveSummary(
        np.concatenate([p.limits for p in made]),
        _join_offsets([p.offsets for p in made]),
        np.concatenate([p.values for p in made]),
    )


def _join_index(indices: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    shifted = [np.where(i >= 0, i + shift, -1) for i, shift in zip(indices, _before(sizes), strict=True)]
    return np.concatenate(shifted).astype(np.int32)
