"""Synthetic packets, straight as Arrow tables, with the defects that the archive's rules are about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.packets import PacketBatch
from applecider_batch.digest import digest128, hash64, json_digest
from applecider_batch.schema import load_table

JD0 = 2_459_000.5


@dataclass
class Packet:
    """One packet: an object, an exposure, its history."""

    object_id: str
    night: int
    number: int = 0
    n_stamps: int = 3
    prv: Sequence[tuple[int, int]] = ()
    forced: Sequence[tuple[int, float]] = ()
    note: str = ""
    source_id: str = "source"
    shape: tuple[int, int] = (63, 63)
    ra: float = 150.0
    dec: float = 2.0
    candid: int | None = None

    @property
    def jd(self) -> float:
        return JD0 + self.night + self.number * 1e-3

    def key(self) -> int:
        return self.candid if self.candid is not None else candid_of(self.object_id, self.night, self.number)

    def digest(self) -> str:
        content = [self.key(), self.object_id, self.n_stamps, list(self.prv), list(self.forced), self.note]
        return json_digest(content)


def candid_of(object_id: str, night: int, number: int = 0) -> int:
    """Candids begin with the night, as ZTF's do."""
    return (1200 + night) * 10**15 + int(digest128(f"{object_id}/{number}".encode())[:8], 16)


def _alert(p: Packet) -> dict[str, Any]:
    missing = 0 if p.n_stamps == 3 else 0b010101
    return {
        "objectId": p.object_id,
        "jd": p.jd,
        "candid": p.key(),
        "fid": 1 + p.number % 3,
        "pid": p.night * 1000 + p.number,
        "ra": p.ra,
        "dec": p.dec,
        "magpsf": 18.5,
        "isdiffpos": 1,
        "publisher": p.note or None,
        "n_prv": len(p.prv),
        "n_fp": len(p.forced),
        "stamp_status": missing,
        "completeness": p.n_stamps * 10_000_000 + min(len(p.forced), 2000) * 3000 + min(len(p.prv), 2000),
        "packet_digest": p.digest(),
        "source_id": p.source_id,
    }


def _points(p: Packet) -> Iterator[dict[str, Any]]:
    base = {"objectId": p.object_id, "known_jd": p.jd, "known_candid": p.key()}
    yield base | {
        "jd": p.jd,
        "candid": p.key(),
        "fid": 1 + p.number % 3,
        "pid": p.night * 1000 + p.number,
        "origin": 0,
        "is_detection": True,
        "isdiffpos": 1,
        "magpsf": 18.5,
    }
    for night, number in p.prv:
        detected = number >= 0
        yield base | {
            "jd": JD0 + night + max(number, 0) * 1e-3,
            "candid": candid_of(p.object_id, night, number) if detected else None,
            "fid": 1 + max(number, 0) % 3,
            "pid": night * 1000 + max(number, 0),
            "origin": 1,
            "is_detection": detected,
            "magpsf": 18.25 if detected else None,
            "diffmaglim": 20.5,
        }
    for night, flux in p.forced:
        yield base | {
            "jd": JD0 + night,
            "fid": 1,
            "pid": night * 1000,
            "origin": 2,
            "is_detection": True,
            "forcediffimflux": flux,
            "forcediffimfluxunc": 1.0,
            "procstatus": "0",
        }


def _stamps(p: Packet) -> dict[str, Any]:
    rng = np.random.default_rng(p.key() % 2**32)
    row: dict[str, Any] = {"objectId": p.object_id, "jd": p.jd, "candid": p.key()}
    for name in ("Science", "Template", "Difference"):
        pixels = (100 + 5 * rng.standard_normal(p.shape)).astype(np.float32)
        row |= {f"cutout{name}": pixels.ravel(), f"height{name}": p.shape[0], f"width{name}": p.shape[1]}
    return row | {"stamp_status": 0, "packet_digest": p.digest()}


def _table(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    schema = load_table(name).arrow
    listed = list(rows)
    if name != "quarantine":
        for row, position in zip(listed, hash64([row["objectId"] for row in listed]).tolist(), strict=True):
            row["hash64"] = position
    columns = {
        column: pa.array([row.get(column) for row in listed], schema.field(column).type)
        for column in schema.names
    }
    return load_table(name).conform(pa.table(columns))


def bad_packet(source_id: str, member: str) -> dict[str, Any]:
    """A row of the quarantine table."""
    return {
        "source_id": source_id,
        "source": source_id,
        "member": member,
        "kind": "packet",
        "reason": "truncated",
        "message": "It ends early.",
        "digest": digest128(f"{source_id}/{member}".encode()),
    }


def batch_of(packets: Sequence[Packet], bad: Sequence[dict[str, Any]] = ()) -> PacketBatch:
    """A batch as a source gives it."""
    return PacketBatch(
        alerts=_table("alerts", map(_alert, packets)),
        photometry=_table("photometry", (point for packet in packets for point in _points(packet))),
        stamps=_table("stamps", (_stamps(packet) for packet in packets if packet.n_stamps)),
        quarantine=_table("quarantine", (dict(row) for row in bad)),
        packets_in=len(packets) + len(bad),
    )


@dataclass
class Source:
    """A source of packets in memory."""

    source_id: str
    packets: list[Packet] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)
    batch_size: int = 50
    n_bytes: int = 1 << 30  # so that it is a task of its own

    @property
    def name(self) -> str:
        return f"{self.source_id}.tar.gz"

    def batches(self) -> Iterator[PacketBatch]:
        for packet in self.packets:
            packet.source_id = self.source_id
        for start in range(0, len(self.packets), self.batch_size):
            yield batch_of(self.packets[start : start + self.batch_size])
        if self.bad:
            yield batch_of([], self.bad)


def night_of(night: int, objects: Iterable[int], **more: Any) -> list[Packet]:
    """One packet of each object, with the nights before as history and as forced photometry."""
    return [
        Packet(
            f"ZTF20a{number:06d}",
            night,
            prv=[(n, -1) if (n + number) % 3 else (n, 0) for n in range(max(0, night - 5), night)],
            forced=[(n, 10.0 * n + (night - n) // 3) for n in range(max(0, night - 4), night)],
            ra=(number * 7.3) % 360,
            dec=(number * 1.7) % 80 - 40,
            **more,
        )
        for number in objects
    ]


def contents(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows as Python values, comparable with ==; provenance, which depends on who came first, left out."""
    names = [name for name in table.column_names if name != "source_id"]
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
