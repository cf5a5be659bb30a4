"""HATS export: one collection (catalogue and margin cache) per horizon, in bounded memory.

::

    OUT/horizon_10/collection.properties
    OUT/horizon_10/catalogue/{hats.properties, partition_info.csv, skymap.fits, dataset/…}
    OUT/horizon_10/catalogue_10arcs/…                      rows within a margin cell of each partition

Two passes (``spread.py``): rows of the catalogue's parts are sorted into blocks by partition, then each
partition is sorted by ``_healpix_29`` and written by itself. The layout is that of the IVOA note HATS
(https://www.ivoa.net/documents/Notes/HATS/).
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.archive.spill import Published, Several, Spill, remove_abandoned, scratch_folder
from applecider_batch.catalog.hats_pixels import (
    HISTOGRAM_ORDER,
    Pixel,
    margin_cells,
    margin_order,
    margin_rows,
    partition_pixels,
)
from applecider_batch.catalog.read import only_horizon
from applecider_batch.catalog.store import iter_rows
from applecider_batch.errors import StorageError, UserError
from applecider_batch.schema import load_table
from applecider_batch.spread import Here, ProgressLike, Spread, Update
from applecider_batch.storage import Store

ROWS_PER_PARTITION = 200_000
MARGIN_ARCSEC = 10.0
_SORT = [(name, "ascending") for name in ("_healpix_29", "objectId", "episode")]
_SKYMAP_ORDER = 6
_MOST_TASKS = 256  # of the first pass: each has a file open until the second has ended
_SORT_BYTES = 64 << 20
_PARTITION = "_partition"
_COLLECTION = "horizon_"


def export_hats(
    store: Store,
    info: Mapping[str, Any],
    out: str,
    labels: Sequence[str],
    *,
    rows_per_partition: int = ROWS_PER_PARTITION,
    storage_options: Mapping[str, Any] | None = None,
    progress: ProgressLike | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Write one HATS collection per horizon.

    Parameters
    ----------
    store, info : Store, dict
        An open catalogue.
    out : str
        A folder that does not exist yet, is empty, or holds what a killed export left: that is removed.
    labels : sequence of str
        Horizons.
    progress : ProgressLike, optional
        Counts rows: when they are sorted and when they are written, those of margins too.
    spread : Spread, optional
        Where rows are sorted and partitions written; by default in this process.

    Returns
    -------
    dict
        ``format, out, rows, files, catalogues, rows_without_position``.

    Raises
    ------
    UserError
        If ``hats`` is not installed, the folder is not empty, or no row has a position.
    """
    spread = spread or Here()
    try:
        import hats  # noqa: F401
    except ImportError as error:
        raise UserError(
            "The HATS export needs the package 'hats', which is not installed.",
            hint="Install it with: pip install 'applecider-batch[hats]'",
        ) from error
    target = Store(out, storage_options)
    if remove_abandoned(target):  # an export that was killed
        _remove_collections(target)
    if target.ls():
        raise UserError(f"'{out}' is not empty.", hint="Give a new folder for the HATS catalogues.")
    rows, without, files = 0, 0, 0
    names: list[str] = []
    with scratch_folder(target) as folder:
        scratch = folder if spread.elsewhere else None
        try:
            for label in labels:
                name = f"{_COLLECTION}{label}"
                collection = _Collection(store, info, label, target.join(name), rows_per_partition)
                found = collection.write(spread, scratch, progress)
                if found is None:
                    continue
                rows, without, files = rows + found[0], without + found[1], files + found[2]
                names.append(name)
        except BaseException:
            with contextlib.suppress(StorageError):
                _remove_collections(target)
            raise
    if not names:
        raise UserError(f"No row of '{store.url}' has a position: there is nothing to export to HATS.")
    return {
        "format": "hats",
        "out": out,
        "rows": rows,
        "files": files,
        "catalogues": names,
        "rows_without_position": without,
    }


def _remove_collections(target: Store) -> None:
    """Remove what an export that did not come to its end wrote."""
    for name in target.ls():
        if name.startswith(_COLLECTION):
            target.delete(name, recursive=True)


def _publish(built: Path, target: Store) -> int:
    """Copy finished files to their place; collection.properties, which makes it readable, comes last."""
    paths = sorted(path for path in built.rglob("*") if path.is_file())
    paths.sort(key=lambda path: path.name == "collection.properties")
    for path in paths:
        with target.open_output(str(path.relative_to(built))) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
    return len(paths)


class _Collection:
    """One horizon's catalogue and margin cache."""

    def __init__(self, store: Store, info: Mapping[str, Any], label: str, target: Store, limit: int) -> None:
        self.store, self.info, self.label, self.target, self.limit = store, info, label, target, limit

    def write(
        self, spread: Spread, scratch: Store | None, progress: ProgressLike | None
    ) -> tuple[int, int, int] | None:
        """Rows written, rows without a position and files; None where no row has a position."""
        from hats.catalog.dataset.collection_properties import CollectionProperties

        cells: Counter[int] = Counter()
        without = 0
        parts = self.info["parts"]
        step = max(1, -(-len(parts) // _MOST_TASKS))
        groups: list[_Group] = [(0, self.info)]  # base and deltas are merged in one pass
        if not self.info.get("deltas"):
            groups = list(enumerate({"parts": parts[at : at + step]} for at in range(0, len(parts), step)))
        for counts, missing in spread.map(_count_cells, (self.store, self.label), groups):
            cells.update(counts)
            without += missing
        if not cells:
            return None
        pixels = partition_pixels(cells, self.limit)
        margin_name = f"catalogue_{MARGIN_ARCSEC:g}arcs"
        margin_pixels, cells_of, owner = margin_cells(pixels, MARGIN_ARCSEC)
        shuffle = _Shuffle(self.store, self.label, pixels, cells_of, owner, scratch)
        places = {"catalogue": pixels, margin_name: margin_pixels}
        with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="applecider-hats-") as built:
            sorted_rows, in_margin = [], set()
            for rows, margins in spread.map(_sort_rows, shuffle, groups, progress):
                stack.callback(rows.close)
                sorted_rows.append(rows)
                in_margin |= margins
            tasks = [(name, number) for name in places for number in range(len(places[name]))]
            tasks = [task for task in tasks if task[0] == "catalogue" or task[1] in in_margin]
            datasets = {name: _Dataset(Path(built) / name) for name in places}
            reduce = _Reduce(self.target, Several(sorted_rows), places)
            written = spread.map(_write_partition, reduce, tasks, progress)
            for task, (count, footer) in zip(tasks, written, strict=True):
                datasets[task[0]].take(places[task[0]][task[1]], count, footer)
            properties: dict[str, Any] = {
                "name": f"{_COLLECTION}{self.label}",
                "hats_primary_table_url": "catalogue",
            }
            self._describe(datasets["catalogue"], "catalogue", cells)
            if datasets[margin_name].rows:
                self._describe(datasets[margin_name], margin_name, None)
                properties |= {"all_margins": [margin_name], "default_margin": margin_name}
            CollectionProperties(**properties).to_properties_file(built)
            files = len(tasks) + _publish(Path(built), self.target)
        return datasets["catalogue"].rows, without, files

    def _describe(self, dataset: _Dataset, name: str, cells: Mapping[int, int] | None) -> None:
        """The metadata files of a catalogue (with ``cells``) or of a margin cache."""
        from hats.catalog import CatalogType, PartitionInfo, TableProperties
        from hats.io.parquet_metadata import write_parquet_metadata
        from hats.io.skymap import write_skymap
        from hats.pixel_math import HealpixPixel

        properties: dict[str, Any] = {
            "catalog_name": name,
            "catalog_type": CatalogType.OBJECT if cells else CatalogType.MARGIN,
            "total_rows": dataset.rows,
            "ra_column": "ra",
            "dec_column": "dec",
            "healpix_column": "_healpix_29",
            "healpix_order": 29,
            "hats_order": max(order for order, _ in dataset.written),
            "hats_max_rows": max(dataset.written.values()),
            "hats_builder": f"applecider-batch {self._version()}",
            "obs_description": f"Classifications {_words(self.label)} of run {self.info['run_id']}",
        }
        if cells:
            skymap = np.zeros(12 << 2 * _SKYMAP_ORDER, np.int64)
            for cell, count in cells.items():
                skymap[cell >> 2 * (HISTOGRAM_ORDER - _SKYMAP_ORDER)] += count
            write_skymap(skymap, dataset.folder)
            properties["skymap_order"] = _SKYMAP_ORDER
        else:
            properties.update(primary_catalog="catalogue", margin_threshold=MARGIN_ARCSEC)
        partitions = PartitionInfo.from_healpix([HealpixPixel(*pixel) for pixel in dataset.written])
        partitions.write_to_file(dataset.folder / "partition_info.csv")
        write_parquet_metadata(dataset.folder)
        dataset.remove_footers()
        TableProperties(**properties).to_properties_file(dataset.folder)

    @staticmethod
    def _version() -> str:
        from applecider_batch import __version__

        return __version__


def _words(label: str) -> str:
    return "from the full history" if label == "full" else f"{label} d after t0"


class _Dataset:
    """One HATS catalogue: what its metadata is made of, and where these are written first.

    HATS makes them from the partitions' Parquet footers, so files that hold nothing else stand in for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self.written: dict[Pixel, int] = {}
        self._footers: list[Path] = []

    def take(self, pixel: Pixel, rows: int, footer: bytes) -> None:
        """Note a partition that was written."""
        path = self.folder / _partition_file(pixel)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(footer)
        self._footers.append(path)
        self.written[pixel] = rows
        self.rows += rows

    def remove_footers(self) -> None:
        """Remove what stood in for the partitions."""
        for path in self._footers:
            path.unlink()


def _partition_file(pixel: Pixel) -> str:
    order, number = pixel
    return f"dataset/Norder={order}/Dir={number // 10_000 * 10_000}/Npix={number}.parquet"


#: A catalogue, or some parts of one, as one task.
_Group = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class _Shuffle:
    """What is needed to tell in which partition and margins a row is."""

    store: Store
    label: str
    pixels: list[Pixel]
    cells: np.ndarray
    owner: np.ndarray
    scratch: Store | None


@dataclass(frozen=True)
class _Reduce:
    """What is needed to write a partition."""

    target: Store
    rows: Several
    places: dict[str, list[Pixel]]


def _rows(
    store: Store, label: str, group: _Group, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Rows of one horizon of some parts."""
    for table in iter_rows(store, group[1], columns):
        yield only_horizon(table, label)


def _count_cells(shared: tuple[Store, str], group: _Group, update: Update) -> tuple[dict[int, int], int]:
    """Rows by cell of the histogram's order, and rows without a position."""
    cells: Counter[int] = Counter()
    without = 0
    for table in _rows(*shared, group, ["_healpix_29", "horizon_days"]):
        index = table.column("_healpix_29")
        without += index.null_count
        fine = pc.drop_null(index).to_numpy() >> 2 * (29 - HISTOGRAM_ORDER)
        cell, count = np.unique(fine, return_counts=True)
        cells.update(dict(zip(cell.tolist(), count.tolist(), strict=True)))
    return dict(cells), without


def _sort_rows(shuffle: _Shuffle, group: _Group, update: Update) -> tuple[Spill | Published, set[int]]:
    """Rows sorted by partition and by margin, and the margins that have any."""
    starts = np.array([pixel << 2 * (29 - order) for order, pixel in shuffle.pixels])
    margin_shift = 2 * (29 - margin_order(MARGIN_ARCSEC))
    margins: set[int] = set()
    with ExitStack() as stack:
        spill = stack.enter_context(Spill(_SORT_BYTES, key=_PARTITION))

        def add(name: str, rows: pa.Table, numbers: np.ndarray) -> None:
            spill.add(name, rows.append_column(_PARTITION, pa.array(numbers.astype(np.uint64))))

        for table in _rows(shuffle.store, shuffle.label, group):
            placed = table.filter(pc.is_valid(table.column("_healpix_29")))
            index = placed.column("_healpix_29").to_numpy()
            add("catalogue", placed, np.searchsorted(starts, index, side="right") - 1)
            near, numbers = margin_rows(index >> margin_shift, shuffle.cells, shuffle.owner)
            add(f"catalogue_{MARGIN_ARCSEC:g}arcs", placed.take(pa.array(near)), numbers)
            margins.update(np.unique(numbers).tolist())
            update(table.num_rows)
        spill.flush()
        rows: Spill | Published = spill
        if shuffle.scratch is not None:
            rows = spill.publish(shuffle.scratch, f"{shuffle.label}-{group[0]}.rows")
        stack.pop_all()  # whoever gets it closes it
    return rows, margins


def _write_partition(reduce: _Reduce, task: tuple[str, int], update: Update) -> tuple[int, bytes]:
    """Write a partition; its rows, and its Parquet footer as a file."""
    name, number = task
    table = reduce.rows.read(name, number, number + 1).drop_columns([_PARTITION]).sort_by(_SORT)
    table = table.cast(load_table("catalogue").arrow)
    footers: list[pq.FileMetaData] = []
    with (
        reduce.target.open_output(f"{name}/{_partition_file(reduce.places[name][number])}") as file,
        pq.ParquetWriter(file, table.schema, compression="zstd", metadata_collector=footers) as writer,
    ):
        writer.write_table(table, row_group_size=20_000)
    footer = io.BytesIO()
    footers[0].write_metadata_file(footer)
    update(table.num_rows)
    return table.num_rows, footer.getvalue()
