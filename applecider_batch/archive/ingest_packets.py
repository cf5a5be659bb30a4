"""Packets on their way into one snapshot: read, spilled, resolved, written, accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow.compute as pc

from applecider_batch.archive.lookup import lookup_candids
from applecider_batch.archive.matching import UnmatchedSpectra
from applecider_batch.archive.resolve import PacketKeys, Resolution, pair_digest, resolve
from applecider_batch.archive.snapshot import Snapshot, SourceRecord, load_snapshot
from applecider_batch.archive.spill import Spill
from applecider_batch.archive.stage import (
    PartBuilder,
    Settings,
    commit,
    conform_with_hash,
    spill_rows,
    successor,
)
from applecider_batch.digest import MultisetDigest, digest128
from applecider_batch.errors import InternalError

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

    def batches(self) -> Iterable[PacketBatch]:
        """The packets, in batches of bounded size."""


class PacketStage:
    """Takes whole sources until it is told to commit."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.spill = Spill(settings.memory_bytes)
        self._keys = PacketKeys()
        self._names: dict[str, str] = {}
        self._counts: dict[str, Counter[str]] = {}
        self._jd_max: float | None = None
        self._spectra = UnmatchedSpectra(settings.store, load_snapshot(settings.store))
        self.rematched = 0

    def __enter__(self) -> PacketStage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spill.close()

    def take(self, source: PacketSource) -> None:
        """Read a source to its end."""
        self._names[source.source_id] = source.name
        counts = self._counts.setdefault(source.source_id, Counter())
        for batch in source.batches():
            alerts = conform_with_hash("alerts", batch.alerts)
            if batch.packets_in != alerts.num_rows + batch.quarantine.num_rows:
                raise InternalError(
                    f"'{source.name}' gave {alerts.num_rows} alerts and {batch.quarantine.num_rows} "
                    f"quarantined of {batch.packets_in} packets."
                )
            counts["packets_in"] += batch.packets_in
            counts["quarantined"] += batch.quarantine.num_rows
            self._keys.add(alerts)
            self._spectra.offer(alerts)
            if alerts.num_rows:
                latest = float(pc.max(alerts.column("jd")).as_py())
                self._jd_max = latest if self._jd_max is None else max(latest, self._jd_max)
            tables = {"photometry": batch.photometry, "stamps": batch.stamps, "quarantine": batch.quarantine}
            for name, table in {"alerts": alerts, **tables}.items():
                spill_rows(self.spill, name, table)
            if self.settings.progress is not None:
                self.settings.progress.update(batch.packets_in, source=source.name)

    def commit(self) -> list[SourceRecord]:
        """Write the parts and one snapshot, unless nothing was taken."""
        if not self._names:
            return []
        store = self.settings.store
        candids = self._keys.candids()
        builder = PartBuilder(self.settings, self.spill, list(self._names))
        records: list[SourceRecord] = []

        def make(parent: Snapshot) -> Snapshot:
            resolution = resolve(self._keys, *lookup_candids(store, parent, candids))
            spectra = self._spectra.matched(store, parent)
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
            or sum(written.stored_by_source.values()) != resolution.stored
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
