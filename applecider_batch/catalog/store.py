"""A catalogue as a folder.

::

    CATALOG/catalog.json                      counts, parts with their sha256, content_sha256; written last
    CATALOG/rows/part-00000.<build>.parquet   rows in the order of (hash64, objectId, episode, horizon_days)
    CATALOG/embeddings, light_curves, crossmatches/part-…    side tables, where there are any
    CATALOG/releases/00002.json               every release since the first update (see ``release.py``)
    CATALOG/index/…                           what an update looks up instead of reading all rows
    CATALOG/lease.json                        who is changing the catalogue now (see ``lease.py``)
    CATALOG/runs/<run_id>/                    run folders of updates
    CATALOG/run.json                          times of the run (sessions, seconds by step), where it kept them

Readers trust only the parts that ``catalog.json`` names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.errors import UserError
from applecider_batch.lease import LEASE, Lease
from applecider_batch.storage import Store

CATALOG_FILE = "catalog.json"
RELEASES = "releases"
INDEX = "index"
RUNS = "runs"
_NAMED = re.compile(r"^(.+)@(\d+)$")
RUN_FILE = "run.json"
FORMAT = "applecider-batch catalogue"
FORMAT_VERSION = 1
BATCH_ROWS = 65_536


def open_catalog(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, dict[str, Any]]:
    """The folder of a catalogue and its ``catalog.json``, or of ``URL@N`` that of release N.

    Raises
    ------
    UserError
        If the folder is no catalogue, or one of another format version.
    """
    named = _NAMED.match(url)
    store = Store(named[1] if named else url, storage_options)
    try:
        info: dict[str, Any] = store.read_json(CATALOG_FILE)
    except FileNotFoundError:
        raise UserError(
            f"'{store.url}' is not a catalogue: it has no {CATALOG_FILE}.",
            hint="Make one with `applecider-batch catalog build RUN --out URL`.",
        ) from None
    if named and int(named[2]) != info.get("release", 1):
        try:
            info = store.read_json(release_file(int(named[2])))
        except FileNotFoundError:
            raise UserError(
                f"The catalogue '{store.url}' has no release {int(named[2])}; the newest is "
                f"{info.get('release', 1)}.",
                hint=f"See what is there with: applecider-batch catalog releases {store.url}",
            ) from None
    if info.get("format") != FORMAT or info.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"'{url}' is a {info.get('format')!r} of version {info.get('format_version')!r}; "
            f"this program reads {FORMAT!r} of version {FORMAT_VERSION}."
        )
    return store, info


@contextlib.contextmanager
def only_writer(url: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """While this holds, no other build, update, fold or removal changes the catalogue.

    Raises
    ------
    UserError
        If another process is doing so.
    """
    store, _ = open_catalog(url, storage_options)
    with Lease(store, what="catalogue"):
        yield


def half_written(store: Store) -> list[str]:
    """Files beside ``catalog.json`` under temporary names, of killed writers; to be asked under the lease."""
    return [name for name in store.ls() if name.endswith(".tmp") and not name.startswith(f".{LEASE}.")]


def release_file(number: int) -> str:
    """Relative path of the document of a release."""
    return f"{RELEASES}/{number:05d}.json"


def iter_part(
    store: Store,
    part: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
    hashes: np.ndarray | None = None,
) -> Iterator[pa.Table]:
    """Rows of one part in tables of at most ``batch_rows`` rows, in bounded memory.

    Of row groups that hold none of ``hashes`` (uint64, ascending), where these are given, nothing is read.

    Raises
    ------
    UserError
        If the part is missing or is no Parquet file.
    """
    try:
        source = store.open_input(part["file"])
    except FileNotFoundError:
        raise UserError(
            f"The catalogue '{store.url}' lacks its part '{part['file']}'; build it again."
        ) from None
    try:
        with pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as reader:
            wanted = None if columns is None else list(columns)
            groups = None if hashes is None else _groups_with(reader, hashes)
            for batch in reader.iter_batches(batch_size=batch_rows, columns=wanted, row_groups=groups):
                yield pa.Table.from_batches([batch])
    except pa.ArrowInvalid as error:
        raise UserError(f"The part '{part['file']}' of '{store.url}' cannot be read: {error}.") from error
    finally:
        source.close()


def iter_rows(
    store: Store,
    info: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    *,
    name: str = "catalogue",
    batch_rows: int = BATCH_ROWS,
    hashes: np.ndarray | None = None,
) -> Iterator[pa.Table]:
    """All rows of a catalogue, or of a side table, in row order (``hashes`` as in :func:`iter_part`)."""
    if info.get("deltas"):
        from applecider_batch.catalog.layers import iter_merged

        yield from iter_merged(store, info, name, columns, batch_rows=batch_rows, hashes=hashes)
        return
    for part in info["parts"] if name == "catalogue" else info["side_tables"].get(name, ()):
        yield from iter_part(store, part, columns, batch_rows=batch_rows, hashes=hashes)


def _groups_with(reader: pq.ParquetFile, hashes: np.ndarray) -> list[int]:
    """Row groups whose range of hash64 holds one of the hashes."""
    at = reader.schema_arrow.get_field_index("hash64")
    found = []
    for group in range(reader.metadata.num_row_groups):
        limits = reader.metadata.row_group(group).column(at).statistics
        if limits is None or not limits.has_min_max:
            found.append(group)
            continue
        low = np.searchsorted(hashes, np.uint64(limits.min), side="left")
        if low < np.searchsorted(hashes, np.uint64(limits.max), side="right"):
            found.append(group)
    return found


def whole_objects(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, cut so that no object is divided between two tables."""
    held: pa.Table | None = None
    for table in tables:
        if not table.num_rows:
            continue
        joined = table if held is None else pa.concat_tables([held, table])
        names = joined.column("objectId")
        cut = pc.index(pc.equal(names, names[-1]), True).as_py()
        if cut:
            yield joined.slice(0, cut)
        held = joined.slice(cut)
    if held is not None:
        yield held
