"""Sources of alerts: nightly tarballs, Avro files, folders of them, Fink's Parquet.

``open_sources`` looks at a URL and gives something with a content digest and batches of packets: one source
per tarball and per Parquet file of a folder, so that a folder to which a night was added costs only that
night. Nothing is unpacked to disk, and a batch never holds more packets or bytes than asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from applecider_batch.archive.avro import MAGIC, AvroError, read_container
from applecider_batch.archive.fink import check_fink, read_fink
from applecider_batch.archive.gzip_stream import GzipStream
from applecider_batch.archive.packets import (
    NO_PACKET,
    Packet,
    PacketBatch,
    decode_packets,
    set_rest_aside,
    split_file,
)
from applecider_batch.archive.quarantine import Quarantine, SourceInfo
from applecider_batch.archive.tarballs import Member, TarError, read_members
from applecider_batch.errors import StorageError, UserError
from applecider_batch.logs import get_logger
from applecider_batch.storage import Store

MAX_PACKETS = 2000
MAX_BYTES = 64 << 20

_IN_MEMORY = 64 << 20
_CHUNK = 256 << 10  # fits a processor's cache
_KINDS = {
    ".tar.gz": "tarball",
    ".tgz": "tarball",
    ".tar": "tarball",
    ".avro": "avro",
    ".parquet": "fink_parquet",
    ".parq": "fink_parquet",
}
_ALLOWED = (
    "nightly tarballs (.tar.gz, .tgz, .tar), .avro files, Fink-layout .parquet files, and folders of them"
)

_log = get_logger(__name__)


class Source(Protocol):
    """Something that holds packets."""

    name: str
    kind: str

    @property
    def source_id(self) -> str:
        """Content digest, 32 hex digits: the same bytes have the same one wherever they lie."""
        ...

    @property
    def n_bytes(self) -> int:
        """Size of the source's files."""
        ...

    def batches(self, max_packets: int = MAX_PACKETS, max_bytes: int = MAX_BYTES) -> Iterator[PacketBatch]:
        """All packets, in order."""
        ...


def open_sources(url: str | Path, storage_options: Mapping[str, Any] | None = None) -> list[Source]:
    """Open what holds alerts.

    Parameters
    ----------
    url : str or Path
        A nightly tarball, an Avro file, a Parquet file in a Fink layout, or a folder of such files.
    storage_options : mapping, optional
        Given to fsspec.

    Returns
    -------
    list of Source
        One of a file; of a folder one per tarball and Parquet file, and one of its loose Avro files.

    Raises
    ------
    UserError
        If there is nothing at the URL, or nothing that can be read.
    """
    store = Store(url, storage_options)
    if not store.exists():
        raise UserError(f"There is no source at '{url}'.", hint=f"Give {_ALLOWED}.")
    if store.fs.isfile(store.path()):
        return [_open_file(_File(store, "", _base_name(str(url))))]
    files = _walk(store)
    sources = [_open_file(file, kind) for kind, file in files if kind != "avro"]
    loose = [file for kind, file in files if kind == "avro"]
    return [*sources, *([AvroSource(loose, f"{_base_name(str(url))}/", "avro_folder")] if loose else [])]


def _base_name(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


class _File:
    """A file of a store."""

    def __init__(self, store: Store, rel: str, name: str) -> None:
        self.store, self.rel, self.name = store, rel, name

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The file, open; where the storage fails on the way that is no damage of the file: StorageError."""
        path = self.store.path(self.rel)
        try:
            with self.store.fs.open(path, "rb") as stream:
                yield stream
        except FileNotFoundError as error:
            raise UserError(f"The source file '{path}' is gone.") from error
        except PermissionError as error:
            raise StorageError(f"The source file '{path}' may not be read.") from error
        except OSError as error:
            raise StorageError(
                f"The source file '{path}' could not be read to its end: {error}.",
                hint="Run the same command again; what was committed is not read again.",
            ) from error

    @functools.cached_property
    def size(self) -> int:
        return self.store.size(self.rel)

    @functools.cached_property
    def digest(self) -> str:
        blake, buffer = hashlib.blake2b(digest_size=16), memoryview(bytearray(_CHUNK))
        with self.open() as stream:
            while count := stream.readinto(buffer):
                blake.update(buffer[:count])
        return blake.hexdigest()


def _walk(store: Store) -> list[tuple[str, _File]]:
    """Files of known kinds below a folder, sorted by name; hidden ones and others are passed over."""
    found, others = [], 0
    for rel in store.walk():
        if any(part.startswith((".", "_")) for part in rel.split("/")):
            continue
        kind = _kind_by_name(rel)
        if kind is None:
            others += 1
        else:
            found.append((kind, _File(store, rel, rel)))
    if not found:
        raise UserError(f"The folder '{store.url}' holds no alerts.", hint=f"Give {_ALLOWED}.")
    if others:
        _log.info("%s: %d files of other kinds are passed over", store.url, others)
    return found


def _kind_by_name(name: str) -> str | None:
    lower = name.lower()
    return next((kind for ending, kind in _KINDS.items() if lower.endswith(ending)), None)


def _open_file(file: _File, kind: str | None = None) -> Source:
    kind = kind or _kind_by_name(file.name)
    if kind is None:
        with file.open() as stream:
            head = stream.read(512)
        if head[:4] == MAGIC:
            kind = "avro"
        elif head[:4] == b"PAR1":
            kind = "fink_parquet"
        elif head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar":
            kind = "tarball"
        else:
            raise UserError(f"The file '{file.name}' is of no known kind.", hint=f"Give {_ALLOWED}.")
    if kind == "avro":
        return AvroSource([file], file.name, "avro")
    if kind == "fink_parquet":
        with file.open() as stream:
            check_fink(stream, file.name)
        return FinkSource(file)
    return TarSource(file)


class _Collector:
    """Packets and what was set aside, until a batch is full."""

    def __init__(self, source: SourceInfo, max_packets: int, max_bytes: int) -> None:
        self.source, self.max_packets, self.max_bytes = source, max_packets, max_bytes
        self._start()

    def _start(self) -> None:
        self.packets: list[Packet] = []
        self.quarantine = Quarantine(self.source)
        self.n_bytes = 0

    def add(self, packets: Sequence[Packet]) -> Iterator[PacketBatch]:
        """Take packets, and give a batch whenever it is full."""
        for packet in packets:
            self.packets.append(packet)
            self.n_bytes += len(packet.datum.body)
            if self.full:
                yield self.take()
        if self.full:
            yield self.take()

    @property
    def full(self) -> bool:
        count = len(self.packets) + len(self.quarantine.rows)
        return count >= self.max_packets or self.n_bytes >= self.max_bytes

    def take(self) -> PacketBatch:
        batch = decode_packets(self.packets, self.quarantine)
        self._start()
        return batch

    def rest(self) -> Iterator[PacketBatch]:
        """What is left."""
        if self.packets or self.quarantine.rows:
            yield self.take()


def _read_large(
    name: str, stream: IO[bytes] | Any, size: int, collector: _Collector
) -> Iterator[PacketBatch]:
    """Packets of an Avro file too large for memory, block by block."""
    count = 0
    try:
        for datum in read_container(stream):
            yield from collector.add([Packet(name if count == 0 else f"{name}#{count}", datum)])
            count += 1
    except AvroError as error:
        set_rest_aside(name, count, error, None, size, collector.quarantine)
        return
    if not count:
        collector.quarantine.add(name, "undecodable", NO_PACKET, None, n_bytes=size)


class AvroSource:
    """One Avro file, or all Avro files of a folder."""

    def __init__(self, files: list[_File], name: str, kind: str) -> None:
        self._files, self.name, self.kind = files, name, kind

    @functools.cached_property
    def source_id(self) -> str:
        """Content digest; of a folder that of its files' relative names and digests."""
        if self.kind == "avro":
            return self._files[0].digest
        listing = "\n".join(f"{file.digest} {file.rel}" for file in self._files)
        return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self._files)

    def batches(self, max_packets: int = MAX_PACKETS, max_bytes: int = MAX_BYTES) -> Iterator[PacketBatch]:
        """All packets, file by file."""
        collector = _Collector(SourceInfo(self.source_id, self.name), max_packets, max_bytes)
        for file in self._files:
            with file.open() as stream:
                if file.size > _IN_MEMORY:
                    yield from _read_large(file.name, stream, file.size, collector)
                else:
                    data = stream.read()
                    yield from collector.add(split_file(file.name, data, collector.quarantine))
        yield from collector.rest()


class TarSource:
    """A nightly tarball."""

    kind = "tarball"

    def __init__(self, file: _File) -> None:
        self._file, self.name = file, file.name

    @property
    def source_id(self) -> str:
        """Digest of the file."""
        return self._file.digest

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self._file.size

    def batches(self, max_packets: int = MAX_PACKETS, max_bytes: int = MAX_BYTES) -> Iterator[PacketBatch]:
        """All packets; where the tarball is damaged, one quarantine row stands for the rest."""
        collector = _Collector(SourceInfo(self.source_id, self.name), max_packets, max_bytes)
        with self._file.open() as raw:
            head = raw.read(2)
            raw.seek(0)
            stream = GzipStream(raw) if head == b"\x1f\x8b" else raw
            try:
                for member in read_members(stream):
                    yield from self._read_member(member, collector)
            except TarError as error:
                n_bytes = self._file.size if error.n_bytes is None else error.n_bytes
                collector.quarantine.add(error.member, error.reason, str(error), None, n_bytes=n_bytes)
        yield from collector.rest()

    @staticmethod
    def _read_member(member: Member, collector: _Collector) -> Iterator[PacketBatch]:
        if member.size > _IN_MEMORY:
            yield from _read_large(member.name, member, member.size, collector)
            return
        data = member.read()
        if data[:4] == MAGIC or member.name.lower().endswith(".avro"):
            yield from collector.add(split_file(member.name, data, collector.quarantine))
        else:
            _log.info("the member '%s' is no Avro file and is passed over", member.name)


class FinkSource:
    """A Parquet file in one of Fink's layouts."""

    kind = "fink_parquet"

    def __init__(self, file: _File) -> None:
        self._file, self.name = file, file.name

    @property
    def source_id(self) -> str:
        """Digest of the file."""
        return self._file.digest

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self._file.size

    def batches(self, max_packets: int = MAX_PACKETS, max_bytes: int = MAX_BYTES) -> Iterator[PacketBatch]:
        """All rows, in order."""
        with self._file.open() as stream:
            yield from read_fink(stream, SourceInfo(self.source_id, self.name), max_packets, max_bytes)
