"""Snapshots: which immutable parts an archive consists of, and what went into it.

The output tree::

    ARCHIVE/archive.json                 format marker, written once
    ARCHIVE/snapshots/00000001.json      create-only: parts, sources, counts, logical digest, parent
    ARCHIVE/parts/<part_id>/…            immutable files (see ``parts.py``)
    ARCHIVE/changes/<digest>.parquet     objects that an ingest touched (see ``changes.py``)
    ARCHIVE/objects/<digest>.parquet     derived, may be deleted at any time

A snapshot is the only thing that makes a part visible, and it is written last with a create-only write, so a
process that dies at any moment leaves the archive as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from applecider_batch.digest import MultisetDigest, json_digest
from applecider_batch.errors import UserError
from applecider_batch.storage import Store, json_bytes

FORMAT = "applecider-batch archive"
FORMAT_VERSION = 2
READABLE = (1, 2)
"""Version 1 held stamps as lists of pixels; its parts stay as they are until they are compacted."""
MARKER = "archive.json"
_SNAPSHOT_NAME = re.compile(r"^(\d{8})\.json$")


class ArchiveError(UserError):
    """The archive was refused: not one, of another format, or moved on while we worked."""


class SnapshotMoved(ArchiveError):
    """Another process committed a snapshot first."""


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a part; the hash range is null for tables that are not sorted by hash."""

    file: str
    rows: int
    bytes: int
    digest: str
    hash_lo: int | None
    hash_hi: int | None

    def overlaps(self, lo: int, hi: int) -> bool:
        """Whether rows with hash64 in [lo, hi) can be in this file."""
        return (
            self.hash_lo is not None and self.hash_hi is not None and self.hash_lo < hi and self.hash_hi >= lo
        )

    def to_json(self) -> dict[str, Any]:
        """JSON form; hashes as 16 hex digits because JSON readers lose bits above 2**53."""
        out: dict[str, Any] = {
            "file": self.file,
            "rows": self.rows,
            "bytes": self.bytes,
            "digest": self.digest,
        }
        if self.hash_lo is not None and self.hash_hi is not None:
            out["hash_lo"], out["hash_hi"] = f"{self.hash_lo:016x}", f"{self.hash_hi:016x}"
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TableFile:
        """The inverse of :meth:`to_json`."""
        bounds = [int(value[name], 16) if name in value else None for name in ("hash_lo", "hash_hi")]
        return cls(value["file"], value["rows"], value["bytes"], value["digest"], *bounds)


@dataclass(frozen=True)
class PartRecord:
    """A part as a snapshot names it.

    ``run`` is shared by the parts that were written together and do not overlap in hash.
    """

    part_id: str
    run: str
    tables: dict[str, TableFile]
    index_digest: str
    candid_lo: int | None
    candid_hi: int | None
    nights: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.bytes for table in self.tables.values())

    def rows(self, name: str) -> int:
        """Rows of a table, 0 when the part has none."""
        return self.tables[name].rows if name in self.tables else 0

    def path(self, name: str) -> str:
        """Relative path of a table's file."""
        return f"parts/{self.part_id}/{self.tables[name].file}"

    @property
    def index_path(self) -> str:
        """Relative path of the sidecar index."""
        return f"parts/{self.part_id}/index.json"

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "part_id": self.part_id,
            "run": self.run,
            "index_digest": self.index_digest,
            "candid_lo": self.candid_lo,
            "candid_hi": self.candid_hi,
            "nights": list(self.nights),
            "tables": {name: table.to_json() for name, table in self.tables.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartRecord:
        """The inverse of :meth:`to_json`."""
        return cls(
            value["part_id"],
            value["run"],
            {name: TableFile.from_json(table) for name, table in sorted(value["tables"].items())},
            value["index_digest"],
            value["candid_lo"],
            value["candid_hi"],
            tuple(value["nights"]),
        )


@dataclass(frozen=True)
class SourceRecord:
    """A source that was ingested: its content digest, its name and what came of it."""

    source_id: str
    name: str
    kind: str
    counts: dict[str, int]
    rows_digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        out: dict[str, Any] = {
            "source_id": self.source_id,
            "name": self.name,
            "kind": self.kind,
            "counts": self.counts,
        }
        return out | ({"rows_digest": self.rows_digest} if self.rows_digest else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SourceRecord:
        """The inverse of :meth:`to_json`."""
        return cls(
            value["source_id"], value["name"], value["kind"], value["counts"], value.get("rows_digest", "")
        )


@dataclass(frozen=True)
class Change:
    """What an ingest touched (see ``changes.py``): the archive's digest and end afterwards, and the objects.

    ``jd_latest`` is the date from which the last of the touched rows is seen; ``file`` is null without rows.
    """

    logical_digest: str
    jd_max: float | None
    file: str | None
    objects: int
    bytes: int
    jd_latest: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Snapshot:
    """A state of the archive.

    Attributes
    ----------
    id : int
        1, 2, …; 0 is the empty archive before the first commit.
    parent : int or None
        Snapshot this one was made from.
    kind : str
        ``empty``, ``ingest`` or ``compact``.
    packets_digest : MultisetDigest
        Over the distinct (candid, packet digest) ever accepted, winners and duplicates with other content.
    counts : dict
        Over all ingests: packets_in, stored, duplicates, quarantined, photometry_rows, spectra_rows ….
    changes : tuple of Change
        What every ingest so far touched, oldest first.
    jd_max : float or None
        Latest alert (d, JD UTC); where there are no alerts, latest point of a light-curve table.
    """

    id: int = 0
    parent: int | None = None
    kind: str = "empty"
    parts: tuple[PartRecord, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    packets_digest: MultisetDigest = field(default_factory=MultisetDigest)
    jd_max_alerts: float | None = None
    jd_max_tables: float | None = None
    changes: tuple[Change, ...] = ()

    @property
    def jd_max(self) -> float | None:
        """End of the archive in time."""
        return self.jd_max_alerts if self.jd_max_alerts is not None else self.jd_max_tables

    @property
    def logical_digest(self) -> str:
        """Digest of what was accepted; independent of the order of arrival and of compaction."""
        tables = sorted(f"{s.kind}:{s.rows_digest}" for s in self.sources if s.rows_digest)
        return json_digest({"packets": self.packets_digest.hexdigest(), "tables": tables})

    @property
    def source_ids(self) -> frozenset[str]:
        """Content digests of all ingested sources."""
        return frozenset(source.source_id for source in self.sources)

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "id": self.id,
            "parent": self.parent,
            "kind": self.kind,
            "logical_digest": self.logical_digest,
            "packets_digest": self.packets_digest.hexdigest(),
            "jd_max_alerts": self.jd_max_alerts,
            "jd_max_tables": self.jd_max_tables,
            "counts": self.counts,
            "sources": [source.to_json() for source in self.sources],
            "parts": [part.to_json() for part in self.parts],
            "changes": [change.to_json() for change in self.changes],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        """The inverse of :meth:`to_json`."""
        return cls(
            id=value["id"],
            parent=value["parent"],
            kind=value["kind"],
            parts=tuple(PartRecord.from_json(part) for part in value["parts"]),
            sources=tuple(SourceRecord.from_json(source) for source in value["sources"]),
            counts=dict(value["counts"]),
            packets_digest=MultisetDigest.from_hex(value["packets_digest"]),
            jd_max_alerts=value["jd_max_alerts"],
            jd_max_tables=value["jd_max_tables"],
            changes=tuple(Change(**change) for change in value.get("changes", ())),
        )


def snapshot_file(number: int) -> str:
    """Relative path of a snapshot."""
    return f"snapshots/{number:08d}.json"


def snapshot_ids(store: Store) -> list[int]:
    """Numbers of the snapshots that are there, ascending."""
    matches = (_SNAPSHOT_NAME.match(name) for name in store.ls("snapshots"))
    return sorted(int(match[1]) for match in matches if match)


def load_snapshot(store: Store, number: int | None = None) -> Snapshot:
    """Read a snapshot, by default the latest; an archive without one is empty (id 0).

    Raises
    ------
    ArchiveError
        If there is no such snapshot or its file is not a snapshot of this format.
    """
    present = snapshot_ids(store)
    if number is None:
        number = present[-1] if present else 0
    if number == 0:
        return Snapshot()
    if number not in present:
        raise ArchiveError(f"The archive '{store.url}' has no snapshot {number}; it has {present or 'none'}.")
    value = store.read_json(snapshot_file(number))
    try:
        if value["version"] not in READABLE:
            raise ArchiveError(
                f"Snapshot {number} of '{store.url}' has format version {value['version']}; "
                f"this program reads {' and '.join(map(str, READABLE))}."
            )
        snapshot = Snapshot.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"Snapshot {number} of '{store.url}' is damaged: {error!r}.") from error
    if snapshot.logical_digest != value["logical_digest"]:
        raise ArchiveError(f"Snapshot {number} of '{store.url}' does not have the logical digest it states.")
    return snapshot


def commit_snapshot(store: Store, parent: Snapshot, new: Snapshot) -> Snapshot:
    """Write the successor of ``parent``; all files it names must be there already.

    Raises
    ------
    SnapshotMoved
        If another process has committed a successor of ``parent`` meanwhile.
    """
    latest = (snapshot_ids(store) or [0])[-1]
    numbered = replace(new, id=parent.id + 1, parent=parent.id)
    moved = SnapshotMoved(
        f"Another process changed the archive '{store.url}' while this one worked: "
        f"snapshot {parent.id} is no longer the latest.",
        hint="Nothing is lost; run the same command again.",
    )
    if latest != parent.id:
        raise moved
    try:
        store.create_only(snapshot_file(numbered.id), json_bytes(numbered.to_json()))
    except FileExistsError:
        raise moved from None
    return numbered


def open_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store of an existing archive.

    Raises
    ------
    ArchiveError
        If there is no archive at the URL, or one of another format version.
    """
    store = Store(url, storage_options)
    try:
        marker = store.read_json(MARKER)
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no archive.json" if store.exists() else "does not exist"
        raise ArchiveError(
            f"'{url}' is not an archive: it {what}.",
            hint="Make one with: applecider-batch ingest SOURCE... --archive URL",
        ) from None
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        raise ArchiveError(f"'{url}' is not an archive: its archive.json says {marker!r}.")
    if marker.get("version") not in READABLE:
        raise ArchiveError(
            f"The archive '{url}' has format version {marker.get('version')}; "
            f"this program reads {' and '.join(map(str, READABLE))}."
        )
    return store


def create_archive(url: str, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store of an archive that is made here if the place is empty.

    Raises
    ------
    ArchiveError
        If the place holds something that is not an archive.
    """
    store = Store(url, storage_options)
    if store.exists(MARKER):
        return open_archive(url, storage_options)
    if store.is_local and store.exists() and not store.fs.isdir(store.path()):
        raise ArchiveError(f"'{url}' is a file, not an archive; give a folder or a new path.")
    others = [name for name in store.ls() if not name.startswith(f".{MARKER}.")]  # left by a killed process
    if others:
        raise ArchiveError(
            f"'{url}' is not an archive: it holds {len(others)} other entries ({', '.join(others[:3])}) "
            "and no archive.json; give an empty or new folder.",
        )
    try:
        store.create_only(MARKER, json_bytes({"format": FORMAT, "version": FORMAT_VERSION}))
    except FileExistsError:
        return open_archive(url, storage_options)
    return store
