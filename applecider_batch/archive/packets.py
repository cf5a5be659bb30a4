"""Packets as they come from a source to batches of rows.

``PacketBatch`` is what every source of alerts gives and what ``ingest`` takes.  The way of a packet::

    bytes of a file ─ parse_container ─▶ records' bytes ─ by writer schema ─▶ Arrow columns ─ unfold ─▶ rows
                                             │ (damaged, odd, few: fastavro, one by one) ▲
                                             └───────────────────────────────────────────┘

Nothing is lost: ``packets_in`` is always the number of alerts rows plus that of quarantine rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.avro import (
    AvroError,
    Datum,
    WriterSchema,
    decode_datum,
    describe,
    parse_container,
)
from applecider_batch.archive.avro_columns import Struct, Text
from applecider_batch.archive.avro_reader import UnsupportedSchemaError, compile_schema, read_columns
from applecider_batch.archive.avro_records import records_to_arrow
from applecider_batch.archive.history import HISTORY_FIELDS
from applecider_batch.archive.quarantine import Quarantine
from applecider_batch.archive.stamp_batches import DecodedStamps, StampBytes, decode_stamps
from applecider_batch.archive.stamp_blocks import packed_schema
from applecider_batch.archive.stamps import CUTOUTS
from applecider_batch.archive.taken_rows import take_rows
from applecider_batch.archive.unfold import identity, unfold
from applecider_batch.digest import digest128
from applecider_batch.errors import InternalError
from applecider_batch.schema import load_table

FEW = 40
"""Below so many packets of one schema fastavro is faster than columns at once."""

_NO_ROWS = (pa.ArrowException, OverflowError, TypeError, ValueError)
_STAMP_FIELDS = frozenset(f"cutout{name}" for name in CUTOUTS)


@dataclass
class PacketBatch:
    """Decoded packets as rows.

    Attributes
    ----------
    alerts : Table
        Schema ``alerts``, one row a packet, in order of arrival.
    photometry : Table
        Schema ``photometry``: every point of every packet, ``known_jd`` filled, not de-duplicated.
    stamps : Table
        Schema ``stamps``, one row a packet that has any image; the images packed (see ``stamp_blocks.py``).
    quarantine : Table
        Schema ``quarantine``, one row a packet (or rest of a file) that could not be read.
    packets_in : int
        Rows of ``alerts`` plus rows of ``quarantine``.
    """

    alerts: pa.Table
    photometry: pa.Table
    stamps: pa.Table
    quarantine: pa.Table
    packets_in: int

    def __post_init__(self) -> None:
        if self.packets_in != self.alerts.num_rows + self.quarantine.num_rows:
            raise InternalError(
                f"{self.packets_in} packets came in, {self.alerts.num_rows} became alerts and "
                f"{self.quarantine.num_rows} were set aside."
            )


@dataclass(frozen=True)
class Packet:
    """One record of a source, not yet decoded."""

    member: str
    datum: Datum


def split_file(member: str, data: bytes, quarantine: Quarantine) -> list[Packet]:
    """Packets of one Avro file in memory; what cannot be read is set aside."""
    packets: list[Packet] = []
    try:
        for datum in parse_container(data):
            packets.append(Packet(member if not packets else f"{member}#{len(packets)}", datum))
    except AvroError as error:
        set_rest_aside(member, len(packets), error, data, len(data), quarantine)
        return packets
    if not packets:
        quarantine.add(member, "undecodable", NO_PACKET, data)
    return packets


def set_rest_aside(
    member: str,
    n_before: int,
    error: AvroError,
    data: bytes | None,
    n_bytes: int | None,
    quarantine: Quarantine,
) -> None:
    """Set aside what comes after the last good packet of a damaged file: one row, as nobody can count it."""
    if n_before:
        message = f"{error} The {n_before} packets before that place are kept."
        digest = None if data is None else digest128(data)
        quarantine.add(f"{member}#{n_before}", error.reason, message, None, n_bytes=n_bytes, digest=digest)
    else:
        quarantine.add(member, error.reason, str(error), data, n_bytes=n_bytes)


def packet_digest(datum: Datum) -> str:
    """BLAKE2b-128 of the writer schema's fingerprint and the record's bytes: the codec does not matter."""
    blake = hashlib.blake2b(datum.schema.fingerprint, digest_size=16)
    blake.update(datum.body)
    return blake.hexdigest()


NO_PACKET = "The Avro file holds a schema and no packet."


@dataclass
class BatchRows:
    """Rows of a group.

    Attributes
    ----------
    alerts, photometry, stamps : Table
    places : ndarray, int64
        Place of each alert's packet in the batch.
    owner : ndarray, int64
        Row of ``alerts`` that each row of ``photometry`` belongs to.
    with_image : ndarray, int64
        Row of ``alerts`` that each row of ``stamps`` belongs to.
    """

    alerts: pa.Table
    photometry: pa.Table
    stamps: pa.Table
    places: np.ndarray
    owner: np.ndarray
    with_image: np.ndarray


def _no_rows() -> BatchRows:
    none = np.empty(0, np.int64)
    return BatchRows(*_no_tables(), none, none, none)


def _no_tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    return load_table("alerts").empty(), load_table("photometry").empty(), packed_schema().empty_table()


def decode_packets(packets: Sequence[Packet], quarantine: Quarantine) -> PacketBatch:
    """Decode packets of any schemas into a batch.

    Parameters
    ----------
    packets : sequence of Packet
    quarantine : Quarantine
        What was set aside already, to which packets that cannot be decoded are added.
    """
    groups: dict[WriterSchema, list[int]] = {}
    for place, packet in enumerate(packets):
        groups.setdefault(packet.datum.schema, []).append(place)
    parts: list[BatchRows] = []
    for schema, places in groups.items():
        alone = places
        if len(places) >= FEW:
            part, alone = _decode_columns(schema, packets, places, quarantine)
            parts.append(part)
        if alone:
            parts.extend(_decode_alone(schema, packets, alone, quarantine))
    return assemble(parts, quarantine)


def _decode_columns(
    schema: WriterSchema, packets: Sequence[Packet], places: list[int], quarantine: Quarantine
) -> tuple[BatchRows, list[int]]:
    """Decode a group at once; also gives the places that have to be read alone."""
    try:
        plan = compile_schema(schema, HISTORY_FIELDS)
    except UnsupportedSchemaError:
        return _no_rows(), places
    columns, data = read_columns(plan, [packets[i].datum.body for i in places])
    good = np.flatnonzero(~data.bad)
    alone = [places[i] for i in np.flatnonzero(data.bad)]
    if not len(good):
        return _no_rows(), alone
    kept = columns.take(good)
    cutouts = {name: _stamp_bytes(kept.fields.pop(f"cutout{name}", None), data.buffer) for name in CUTOUTS}
    chosen = [packets[places[i]] for i in good]
    given = {name: stamps for name, stamps in cutouts.items() if stamps is not None}
    try:
        array = kept.to_arrow(data.buffer)
        return _packet_rows(array, chosen, given, np.array(places)[good], quarantine), alone
    except _NO_ROWS:  # text that is not UTF-8, a value that no column can hold: one by one
        return _no_rows(), places


def _stamp_bytes(column: Any, buffer: np.ndarray) -> StampBytes | None:
    """``stampData`` of a cutout column, in the batch's buffer."""
    if not isinstance(column, Struct) or "stampData" not in column.fields:
        return None
    text = column.fields["stampData"]
    if not isinstance(text, Text):
        return None
    length = text.length
    for valid in (column.valid, text.valid):
        length = length if valid is None else np.where(valid, length, 0)
    return StampBytes(buffer, text.start, length)


def _decode_alone(
    schema: WriterSchema, packets: Sequence[Packet], places: list[int], quarantine: Quarantine
) -> list[BatchRows]:
    """Decode packets of one schema one by one; one that fastavro cannot read is set aside."""
    records, good = [], []
    for place in places:
        packet = packets[place]
        try:
            records.append(decode_datum(packet.datum))
            good.append(place)
        except AvroError as error:
            quarantine.add(packet.member, error.reason, str(error), packet.datum.body)
    try:
        return [_record_rows(schema, packets, records, good, quarantine)]
    except _NO_ROWS:
        pass  # a value that no column can hold: find out whose
    parts = []
    for record, place in zip(records, good, strict=True):
        try:
            parts.append(_record_rows(schema, packets, [record], [place], quarantine))
        except _NO_ROWS as error:
            packet = packets[place]
            message = f"The packet holds a value that fits no column: {describe(error)}."
            quarantine.add(packet.member, "bad_value", message, packet.datum.body)
    return parts


def _record_rows(
    schema: WriterSchema,
    packets: Sequence[Packet],
    records: list[dict[str, Any]],
    places: list[int],
    quarantine: Quarantine,
) -> BatchRows:
    cutouts = {
        name: StampBytes.join([_stamp_of(record.get(f"cutout{name}")) for record in records])
        for name in CUTOUTS
    }
    array = records_to_arrow(schema, records, HISTORY_FIELDS, _STAMP_FIELDS)
    return _packet_rows(array, [packets[i] for i in places], cutouts, np.array(places, np.int64), quarantine)


def _stamp_of(cutout: Any) -> bytes | None:
    data = cutout.get("stampData") if isinstance(cutout, dict) else cutout
    return data if isinstance(data, bytes) else None


def _packet_rows(
    array: pa.StructArray,
    packets: Sequence[Packet],
    cutouts: dict[str, StampBytes],
    places: np.ndarray,
    quarantine: Quarantine,
) -> BatchRows:
    digests = [packet_digest(packet.datum) for packet in packets]
    labels = [(packet.member, len(packet.datum.body)) for packet in packets]
    return rows_of(array, digests, cutouts, labels, places, quarantine)


def rows_of(
    array: pa.StructArray,
    digests: list[str] | None,
    cutouts: dict[str, StampBytes],
    labels: Sequence[tuple[str, int]],
    places: np.ndarray,
    quarantine: Quarantine,
) -> BatchRows:
    """Rows of n decoded packets; those that cannot be rows are set aside.

    Parameters
    ----------
    array : StructArray, shape (n,)
        Top-level fields without stamps.
    digests : list of str, length n, or None
        ``packet_digest``; None where it is made of the rows (it is "" then).
    cutouts : dict
        Per cutout, n stamps.
    labels : sequence of (member, bytes), length n
    places : ndarray, int64, shape (n,)
        Order of the packets in the batch.
    """
    if not len(array):
        return _no_rows()
    stamps = decode_stamps(cutouts, len(array))
    unfolded = unfold(array, digests or [""] * len(array), stamps, quarantine.source.source_id)
    for entry in unfolded.rejected:
        member, size = labels[entry.index]
        candid, object_id = identity(array, entry.index)
        quarantine.add(
            member,
            entry.reason,
            entry.message,
            None,
            n_bytes=size,
            candid=candid,
            object_id=object_id,
            digest=digests[entry.index] if digests else None,
        )
    index = unfolded.index
    with_image = np.flatnonzero(stamps.any_image[index])
    table = _stamps_table(unfolded.alerts, stamps, with_image, index)
    return BatchRows(unfolded.alerts, unfolded.photometry, table, places[index], unfolded.owner, with_image)


def _stamps_table(alerts: pa.Table, stamps: DecodedStamps, rows: np.ndarray, index: np.ndarray) -> pa.Table:
    columns = {name: alerts.column(name) for name in packed_schema().names if name in alerts.column_names}
    images = pa.table(stamps.columns)
    if len(rows) < len(alerts):
        columns = {name: column.take(pa.array(rows)) for name, column in columns.items()}
    if len(rows) < images.num_rows:
        images = take_rows(images, index[rows])
    columns |= dict(zip(images.column_names, images.columns, strict=True))
    return pa.table([columns[name] for name in packed_schema().names], schema=packed_schema())


def assemble(parts: Iterable[BatchRows], quarantine: Quarantine) -> PacketBatch:
    """One batch of the rows of several groups, alerts in order of arrival."""
    parts = [part for part in parts if part.alerts.num_rows]
    if not parts:
        return PacketBatch(*_no_tables(), quarantine.table(), len(quarantine.rows))
    alerts = pa.concat_tables([part.alerts for part in parts])
    places = np.concatenate([part.places for part in parts])
    if (np.diff(places) < 0).any():
        alerts = alerts.take(pa.array(np.argsort(places, kind="stable")))
    return PacketBatch(
        alerts,
        pa.concat_tables([part.photometry for part in parts]),
        pa.concat_tables([part.stamps for part in parts]),
        quarantine.table(),
        alerts.num_rows + len(quarantine.rows),
    )
