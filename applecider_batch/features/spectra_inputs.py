"""The spectrum of each row and what the catalogue says of it: chosen behind the wall, prepared once each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.features.asof import RowSet
from applecider_batch.features.episodes import Episodes
from applecider_batch.features.prepared import SpectraInputs
from applecider_batch.features.profiles import Profile
from applecider_batch.features.quality import Quality
from applecider_batch.features.segments import text_column
from applecider_batch.features.spectra import (
    NO_REDSHIFT_SOURCE,
    choose_spectra,
    coverage,
    preprocess_at,
    redshifts,
    trial_redshifts,
)
from applecider_batch.features.summary import nullable

JD_TO_MJD = 2400000.5
_PARTIAL_COVERAGE = 0.5


@dataclass(frozen=True)
class MadeSpectra:
    """Inputs of the network, columns of the rows, and their quality bits, int64 (n_rows,)."""

    inputs: SpectraInputs
    columns: dict[str, pa.Array]
    quality: np.ndarray


def spectra_inputs(
    table: pa.Table,
    objects: pa.Array,
    episodes: Episodes,
    rows: RowSet,
    wall_jd: np.ndarray,
    profile: Profile,
) -> MadeSpectra:
    """Choose and prepare the spectra of a shard's rows.

    Parameters
    ----------
    table : pyarrow.Table
        Schema ``spectra``.
    objects : pyarrow.Array
        The shard's objects.
    episodes, rows : Episodes, RowSet
    wall_jd : ndarray of float64, shape (n_rows,)
    profile : Profile
    """
    choice = choose_spectra(table, objects, episodes, rows, wall_jd)
    z, given = redshifts(table)
    spec_ids, sources = text_column(table, "spec_id"), text_column(table, "redshift_source")
    item_of: dict[int, int] = {}
    flux: list[np.ndarray] = []
    at_redshift: list[float] = []
    offsets = [0]
    partial = set()
    # In row order; one pass per distinct spectrum, of which there are few.
    for position in dict.fromkeys(choice.position[choice.position >= 0].tolist()):
        wavelength = np.asarray(table.column("wavelength")[position].values, np.float64)
        values = np.asarray(table.column("flux")[position].values, np.float64)
        trials = trial_redshifts(float(z[position]), bool(given[position]), profile)
        made = preprocess_at(wavelength, values, profile, trials)
        if not made:
            continue
        item_of[position] = len(item_of)
        at_redshift += made
        flux += made.values()
        offsets.append(len(flux))
        if coverage(wavelength, profile, float(trials[0])) < _PARTIAL_COVERAGE:
            partial.add(position)
    used = np.array(list(item_of), np.int64)
    row_index = np.array([item_of.get(p, -1) for p in choice.position.tolist()], np.int32)
    absent = row_index < 0
    where = np.where(absent, 0, choice.position)
    columns = _columns(table, where, absent, z, given, spec_ids, sources, profile.spectrum_rest_frame)
    is_partial = np.isin(choice.position, np.array(sorted(partial), np.int64)) & ~absent
    unknown = ~absent & (~given[where] if len(given) else True)
    quality = np.zeros(len(rows), np.int64)
    for condition, bit in (
        (choice.host, Quality.HOST_SPECTRUM),
        (choice.flattened, Quality.SPECTRUM_FLATTENED),
        (choice.undated & ~absent, Quality.SPECTRUM_UNDATED),
        (unknown & profile.spectrum_rest_frame, Quality.REDSHIFT_MARGINALISED),
        (is_partial, Quality.SPECTRUM_PARTIAL),
    ):
        quality |= np.where(condition, bit, 0)
    matrix = np.stack(flux) if flux else np.empty((0, profile.spectrum_grid[2]), np.float32)
    inputs = SpectraInputs(
        matrix,
        np.array(at_redshift, np.float32),
        np.array(offsets, np.int64),
        spec_ids.take(pa.array(used)).to_pylist(),
        row_index,
    )
    return MadeSpectra(inputs, columns, quality)


def _columns(
    table: pa.Table,
    where: np.ndarray,
    absent: np.ndarray,
    z: np.ndarray,
    given: np.ndarray,
    spec_ids: pa.Array,
    sources: pa.Array,
    rest: bool,
) -> dict[str, pa.Array]:
    n = len(where)
    if not table.num_rows:
        return {
            "spec_id": pa.nulls(n, pa.string()),
            "spec_mjd": pa.nulls(n, pa.float64()),
            "redshift_used": pa.nulls(n, pa.float32()),
            "redshift_source": pa.nulls(n, pa.string()),
        }
    index = pa.array(where, mask=absent)
    jd = pc.subtract(table.column("jd").combine_chunks().cast(pa.float64()), JD_TO_MJD)
    said = [s if g else NO_REDSHIFT_SOURCE for s, g in zip(sources.to_pylist(), given, strict=True)]
    return {
        "spec_id": spec_ids.take(index),
        "spec_mjd": pa.array(jd.to_pylist(), pa.float64()).take(index),
        "redshift_used": nullable(
            np.where(absent | ~given[where] | (not rest), np.nan, z[where]), pa.float32()
        ),
        "redshift_source": pa.array(said, pa.string()).take(index) if rest else pa.nulls(n, pa.string()),
    }
