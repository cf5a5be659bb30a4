"""Alerts in Fink's Parquet layouts: ``candidate`` as a struct, stamps nested, flattened or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.avro import describe
from applecider_batch.archive.packets import BatchRows, PacketBatch, assemble, rows_of
from applecider_batch.archive.quarantine import Quarantine, SourceInfo
from applecider_batch.archive.stamp_batches import StampBytes
from applecider_batch.archive.stamps import CUTOUTS
from applecider_batch.digest import row_digests
from applecider_batch.errors import UserError
from applecider_batch.storage import is_of_storage

_OWN = frozenset(["packet_digest", "source_id"])


def read_fink(
    stream: IO[bytes] | Any, source: SourceInfo, max_packets: int, max_bytes: int
) -> Iterator[PacketBatch]:
    """Batches of a Parquet file of alerts.

    Parameters
    ----------
    stream : file
        Seekable.
    source : SourceInfo
    max_packets, max_bytes : int
        Most rows, and most bytes (uncompressed, on average) of a batch.

    Raises
    ------
    UserError
        If it is no Parquet file or has no ``candidate`` struct.
    """
    file = check_fink(stream, source.name)
    meta = file.metadata
    total = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    rows = max(1, min(max_packets, int(max_bytes / max(total / max(meta.num_rows, 1), 1.0))))
    first = 0
    for group in range(meta.num_row_groups):
        start = first
        first += meta.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                yield _decode(batch, source, start)
                start += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            if is_of_storage(error):
                raise
            yield _set_group_aside(source, start, first, error)


def _set_group_aside(source: SourceInfo, start: int, end: int, error: Exception) -> PacketBatch:
    """A row group whose bytes are damaged: one quarantine row for what is left of it."""
    quarantine = Quarantine(source)
    message = f"The rows {start} to {end - 1} of the Parquet file cannot be read: {describe(error)}."
    quarantine.add(f"rows {start}-{end - 1}", "undecodable", message, None)
    return assemble([], quarantine)


def check_fink(stream: Any, name: str) -> pq.ParquetFile:
    """Open a Parquet file of alerts, or say why it is none (UserError)."""
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"The file '{name}' cannot be read as Parquet: {error}.") from error
    schema = file.schema_arrow
    if "candidate" not in schema.names or not pa.types.is_struct(schema.field("candidate").type):
        shown = ", ".join(schema.names[:12]) + (" …" if len(schema.names) > 12 else "")
        raise UserError(
            f"The Parquet file '{name}' has no 'candidate' struct, so it holds no alert packets; its columns "
            f"are {shown}.",
            hint="Light-curve tables go to 'ingest --photometry FILE', spectra to 'ingest --spectra FILE'.",
        )
    return file


def _decode(batch: pa.RecordBatch, source: SourceInfo, first: int) -> PacketBatch:
    quarantine = Quarantine(source)
    size = batch.num_rows
    cutouts: dict[str, Sequence[bytes | memoryview | None]] = {}
    names, columns = [], []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cutout, is_data = _cutout_of(name)
        if cutout is None:
            names.append(name)
            columns.append(column)
        elif is_data and (found := _stamp_bytes(column)) is not None:
            cutouts[cutout] = found
    array = pa.StructArray.from_arrays(columns, names)
    labels = [(f"row {first + i}", 0) for i in range(size)]
    stamps = {cutout: StampBytes.join(given) for cutout, given in cutouts.items()}
    rows = rows_of(array, None, stamps, labels, np.arange(size), quarantine)
    return assemble([_with_digests(rows, cutouts)], quarantine)


def _cutout_of(name: str) -> tuple[str | None, bool]:
    """Which cutout a column belongs to, and whether it holds the stamp itself (not only the file name)."""
    for cutout in CUTOUTS:
        if name == f"cutout{cutout}" or name.startswith((f"cutout{cutout}_", f"cutout{cutout}.")):
            return cutout, not name.endswith("fileName")
    return None, False


def _stamp_bytes(column: pa.Array) -> list[memoryview | None] | None:
    """Stamps of a column, as views of its memory."""
    if pa.types.is_struct(column.type):
        at = column.type.get_field_index("stampData")
        if at < 0:
            return None
        column = pc.struct_field(column, [at])
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return None
    return [None if not value.is_valid else memoryview(value.as_buffer()) for value in column]


def _with_digests(rows: BatchRows, cutouts: dict[str, Sequence[Any]]) -> BatchRows:
    """Give each alert the digest of what is stored of it.

    Fink's files differ in the order of fields and in the width of numbers, so a row is taken as it is after
    cleaning: its alert columns, its points in order, the bytes of its stamps.
    """
    alerts = rows.alerts
    if not alerts.num_rows:
        return rows
    own = row_digests(alerts, [name for name in alerts.column_names if name not in _OWN])
    points = row_digests(rows.photometry)
    blakes = [hashlib.blake2b(digest, digest_size=16) for digest in own]
    for row, digest in zip(rows.owner.tolist(), points, strict=True):
        blakes[row].update(digest)
    for cutout in CUTOUTS:
        given = cutouts.get(cutout)
        for row, place in enumerate(rows.places.tolist()):
            stamp = None if given is None else given[place]
            blakes[row].update((0 if stamp is None else len(stamp)).to_bytes(8, "little"))
            if stamp is not None:
                blakes[row].update(stamp)
    digests = pa.array([blake.hexdigest() for blake in blakes], pa.string())
    at = alerts.schema.get_field_index("packet_digest")
    alerts = alerts.set_column(at, alerts.schema.field(at), digests)
    stamps = rows.stamps
    if stamps.num_rows:
        mine = digests.take(pa.array(rows.with_image))
        at = stamps.schema.get_field_index("packet_digest")
        stamps = stamps.set_column(at, stamps.schema.field(at), mine)
    return replace(rows, alerts=alerts, stamps=stamps)
