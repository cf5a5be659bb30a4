"""The work on one shard: read, prepare, infer, assemble, write, commit.

A pure function of the plan and the shard: nothing in the rows depends on the executor, the attempt or the
time.
"""

from __future__ import annotations

import copy
import hashlib
import io
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch import __version__
from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.catalog.side import side_table
from applecider_batch.digest import hash64_one, table_digest
from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.plan import Shard
from applecider_batch.engine.region import select_region
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.engine.timing import Clock, TimedPort
from applecider_batch.errors import UserError
from applecider_batch.features.cuts import own_presets
from applecider_batch.features.gate_model import Judges
from applecider_batch.inference.anomaly_file import load_reference
from applecider_batch.inference.calibration import Calibration
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.inference.shard import IN_FLIGHT, Port, ShardOutputs, StampCutouts, infer


@dataclass(frozen=True)
class Ready:
    """A shard whose networks can begin.

    Attributes
    ----------
    prepared : features.inputs.Prepared
    seconds : dict of str -> float
        Spent by step.
    bytes_read : int
    """

    prepared: Any
    seconds: dict[str, float]
    bytes_read: int


class ShardTask:
    """Works on shards of one run in one process.

    Parameters
    ----------
    spec : TaskSpec
    in_flight : int
        Batches of a modality under way at once.

    Raises
    ------
    UserError
        If the archive or the model set is refused, or is not the plan's.
    """

    def __init__(self, spec: TaskSpec, in_flight: int = IN_FLIGHT) -> None:
        self._spec, self._in_flight = spec, in_flight
        self.plan = spec.plan
        self.folder = RunFolder(spec.run)
        self._rooms = spec.rooms
        identity = spec.plan.identity
        self._archive = spec.archive()
        # Each counts its own bytes: a shard's tables may be read while another's stamps are.
        self._tables = copy.copy(self._archive)
        self.model_set = spec.load_models()
        for what, found, planned in (
            ("archive", self._archive.snapshot.logical_digest, identity["snapshot"]),
            ("model set", self.model_set.digest, identity["models"]),
        ):
            if found != planned:
                raise UserError(
                    f"The {what} is not the plan's: digest {found} was found, the plan says {planned}.",
                    hint="Give the run's own inputs on every node, or start a new run.",
                )
        self._profile: str = self.model_set.profile
        self._modalities = [name for name in MODALITIES if name in self.model_set.defaults]
        self._judges = Judges(own_presets(identity.get("cuts", {})), self.model_set.learned_gate())
        self._calibration = Calibration.from_document(self.model_set.calibration)
        self._training_ids = self.model_set.training_ids()
        self._reference = load_reference(self.model_set)

    @property
    def modalities(self) -> list[str]:
        """Modalities for which the model set has a network."""
        return list(self._modalities)

    def warm_up(self) -> None:
        """Do a shard without objects: what is imported or compiled at its first use is there afterwards."""
        nothing = Shard(0, 0, 0, 0, 0)
        prepared = self.make_ready(nothing, Attempt("warm-up", {})).prepared
        self.assemble(nothing, prepared, self.infer(nothing, prepared, {}))

    def make_ready(self, shard: Shard, attempt: Attempt) -> Ready:
        """Read and prepare a shard; another thread than that of :meth:`run` may do it."""
        clock = Clock()
        read_before = self._tables.bytes_read
        set_aside = _of_shard(shard, attempt)
        data = self.read(shard, set_aside)
        clock.lap("read")
        prepared = self.prepare(data, self.plan.horizons, set_aside)
        clock.lap("prepare")
        return Ready(prepared, clock.seconds, self._tables.bytes_read - read_before)

    def run(
        self,
        shard: Shard,
        attempt: Attempt,
        ports: Mapping[str, Port],
        ready: Callable[[], Ready] | None = None,
    ) -> dict[str, Any]:
        """Do the shard and commit it, or only try it.

        Parameters
        ----------
        shard : Shard
        attempt : Attempt
        ports : mapping of modality -> Port
        ready : callable, optional
            What :meth:`make_ready` gave for the same arguments, or its exception.

        Returns
        -------
        dict
            ``record`` (the commit record, another attempt's if that was first; empty for a trial), and what
            ``metrics.jsonl`` keeps: ``seconds`` by step (``infer`` is waiting for networks), seconds
            ``waited`` for and ``busy`` of each network, ``batches``, ``bytes_read``, ``bytes_written``,
            ``peak_memory_bytes`` of the process.
        """
        try:
            return self._run(shard, attempt, ports, ready)
        except ArchiveError:
            # What was made ready ahead may be from before the archive moved.
            if not self._archive_moved() and ready is None:
                raise
            return self._run(shard, attempt, ports)

    def _archive_moved(self) -> bool:
        """Whether the snapshot that was read has been removed meanwhile; then its successor is open."""
        opened = self._spec.archive()
        moved: bool = opened.snapshot.id != self._archive.snapshot.id
        if moved:
            self._archive, self._tables = opened, copy.copy(opened)
        return moved

    def _run(
        self,
        shard: Shard,
        attempt: Attempt,
        ports: Mapping[str, Port],
        ready: Callable[[], Ready] | None = None,
    ) -> dict[str, Any]:
        made = self.make_ready(shard, attempt) if ready is None else ready()
        prepared = made.prepared
        clock = Clock(made.seconds)
        read_before = self._archive.bytes_read
        timed = {name: TimedPort(port, clock) for name, port in ports.items()}
        outputs = self.infer(shard, prepared, timed, clock)
        clock.lap("batches")
        table = self.assemble(shard, prepared, outputs)
        clock.lap("rows")
        if attempt.trial:
            return {"record": {}}
        data_file = f"data/{shard.name}.{attempt.name}.parquet"
        content = parquet_bytes(table)
        self.folder.store.write_atomic(data_file, content)
        side = self._write_side(f"{shard.name}.{attempt.name}", prepared, outputs)
        clock.lap("write")
        record = {
            "run_id": self.plan.run_id,
            "shard_id": shard.shard_id,
            "hash_lo": str(shard.hash_lo),
            "hash_hi": str(shard.hash_hi),
            "data_file": data_file,
            "rows": table.num_rows,
            "objects": pc.count_distinct(table.column("objectId")).as_py(),
            "objects_in_error": _objects_in_error(table),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "content_digest": table_digest(table),
            "degraded": outputs.degraded,
            "side": side,
        }
        try:
            self.folder.commit(shard.name, record)
        except FileExistsError:
            record = self.folder.commit_record(shard.name)
            if record["data_file"] != data_file:
                for name in (data_file, *(entry["file"] for entry in side.values())):
                    self.folder.store.delete(name)
        clock.lap("commit")
        return {
            "record": record,
            "seconds": clock.seconds,
            "waited": {name: round(port.waited, 4) for name, port in timed.items()},
            "busy": {name: round(port.busy, 4) for name, port in timed.items()},
            "batches": outputs.batches,
            "bytes_read": made.bytes_read + self._archive.bytes_read - read_before,
            "bytes_written": len(content) + sum(entry["bytes"] for entry in side.values()),
            # ru_maxrss is in KiB on Linux.
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _write_side(self, name: str, prepared: Any, outputs: ShardOutputs) -> dict[str, Any]:
        """Write the side tables that the plan asks for; what the commit record says of each."""
        written: dict[str, Any] = {}
        for table_name in self.plan.identity.get("side", []):
            table = side_table(table_name, without_absent(prepared, outputs), outputs)
            content = parquet_bytes(table)
            file = f"side/{table_name}/{name}.parquet"
            self.folder.store.write_atomic(file, content)
            written[table_name] = {
                "file": file,
                "rows": table.num_rows,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        return written

    def read(self, shard: Shard, set_aside: Iterable[str]) -> Any:
        """The shard's tables, without the objects set aside."""
        data = self._tables.read_shard(
            shard.hash_lo, shard.hash_hi, without=[hash64_one(name) for name in set_aside]
        )
        return data if self.plan.region is None else select_region(data, self.plan.region)

    def prepare(
        self, data: Any, horizons: Sequence[float | None], set_aside: Mapping[str, tuple[str, str]]
    ) -> Any:
        """Rows and inputs of a shard's tables."""
        jd_max = self._archive.snapshot.jd_max
        return self._rooms.prepare(
            data,
            horizons,
            self._profile,
            0.0 if jd_max is None else jd_max,
            self.model_set.inputs,
            self._judges,
            set_aside,
        )

    def assemble(self, shard: Shard, prepared: Any, outputs: ShardOutputs) -> pa.Table:
        """Catalogue rows of what was prepared and inferred."""
        return self._rooms.assemble(without_absent(prepared, outputs), outputs, self._row_identity(shard))

    def infer(
        self, shard: Shard, prepared: Any, ports: Mapping[str, Port], clock: Clock | None = None
    ) -> ShardOutputs:
        """What the networks say about the inputs of a shard, in the run's own batches."""
        apart = (clock or Clock()).apart
        candids = np.asarray(prepared.image.candid) if "image" in ports else np.empty(0, np.int64)
        cutouts = StampCutouts(
            lambda wanted: apart(
                "stamps",
                lambda: self._archive.read_stamps(shard.hash_lo, shard.hash_hi, wanted.tolist()),
            ),
            lambda stamps: apart("cutouts", lambda: self._rooms.cutouts(stamps, self._profile)),
            self._rooms.cutout_shape(self._profile),
            candids,
        )
        identity = self.plan.identity
        return infer(
            prepared,
            cutouts,
            ports,
            batch_size=dict.fromkeys(MODALITIES, identity["batch_size"]),
            dtype=identity["dtype"],
            in_flight=self._in_flight,
            calibration=self._calibration,
            reference=self._reference,
            picture_size=self.model_set.picture_size,
        )

    def _row_identity(self, shard: Shard) -> dict[str, Any]:
        return {
            "run_id": self.plan.run_id,
            "shard_id": shard.shard_id,
            "model_set_id": self.model_set.model_set_id,
            "calibration_id": self.model_set.calibration_id,
            "gate_id": self.model_set.gate_id,
            "anomaly_ref_id": self.model_set.anomaly_ref_id,
            "pipeline_version": __version__,
            "trained": self.model_set.trained,
            "training_ids": self._training_ids,
            "calibrated": self._calibration.calibrated,
        }


def _of_shard(shard: Shard, attempt: Attempt) -> dict[str, tuple[str, str]]:
    """Objects of the shard, or of a part of it, that are not to be touched."""
    inside = range(shard.hash_lo, shard.hash_hi)
    return {name: said for name, said in attempt.set_aside.items() if hash64_one(name) in inside}


def without_absent(prepared: Any, outputs: ShardOutputs) -> Any:
    """Prepared inputs in which items that proved unusable (damaged stamps) are absent, not failed."""
    for modality, absent in outputs.absent.items():
        if absent.any():
            inputs = getattr(prepared, modality)
            index = np.array(inputs.row_index)
            index[(index >= 0) & absent[index]] = -1
            prepared = replace(prepared, **{modality: replace(inputs, row_index=index)})
    return prepared


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet: one row group, the same bytes for the same rows."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", row_group_size=max(table.num_rows, 1))
    return out.getvalue()


def _objects_in_error(table: pa.Table) -> int:
    bad = table.filter(pc.is_valid(table.column("error_code")))
    return int(pc.count_distinct(bad.column("objectId")).as_py())
