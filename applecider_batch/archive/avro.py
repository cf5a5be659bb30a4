"""Avro containers: header, blocks and writer schema, up to the bytes of each packet.

A container is ``Obj\\x01``, a map of metadata (schema, codec), a 16-byte sync marker, and blocks of
``count, size, records, sync`` (Avro 1.11 specification, "Object Container Files").  Nothing here looks into a
record, except to find where each one ends when a block holds several.
"""

from __future__ import annotations

import bz2
import functools
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

MAGIC = b"Obj\x01"
SYNC_SIZE = 16
MAX_BLOCK_BYTES = 1 << 30
"""A block that claims more is damaged: one packet takes well under a megabyte."""


class AvroError(Exception):
    """A container or record that cannot be read; ``reason`` is a code of the quarantine table."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class WriterSchema:
    """A writer's schema, parsed once.

    Attributes
    ----------
    parsed : dict
        As fastavro parsed it, names resolved, logical types left out (their raw numbers are wanted).
    fingerprint : bytes
        BLAKE2b-128 of the parsing canonical form, so that blanks, defaults and documentation do not count.
    """

    parsed: Any
    fingerprint: bytes

    def __hash__(self) -> int:
        return int.from_bytes(self.fingerprint[:8], "big")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WriterSchema) and self.fingerprint == other.fingerprint

    @property
    def field_names(self) -> list[str]:
        """Top-level field names."""
        return [field["name"] for field in self.parsed["fields"]]


@dataclass(frozen=True)
class Datum:
    """One record's bytes, after the codec."""

    schema: WriterSchema
    body: bytes


@functools.lru_cache(maxsize=256)
def parse_writer_schema(text: bytes) -> WriterSchema:
    """Parse the JSON text of a writer schema.

    Raises
    ------
    AvroError
        If it is not JSON, not an Avro schema, or not a record.
    """
    from fastavro.schema import parse_schema, to_parsing_canonical_form

    try:
        plain = _without_logical_types(json.loads(text))
        parsed = parse_schema(plain, _write_hint=False)
        canonical = to_parsing_canonical_form(parsed)
    except RecursionError as error:
        raise AvroError("undecodable", "The Avro schema is nested too deeply.") from error
    except (
        Exception
    ) as error:  # fastavro raises its own, KeyError, TypeError, AttributeError ... on odd schemas
        raise AvroError(
            "undecodable", f"The Avro schema cannot be read: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(parsed, dict) or parsed.get("type") != "record":
        raise AvroError("undecodable", "The Avro schema is not that of a record.")
    return WriterSchema(parsed, hashlib.blake2b(canonical.encode(), digest_size=16).digest())


def _without_logical_types(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_logical_types(value) for key, value in node.items() if key != "logicalType"}
    if isinstance(node, list):
        return [_without_logical_types(item) for item in node]
    return node


def _inflate(data: bytes) -> bytes:
    return zlib.decompress(data, -15)


def _snappy(data: bytes) -> bytes:
    import cramjam

    raw = bytes(cramjam.snappy.decompress_raw(data[:-4]))
    if zlib.crc32(raw) != int.from_bytes(data[-4:], "big"):
        raise ValueError("the checksum of a snappy block does not match")
    return raw


def _zstandard(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.zstd.decompress(data))


_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: data,
    "deflate": _inflate,
    "snappy": _snappy,
    "zstandard": _zstandard,
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
}


def read_container(stream: IO[bytes]) -> Iterator[Datum]:
    """Records of a container, in order, as bytes.

    Parameters
    ----------
    stream : binary file
        Only ``read`` is used; blocks are read one at a time.

    Raises
    ------
    AvroError
        Where the container is damaged; the records before that place have been given.
    """
    codec, schema, sync = _read_header(stream)
    while (count := _read_long(stream, at_end=None)) is not None:
        size = _read_long(stream)
        if size is None or size < 0 or size > MAX_BLOCK_BYTES or count < 0 or count > max(size, 1):
            raise AvroError("undecodable", f"An Avro block claims {count} records in {size} bytes.")
        data = stream.read(size)
        if len(data) < size:
            raise AvroError("truncated", f"The Avro file ends {size - len(data)} bytes too early.")
        marker = stream.read(SYNC_SIZE)
        if marker != sync:
            if len(marker) < SYNC_SIZE:
                raise AvroError("truncated", "The Avro file ends within a block's closing marker.")
            raise AvroError("undecodable", "An Avro block does not end with the file's sync marker.")
        try:
            body = _CODECS[codec](data)
        except Exception as error:  # each codec's library has its own exceptions
            raise AvroError(
                "undecodable", f"An Avro block cannot be decompressed ({codec}): {error}."
            ) from error
        if count == 1:
            yield Datum(schema, body)
        else:
            yield from _split_block(schema, body, count)


def parse_container(data: bytes) -> Iterator[Datum]:
    """Like :func:`read_container`, for a container in memory (faster for files of one packet).

    The header of the last file is remembered: packets of one night share their schema, which is half of a
    packet's bytes, so most headers cost one comparison.
    """
    known = _known_header(data)
    if known is None:
        yield from read_container(io.BytesIO(data))
        return
    schema, start = known
    # The common file: one block of one record, not compressed.
    try:
        count, position = _long_at(data, start + SYNC_SIZE)
        size, position = _long_at(data, position)
    except IndexError:
        count = size = position = 0
    end = position + size
    if (
        count == 1
        and size > 0
        and end + SYNC_SIZE == len(data)
        and data[end:] == data[start : start + SYNC_SIZE]
    ):
        yield Datum(schema, data[position:end])
    else:
        yield from read_container(io.BytesIO(data))


_HEADERS: list[tuple[bytes, WriterSchema]] = []
_HEADERS_KEPT = 8


def _known_header(data: bytes) -> tuple[WriterSchema, int] | None:
    """Schema and the place of the sync marker, for a file with the codec null and a header seen before."""
    for prefix, schema in _HEADERS:
        if data.startswith(prefix):
            return schema, len(prefix)
    return None


def _read_header(stream: IO[bytes]) -> tuple[str, WriterSchema, bytes]:
    taped = _Tape(stream)
    magic = taped.read(4)
    if magic != MAGIC:
        what = "is empty" if not magic else "is not an Avro container (it does not begin with 'Obj')"
        raise AvroError("not_avro", f"The file {what}.")
    meta: dict[str, bytes] = {}
    while count := _read_long(taped):
        if count < 0:
            _read_long(taped)
            count = -count
        if count > 1000:
            raise AvroError("undecodable", f"The Avro header claims {count} entries.")
        for _ in range(count):
            key = _read_bytes(taped)
            meta[key.decode("utf-8", "replace")] = _read_bytes(taped)
    prefix = bytes(taped.tape)
    sync = stream.read(SYNC_SIZE)
    if len(sync) < SYNC_SIZE:
        raise AvroError("truncated", "The Avro file ends within its header.")
    codec = meta.get("avro.codec", b"null").decode("utf-8", "replace")
    if codec not in _CODECS:
        raise AvroError("undecodable", f"The Avro codec '{codec}' is not one of {', '.join(_CODECS)}.")
    if "avro.schema" not in meta:
        raise AvroError("undecodable", "The Avro header holds no schema.")
    schema = parse_writer_schema(meta["avro.schema"])
    if codec == "null" and all(prefix != known for known, _ in _HEADERS):
        _HEADERS.insert(0, (prefix, schema))
        del _HEADERS[_HEADERS_KEPT:]
    return codec, schema, sync


class _Tape:
    """A stream that remembers what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tape = bytearray()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.tape += data
        return data


def _read_long(stream: Any, at_end: int | None = -1) -> int | None:
    """A zigzag varint; at the end of the stream ``at_end`` where that is None, else an error."""
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte:
            if at_end is None and shift == 0:
                return None
            raise AvroError("truncated", "The Avro file ends within a number.")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7
        if shift > 63:
            raise AvroError("undecodable", "The Avro file holds a number of more than ten bytes.")


def _long_at(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
        shift += 7


def _read_bytes(stream: Any) -> bytes:
    size = _read_long(stream)
    if size is None or size < 0 or size > MAX_BLOCK_BYTES:
        raise AvroError("undecodable", f"The Avro header claims an entry of {size} bytes.")
    data: bytes = stream.read(size)
    if len(data) < size:
        raise AvroError("truncated", "The Avro file ends within its header.")
    return data


def _split_block(schema: WriterSchema, body: bytes, count: int) -> Iterator[Datum]:
    """Cut a block of several records where each one ends."""
    from fastavro import schemaless_reader

    stream = io.BytesIO(body)
    for number in range(count):
        start = stream.tell()
        try:
            schemaless_reader(stream, schema.parsed, None, handle_unicode_errors="replace")
        except Exception as error:  # fastavro raises whatever the damaged bytes lead to
            raise AvroError(
                "undecodable",
                f"Record {number + 1} of {count} of an Avro block cannot be read: {describe(error)}.",
            ) from error
        yield Datum(schema, body[start : stream.tell()])


def decode_datum(datum: Datum) -> dict[str, Any]:
    """One record as Python values, by fastavro; bytes that are no UTF-8 become U+FFFD.

    Raises
    ------
    AvroError
        If fastavro cannot read it.
    """
    from fastavro import schemaless_reader

    try:
        record = schemaless_reader(
            io.BytesIO(datum.body), datum.schema.parsed, None, handle_unicode_errors="replace"
        )
    except Exception as error:  # fastavro raises whatever the damaged bytes lead to
        raise AvroError("undecodable", f"The packet's record cannot be read: {describe(error)}.") from error
    return record  # type: ignore[return-value]


def describe(error: BaseException) -> str:
    """An exception in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text[:200]})" if text else type(error).__name__
