"""``catalog audit RUN``: is the as-of wall real?  Two checks on a sample of committed shards, both of bytes.

*Inputs*: for every horizon in days and every episode, everything after the row's wall is taken out of the
shard's tables (packets with candidate.jd > as_of_jd, points with known_jd > as_of_jd, later or undated
spectra), what is left is prepared again, and each row and its network inputs are compared with those prepared
from the whole tables.  A difference is a leak.

*Rows*: the whole shard is inferred again in the run's own batches and compared with the committed file, every
column and byte.  As inference sees the inputs alone, both together say that the committed rows are those that
the archive cut at their wall gives.

What the wall rests on, ``known_jd`` of each point, is the archive's word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.digest import hash64_one
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.engine.task_spec import Rooms, TaskSpec, real_rooms
from applecider_batch.errors import UsageError, UserError
from applecider_batch.features.prepared import CurveSummary, PhotometryInputs, SpectraInputs
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, Port
from applecider_batch.storage import Store

_EXAMPLES = 20
#: The arrays of which an item is a stretch between two offsets.
_RAGGED: dict[type, tuple[str, ...]] = {
    PhotometryInputs: ("values",),
    CurveSummary: ("limits",),
    SpectraInputs: ("flux", "redshift"),
}


@dataclass(frozen=True)
class _Cut:
    """Tables of some objects, each cut at its wall; what ``features.prepared.Shard`` asks for."""

    objects: list[str]
    alerts: pa.Table
    photometry: pa.Table
    spectra: pa.Table


def audit_run(
    run_url: str,
    *,
    shards: int = 2,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    rooms: Rooms | None = None,
) -> dict[str, Any]:
    """Audit a sample of a run's committed shards.

    Parameters
    ----------
    run_url : str
        The run's folder; its archive and model set must be there.
    shards : int
        Shards to look at, drawn by ``seed``.
    rooms : Rooms, optional
        The lower floors; the package's own by default.

    Returns
    -------
    dict
        Keys as ``catalog audit`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        No run, nothing committed, or archive or model set are not the run's.
    """
    if shards < 1:
        raise UsageError(f"--shards must be at least 1, and is {shards}.")
    folder = RunFolder(Store(run_url, storage_options))
    plan = folder.require_plan()
    committed = folder.committed()
    done = [shard for shard in plan.shards if shard.name in committed]
    if not done:
        raise UserError(f"The run '{run_url}' has no committed shard.", hint="Run classify first.")
    picked = np.random.default_rng(seed).permutation(len(done))[:shards]
    sample = [done[number] for number in sorted(picked.tolist())]
    task = ShardTask(
        TaskSpec(plan, folder.store, dict(storage_options or {}), rooms if rooms else real_rooms())
    )
    ports: dict[str, Port] = {
        name: LocalPort(
            Predictor(
                task.model_set.defaults[name], device=plan.identity["device_type"],
                dtype=plan.identity["dtype"], threads=plan.identity["threads"],
            )
        )
        for name in task.modalities
    }  # fmt: skip
    found = _Found()
    for shard in sample:
        _audit_shard(task, folder, shard, ports, found)
    return {
        "run": run_url,
        "run_id": plan.run_id,
        "ok": not (found.leaks or found.differences),
        "shards": len(done),
        "shards_audited": [shard.shard_id for shard in sample],
        "degraded_shards": found.degraded,
        "objects": found.objects,
        "rows_at_a_wall": found.walls,
        "rows_compared": found.rows,
        "leaks": found.leaks,
        "differences": found.differences,
        "examples": found.examples,
    }


class _Found:
    """Counts, and the first sentences about what differs."""

    def __init__(self) -> None:
        self.objects = self.walls = self.rows = self.leaks = self.differences = 0
        self.degraded: list[int] = []
        self.examples: list[str] = []

    def say(self, sentence: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(sentence)


def _audit_shard(
    task: ShardTask, folder: RunFolder, shard: Shard, ports: Mapping[str, Port], found: _Found
) -> None:
    aside = {
        name: said
        for objects in folder.objects_set_aside().values()
        for name, said in objects.items()
        if shard.hash_lo <= hash64_one(name) < shard.hash_hi
    }
    data = task.read(shard, aside)
    whole = task.prepare(data, task.plan.horizons, aside)
    found.objects += pc.count_distinct(whole.rows.column("objectId")).as_py()
    for days, episode in _walls(whole.rows):
        _check_wall(task, data, whole, days, episode, found)
    record = folder.commit_record(shard.name)
    committed = pq.read_table(pa.BufferReader(folder.store.read_bytes(record["data_file"])))
    outputs = task.infer(shard, whole, ports)
    if record["degraded"] or outputs.degraded:  # halved batches: equal to 1e-3 only
        found.degraded.append(shard.shard_id)
        return
    again = task.assemble(shard, whole, outputs)
    found.rows += committed.num_rows
    for row, columns in _differences(committed, again):
        found.differences += 1
        found.say(f"{row}: the committed row is not what is computed now, in {', '.join(columns)}.")


def _walls(rows: pa.Table) -> list[tuple[float, int]]:
    """(horizon in days, episode) of all rows that have a wall before the end."""
    with_wall = rows.filter(pc.and_(pc.is_valid(rows.column("horizon_days")), pc.is_valid(rows.column("t0"))))
    pairs = with_wall.group_by(["horizon_days", "episode"]).aggregate([]).to_pylist()
    return sorted((pair["horizon_days"], pair["episode"]) for pair in pairs)


def _check_wall(task: ShardTask, data: Any, whole: Any, days: float, episode: int, found: _Found) -> None:
    mine = _at(whole.rows, days, episode)
    walls = dict(zip(mine.column("objectId").to_pylist(), mine.column("as_of_jd").to_pylist(), strict=True))
    again = task.prepare(_cut(data, walls), [days], {})
    theirs = _at(again.rows, days, episode)
    found.walls += mine.num_rows
    leaks = {row: list(columns) for row, columns in _differences(mine, theirs)}
    inputs, after = (_inputs(prepared, days, episode) for prepared in (whole, again))
    for name, modalities in inputs.items():
        differ = [m for m, content in modalities.items() if content != after.get(name, {}).get(m)]
        if differ:
            key = _words(name, episode, days)
            leaks[key] = [*leaks.get(key, []), *(f"the {m} input" for m in differ)]
    found.leaks += len(leaks)
    for row, columns in leaks.items():
        found.say(f"{row}: what came after the wall changes {', '.join(columns)}.")


def _at(rows: pa.Table, days: float, episode: int) -> pa.Table:
    chosen = pc.and_(pc.equal(rows.column("horizon_days"), days), pc.equal(rows.column("episode"), episode))
    return rows.filter(pc.fill_null(chosen, False))


def _cut(data: Any, walls: Mapping[str, float]) -> _Cut:
    """The objects with a wall, and of their tables what was there by then."""
    names = pa.array(list(walls), pa.string())
    ends = pa.array(list(walls.values()), pa.float64())

    def before(table: pa.Table, known: pa.ChunkedArray) -> pa.Table:
        at = pc.index_in(table.column("objectId").cast(pa.string()), value_set=names)
        return table.filter(pc.fill_null(pc.less_equal(known, ends.take(at)), False))

    return _Cut(
        [name for name in data.objects if name in walls],
        before(data.alerts, data.alerts.column("jd")),
        before(data.photometry, data.photometry.column("known_jd")),
        before(data.spectra, data.spectra.column("jd")),
    )


def _inputs(prepared: Any, days: float, episode: int) -> dict[str, dict[str, bytes | None]]:
    """objectId -> modality -> the bytes of its network input at one wall; None where it has none."""
    rows = prepared.rows
    chosen = pc.fill_null(
        pc.and_(pc.equal(rows.column("horizon_days"), days), pc.equal(rows.column("episode"), episode)), False
    )
    names = rows.column("objectId").to_pylist()
    inputs = {modality: getattr(prepared, modality) for modality in MODALITIES}
    return {
        names[row]: {m: _bytes_of(given, int(given.row_index[row])) for m, given in inputs.items()}
        for row in np.flatnonzero(chosen.to_numpy()).tolist()
    }


def _bytes_of(inputs: Any, item: int) -> bytes | None:
    """All that a network is given for one item: every array of the inputs, at the item."""
    if item < 0:
        return None
    content = b""
    for name in sorted(field.name for field in fields(inputs)):
        values = getattr(inputs, name)
        if name in ("row_index", "offsets") or values is None:
            continue
        if is_dataclass(values):
            content += _bytes_of(values, item) or b""
        elif name in _RAGGED.get(type(inputs), ()):
            content += values[inputs.offsets[item] : inputs.offsets[item + 1]].tobytes()
        else:
            content += np.asarray(values[item]).tobytes()
    return content


def _words(name: str, episode: int, days: float | None) -> str:
    return f"{name}, episode {episode}, {'full' if days is None else f'{days:g} d'}"


def _differences(one: pa.Table, other: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """Rows that differ between two tables, in words, with the columns; NaN equals NaN."""
    if one.num_rows != other.num_rows or not one.column("objectId").equals(other.column("objectId")):
        yield f"{one.num_rows} rows against {other.num_rows}", ["the rows there are"]
        return
    by_row: dict[int, list[str]] = {}
    for name in one.column_names:
        a, b = one.column(name), other.column(name)
        if a.equals(b):
            continue
        for row, (x, y) in enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True)):
            if x != y and not (x is not None and y is not None and x != x and y != y):
                by_row.setdefault(row, []).append(name)
    for row, columns in sorted(by_row.items()):
        key = one.slice(row, 1).select(["objectId", "episode", "horizon_days"]).to_pylist()[0]
        yield _words(key["objectId"], key["episode"], key["horizon_days"]), columns
