"""A run folder as the catalogue sees it: the plan, and what was committed.

::

    RUN/plan.json                       identity, run_id, shards with their hash ranges
    RUN/commits/shard-00012.json        one record per committed shard; names its data file
    RUN/data/shard-00012.<attempt>.parquet
    RUN/quarantine/shard-00012.json     a shard that was given up
    RUN/manifest.jsonl, metrics.jsonl   times, for the report
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.catalog.summary import horizon_label
from applecider_batch.digest import hash64
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store


@dataclass(frozen=True)
class Shard:
    """A planned shard: objects with ``hash_lo <= hash64 < hash_hi``."""

    shard_id: int
    hash_lo: int
    hash_hi: int


class RunFolder:
    """The committed part of a run.

    Parameters
    ----------
    url : str
        The run folder, local or any fsspec URL.

    Raises
    ------
    UserError
        If the folder holds no plan.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.store = Store(url, storage_options)
        try:
            self.plan: dict[str, Any] = self.store.read_json("plan.json")
        except FileNotFoundError:
            raise UserError(
                f"'{url}' is not a run folder: it has no plan.json.",
                hint="Make one with: applecider-batch classify --archive URL --models SET --run URL",
            ) from None

    @property
    def run_id(self) -> str:
        """Digest of the plan's identity."""
        return str(self.plan["run_id"])

    @cached_property
    def horizons(self) -> list[str]:
        """Labels of the planned horizons, ascending, ``full`` last."""
        given = self.plan["identity"]["horizons"]
        return [horizon_label(days) for days in sorted(given, key=lambda d: float("inf") if d is None else d)]

    @cached_property
    def shards(self) -> list[Shard]:
        """Planned shards in the order of their hash ranges."""
        shards = [
            Shard(int(s["shard_id"]), int(s["hash_lo"]), int(s["hash_hi"])) for s in self.plan["shards"]
        ]
        shards.sort(key=lambda shard: shard.hash_lo)
        for left, right in itertools.pairwise(shards):
            if left.hash_hi > right.hash_lo:
                raise UserError(f"The plan's shards {left.shard_id} and {right.shard_id} overlap.")
        return shards

    @cached_property
    def commits(self) -> dict[int, dict[str, Any]]:
        """Commit records by shard number."""
        records: dict[int, dict[str, Any]] = {}
        for name in self.store.ls("commits"):
            if name.startswith("shard-") and name.endswith(".json"):
                record = self.store.read_json(f"commits/{name}")
                records[int(record["shard_id"])] = record
        unknown = sorted(records.keys() - {shard.shard_id for shard in self.shards})
        if unknown:
            raise UserError(
                f"The run '{self.store.url}' has commits for shards that are not planned: {unknown[:10]}."
            )
        return records

    @cached_property
    def missing(self) -> list[int]:
        """Planned shards without a commit."""
        return sorted(shard.shard_id for shard in self.shards if shard.shard_id not in self.commits)

    @cached_property
    def quarantined(self) -> list[int]:
        """Missing shards that the run gave up on."""
        given_up = set(self.store.ls("quarantine"))
        return [shard_id for shard_id in self.missing if f"shard-{shard_id:05d}.json" in given_up]

    def statistics(self) -> dict[str, Any] | None:
        """How long the run took: sessions, executors, seconds at work, objects per second, seconds by step.

        From ``manifest.jsonl`` and ``metrics.jsonl``; None where the run kept neither.
        """
        sessions, metrics = self._lines("manifest.jsonl"), self._lines("metrics.jsonl")
        if not sessions and not metrics:
            return None
        times: dict[int, list[float]] = {}
        for entry in sessions:
            times.setdefault(entry["session"], []).append(entry["time"])
        seconds = sum(max(moments) - min(moments) for moments in times.values())
        steps: dict[str, float] = {}
        for entry in metrics:
            for step, spent in entry.get("seconds", {}).items():
                steps[step] = steps.get(step, 0.0) + spent
        objects = sum(entry["objects"] for entry in metrics)
        return {
            "sessions": len(times),
            "executors": sorted({entry["executor"] for entry in sessions}),
            "seconds": round(seconds, 3),
            "objects_per_s": round(objects / seconds, 3) if seconds > 0 else 0.0,
            "seconds_by_step": {step: round(spent, 3) for step, spent in sorted(steps.items())},
        }

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """JSON lines of a log; a last line cut off by a kill is left out."""
        if not self.store.exists(name):
            return []
        entries = []
        for line in self.store.read_bytes(name).decode(errors="replace").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue
        return entries

    def _data_file(self, shard: Shard) -> str:
        name = str(self.commits[shard.shard_id]["data_file"])
        return name if "/" in name else f"data/{name}"

    def read_columns(self, shard: Shard, columns: Sequence[str]) -> pa.Table:
        """Some columns of a committed shard; where they cannot be read, those of :meth:`read_shard`."""
        try:
            with self.store.open_input(self._data_file(shard)) as source:
                return pq.read_table(source, columns=list(columns)).select(list(columns))
        except (OSError, KeyError, pa.ArrowInvalid):
            return self.read_shard(shard).select(list(columns))

    def read_shard(self, shard: Shard) -> pa.Table:
        """Rows of a committed shard, checked against its commit record.

        Returns
        -------
        pyarrow.Table
            Schema ``catalogue``, strictly ascending in (hash64, objectId, episode, horizon_days, null last).

        Raises
        ------
        UserError
            If the file is absent, differs from its record, or holds rows that are not this shard's.
        """
        record = self.commits[shard.shard_id]
        table = self._committed(shard, {**record, "file": self._data_file(shard)}, "catalogue")
        _check_rows(table, shard, self.run_id, self._where(shard))
        return table

    def read_side(self, shard: Shard, name: str) -> pa.Table:
        """Rows of a committed shard's side table, checked against its commit record."""
        return self._committed(shard, self.commits[shard.shard_id]["side"][name], name)

    def _where(self, shard: Shard) -> str:
        return f"shard {shard.shard_id} of '{self.store.url}'"

    def _committed(self, shard: Shard, entry: Mapping[str, Any], schema: str) -> pa.Table:
        """A committed file's rows in their schema; ``entry`` holds ``file``, ``sha256`` and ``rows``."""
        name, where = entry["file"], self._where(shard)
        try:
            data = self.store.read_bytes(name)
        except FileNotFoundError:
            raise UserError(f"The committed file '{name}' of {where} is missing.") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != entry["sha256"]:
            raise UserError(
                f"The file '{name}' of {where} is damaged: its sha256 is {digest}, "
                f"the commit says {entry['sha256']}.",
                hint="Restore the file, or remove the shard's commit record and run classify again.",
            )
        table = load_table(schema).conform(pq.read_table(pa.BufferReader(data)))
        if table.num_rows != entry["rows"]:
            raise UserError(
                f"The file '{name}' of {where} holds {table.num_rows} rows, its commit says {entry['rows']}."
            )
        return table


def _check_rows(table: pa.Table, shard: Shard, run_id: str, where: str) -> None:
    if not table.num_rows:
        return
    hashes = table.column("hash64").to_numpy()
    if not np.array_equal(hashes, hash64(table.column("objectId"))):
        raise UserError(f"A row of {where} has a hash64 that is not its objectId's.")
    inside = (hashes >= np.uint64(shard.hash_lo)) & (hashes <= np.uint64(shard.hash_hi - 1))
    if not inside.all():
        stray = table.column("objectId")[int(np.flatnonzero(~inside)[0])].as_py()
        raise UserError(f"The object {stray} is in {where}, but its hash is outside the shard's range.")
    for name, value in (("run_id", run_id), ("shard_id", shard.shard_id)):
        if pc.any(pc.not_equal(table.column(name), value)).as_py():
            raise UserError(f"A row of {where} has another {name} than {value}.")
    problem = first_disorder(table)
    if problem is not None:
        raise UserError(f"The rows of {where} are not unique and sorted: {problem}.")


def first_disorder(table: pa.Table) -> str | None:
    """First pair of neighbouring rows that does not ascend strictly in the row key, in words; None if all do.

    The key is (hash64, objectId, episode, horizon_days with null last): a table in which it ascends strictly
    holds every key once.
    """
    hashes = table.column("hash64").to_numpy()
    episode = table.column("episode").to_numpy()
    horizon = pc.fill_null(table.column("horizon_days"), float("inf")).to_numpy()
    names = table.column("objectId").combine_chunks()
    same_name = pc.equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    name_up = pc.greater(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    same_hash, hash_up = hashes[1:] == hashes[:-1], hashes[1:] > hashes[:-1]
    same_episode, episode_up = episode[1:] == episode[:-1], episode[1:] > episode[:-1]
    within = episode_up | (same_episode & (horizon[1:] > horizon[:-1]))
    good = hash_up | (same_hash & (name_up | (same_name & within)))
    if good.all():
        return None
    at = int(np.flatnonzero(~good)[0])
    left, right = (
        f"({names[i].as_py()}, {episode[i]}, {'full' if np.isinf(horizon[i]) else horizon[i]})"
        for i in (at, at + 1)
    )
    return f"{left} stands twice" if left == right else f"{left} stands before {right}"
