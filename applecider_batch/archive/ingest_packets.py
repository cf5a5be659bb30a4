"""Packets on their way into one snapshot: read, spilled, resolved, written, accounted for.

Reading is a pass of tasks over groups of sources, writing one over hash ranges (``spread.py``); between them
one process decides which packets are kept and afterwards commits one snapshot.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow.compute as pc

from applecider_batch.archive.lookup import lookup_candids
from applecider_batch.archive.matching import UnmatchedSpectra, nearest_of
from applecider_batch.archive.resolve import PacketKeys, Resolution, pair_digest, resolve
from applecider_batch.archive.snapshot import Snapshot, SourceRecord, load_snapshot
from applecider_batch.archive.spill import Published, Several, Spill
from applecider_batch.archive.stage import (
    PartBuilder,
    Settings,
    commit,
    conform_with_hash,
    later,
    spill_rows,
    successor,
)
from applecider_batch.digest import MultisetDigest, digest128, json_digest
from applecider_batch.errors import InternalError
from applecider_batch.spread import Update
from applecider_batch.storage import Store

if TYPE_CHECKING:
    from applecider_batch.archive.packets import PacketBatch

PACKET_COUNTS = ("packets_in", "stored", "duplicates", "quarantined")


class PacketSource(Protocol):
    """What ingest asks of a source of packets (``sources.py``)."""

    @property
    def source_id(self) -> str:
        """Digest of the content."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def n_bytes(self) -> int:
        """Size of its files."""

    def batches(self) -> Iterable[PacketBatch]:
        """The packets, in batches of bounded size."""


@dataclass(frozen=True)
class Reading:
    """What every task that reads sources needs.

    Attributes
    ----------
    memory_bytes : int
        Rows buffered before they are sorted and spilled.
    spectra : UnmatchedSpectra
        Those that may belong to the new alerts.
    scratch : Store or None
        Where sorted rows are published for other processes.
    """

    memory_bytes: int
    spectra: UnmatchedSpectra
    scratch: Store | None


@dataclass
class Taken:
    """What was read of some sources: their rows, sorted into blocks, and what the driver needs of them."""

    rows: Spill | Published
    names: dict[str, str] = field(default_factory=dict)
    keys: PacketKeys = field(default_factory=PacketKeys)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    jd_max: float | None = None
    offers: dict[str, tuple[float, str]] = field(default_factory=dict)
    bytes: int = 0


def identify(shared: None, source: PacketSource, update: Update) -> PacketSource:
    """The source, with its content digest known."""
    assert source.source_id
    return source


def read_sources(reading: Reading, sources: Sequence[PacketSource], update: Update) -> Taken:
    """Read sources to their end and sort their rows."""
    with contextlib.ExitStack() as stack:
        spill = stack.enter_context(Spill(reading.memory_bytes))
        taken = Taken(spill)
        for source in sources:
            _read_source(reading, source, taken, spill, update)
        spill.settle()
        taken.bytes = spill.bytes
        if reading.scratch is not None:
            taken.rows = spill.publish(reading.scratch, f"{json_digest(sorted(taken.names))}.rows")
        stack.pop_all()  # whoever gets it closes it
    return taken


def _read_source(reading: Reading, source: PacketSource, taken: Taken, spill: Spill, update: Update) -> None:
    taken.names[source.source_id] = source.name
    counts = taken.counts.setdefault(source.source_id, Counter())
    for batch in source.batches():
        alerts = conform_with_hash("alerts", batch.alerts)
        if batch.packets_in != alerts.num_rows + batch.quarantine.num_rows:
            raise InternalError(
                f"'{source.name}' gave {alerts.num_rows} alerts and {batch.quarantine.num_rows} "
                f"quarantined of {batch.packets_in} packets."
            )
        counts["packets_in"] += batch.packets_in
        counts["quarantined"] += batch.quarantine.num_rows
        taken.keys.add(alerts)
        taken.offers = nearest_of(taken.offers, reading.spectra.offer(alerts))
        if alerts.num_rows:
            taken.jd_max = later(taken.jd_max, float(pc.max(alerts.column("jd")).as_py()))
        tables = {"photometry": batch.photometry, "stamps": batch.stamps, "quarantine": batch.quarantine}
        for name, table in {"alerts": alerts, **tables}.items():
            spill_rows(spill, name, table)
        update(batch.packets_in, source=source.name)


class PacketStage:
    """Takes what was read of sources until it is told to commit."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bytes = 0
        self.spectra = UnmatchedSpectra(settings.store, load_snapshot(settings.store))
        self._taken: list[Taken] = []
        self._keys = PacketKeys()
        self._names: dict[str, str] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._jd_max: float | None = None
        self.rematched = 0

    def __enter__(self) -> PacketStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for taken in self._taken:
            taken.rows.close()

    def take(self, taken: Taken) -> None:
        """Take what was read of some sources; its rows are removed with this stage."""
        self._taken.append(taken)
        self.bytes += taken.bytes
        if self.bytes > self.settings.memory_bytes // 2:  # beside these rows the next ones fill a buffer
            for each in self._taken:
                if isinstance(each.rows, Spill):
                    each.rows.flush()
        self._names.update(taken.names)
        self._counts.update(taken.counts)
        self._keys.extend(taken.keys)
        self._jd_max = later(self._jd_max, taken.jd_max)
        self.spectra.take(taken.offers)

    def commit(self) -> list[SourceRecord]:
        """Write the parts and one snapshot, unless nothing was taken."""
        if not self._names:
            return []
        store = self.settings.store
        candids = self._keys.candids()
        rows = Several(taken.rows for taken in self._taken)
        builder = PartBuilder(self.settings, rows, list(self._names))
        records: list[SourceRecord] = []

        def make(parent: Snapshot) -> Snapshot:
            resolution = resolve(self._keys, *lookup_candids(store, parent, candids))
            spectra = self.spectra.matched(store, parent)
            self.rematched = spectra.num_rows
            builder.build(resolution, digest128(resolution.known.tobytes()), spectra)
            records[:] = self._account(resolution, builder)
            digest = MultisetDigest(parent.packets_digest.total, parent.packets_digest.count)
            digest.merge(pair_digest(resolution.accepted))
            return successor(
                parent, builder.parts, records, packets_digest=digest, jd_max_alerts=self._jd_max
            )

        commit(store, self._names, make)
        return records

    def _account(self, resolution: Resolution, builder: PartBuilder) -> list[SourceRecord]:
        """Counts per source, checked against what was written."""
        written = builder.written
        quarantined = sum(counts["quarantined"] for counts in self._counts.values())
        replaced = int(np.count_nonzero(resolution.winner_is_new & ~resolution.candid_is_new))
        lost = len(resolution.accepted) - written.alerts + resolution.superseded.num_rows
        if (
            written.alerts != resolution.stored + replaced
            or sum(written.stored_by_source[source_id] for source_id in self._counts) != resolution.stored
            or written.duplicates != lost
            or written.quarantine != quarantined
        ):
            raise InternalError(
                f"The parts hold {written.alerts} alerts, {written.duplicates} duplicates and "
                f"{written.quarantine} quarantined packets, expected {resolution.stored + replaced}, "
                f"{lost} and {quarantined}."
            )
        for source_id, counts in self._counts.items():
            counts["stored"] = written.stored_by_source[source_id]
            counts["duplicates"] = counts["packets_in"] - counts["stored"] - counts["quarantined"]
        return [
            SourceRecord(
                source_id, self._names[source_id], "packets", {name: counts[name] for name in PACKET_COUNTS}
            )
            for source_id, counts in self._counts.items()
        ]
