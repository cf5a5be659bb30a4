"""HATS export: one collection (catalogue and margin cache) per horizon, in bounded memory.

::

    OUT/horizon_10/collection.properties
    OUT/horizon_10/catalogue/{hats.properties, partition_info.csv, skymap.fits, dataset/…}
    OUT/horizon_10/catalogue_10arcs/…                      rows within a margin cell of each partition

Rows go to one spill file per partition first, then each partition is sorted by ``_healpix_29`` and written
(the layout of the IVOA note HATS, https://www.ivoa.net/documents/Notes/HATS/).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.catalog.read import only_horizon
from applecider_batch.catalog.store import iter_rows
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store

ROWS_PER_PARTITION = 200_000
MARGIN_ARCSEC = 10.0
_SORT = [(name, "ascending") for name in ("_healpix_29", "objectId", "episode")]
_HISTOGRAM_ORDER = 10
_SKYMAP_ORDER = 6

#: A partition: HEALPix order and nested pixel number.
Pixel = tuple[int, int]


def export_hats(
    store: Store,
    info: Mapping[str, Any],
    out: str,
    labels: Sequence[str],
    *,
    rows_per_partition: int = ROWS_PER_PARTITION,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one HATS collection per horizon.

    Parameters
    ----------
    store, info : Store, dict
        An open catalogue.
    out : str
        A folder that does not exist yet, or is empty.
    labels : sequence of str
        Horizons.

    Returns
    -------
    dict
        ``format, out, rows, files, catalogues, rows_without_position``.

    Raises
    ------
    UserError
        If ``hats`` is not installed, the folder is not empty, or no row has a position.
    """
    try:
        import hats  # noqa: F401
    except ImportError as error:
        raise UserError(
            "The HATS export needs the package 'hats', which is not installed.",
            hint="Install it with: pip install 'applecider-batch[hats]'",
        ) from error
    target = Store(out, storage_options)
    if target.ls():
        raise UserError(f"'{out}' is not empty.", hint="Give a new folder for the HATS catalogues.")
    rows, without, files = 0, 0, 0
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="applecider-hats-") as scratch:
        for label in labels:
            name = f"horizon_{label}"
            built = Path(scratch) / name
            found = _Collection(store, info, label, built, rows_per_partition).write()
            if found is None:
                continue
            rows, without, names = rows + found[0], without + found[1], [*names, name]
            files += _publish(built, target, name)
            shutil.rmtree(built)
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


def _publish(built: Path, target: Store, name: str) -> int:
    """Copy a finished collection to its place; collection.properties, which makes it readable, comes last."""
    paths = sorted(path for path in built.rglob("*") if path.is_file())
    paths.sort(key=lambda path: path.name == "collection.properties")
    for path in paths:
        with target.open_output(f"{name}/{path.relative_to(built)}") as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
    return len(paths)


class _Collection:
    """One horizon's catalogue and margin cache, built in a local folder."""

    def __init__(self, store: Store, info: Mapping[str, Any], label: str, folder: Path, limit: int) -> None:
        self.store, self.info, self.label, self.folder, self.limit = store, info, label, folder, limit

    def _rows(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        for table in iter_rows(self.store, self.info, columns):
            yield only_horizon(table, self.label)

    def write(self) -> tuple[int, int] | None:
        """Rows written and rows without a position; None where no row has one."""
        from hats.catalog.dataset.collection_properties import CollectionProperties

        cells: dict[int, int] = {}
        without = 0
        for table in self._rows(["_healpix_29", "horizon_days"]):
            index = table.column("_healpix_29")
            without += index.null_count
            fine = pc.drop_null(index).to_numpy() >> 2 * (29 - _HISTOGRAM_ORDER)
            for cell, count in zip(*np.unique(fine, return_counts=True), strict=True):
                cells[int(cell)] = cells.get(int(cell), 0) + int(count)
        if not cells:
            return None
        pixels = partition_pixels(cells, self.limit)
        main = _Dataset(self.folder / "catalogue", pixels)
        margin_name = f"catalogue_{MARGIN_ARCSEC:g}arcs"
        margin_pixels, cells_of, owner = margin_cells(pixels, MARGIN_ARCSEC)
        margin = _Dataset(self.folder / margin_name, margin_pixels)
        starts = np.array([pixel << 2 * (29 - order) for order, pixel in pixels])
        with ExitStack() as stack:
            stack.callback(main.close)
            stack.callback(margin.close)
            for table in self._rows():
                placed = table.filter(pc.is_valid(table.column("_healpix_29")))
                index = placed.column("_healpix_29").to_numpy()
                main.spill(placed, np.searchsorted(starts, index, side="right") - 1)
                near, numbers = _owners(index >> 2 * (29 - _margin_order(MARGIN_ARCSEC)), cells_of, owner)
                if len(near):
                    margin.spill(placed.take(pa.array(near)), numbers)
        main.write()
        self._describe(main, "catalogue", cells)
        properties: dict[str, Any] = {"name": f"horizon_{self.label}", "hats_primary_table_url": "catalogue"}
        if margin.write():
            self._describe(margin, margin_name, None)
            properties.update(all_margins=[margin_name], default_margin=margin_name)
        shutil.rmtree(margin.spills, ignore_errors=True)
        shutil.rmtree(main.spills, ignore_errors=True)
        CollectionProperties(**properties).to_properties_file(self.folder)
        return main.rows, without

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
                skymap[cell >> 2 * (_HISTOGRAM_ORDER - _SKYMAP_ORDER)] += count
            write_skymap(skymap, dataset.folder)
            properties["skymap_order"] = _SKYMAP_ORDER
        else:
            properties.update(primary_catalog="catalogue", margin_threshold=MARGIN_ARCSEC)
        partitions = PartitionInfo.from_healpix([HealpixPixel(*pixel) for pixel in dataset.written])
        partitions.write_to_file(dataset.folder / "partition_info.csv")
        write_parquet_metadata(dataset.folder)
        TableProperties(**properties).to_properties_file(dataset.folder)

    @staticmethod
    def _version() -> str:
        from applecider_batch import __version__

        return __version__


def _words(label: str) -> str:
    return "from the full history" if label == "full" else f"{label} d after t0"


class _Dataset:
    """Partitions of one HATS catalogue: rows are spilled as they come and written sorted at the end."""

    def __init__(self, folder: Path, pixels: Sequence[Pixel]) -> None:
        self.folder, self.pixels = folder, list(pixels)
        self.spills = folder.with_name(f"{folder.name}.spill")
        self.spills.mkdir(parents=True)
        self.rows = 0
        self.written: dict[Pixel, int] = {}
        self._writers: dict[int, Any] = {}

    def spill(self, table: pa.Table, numbers: np.ndarray) -> None:
        """Add rows to the partitions with these numbers, one per row."""
        order = np.argsort(numbers, kind="stable")
        sorted_rows, sorted_numbers = table.take(pa.array(order)), numbers[order]
        found, starts = np.unique(sorted_numbers, return_index=True)
        for number, start, stop in zip(found, starts, [*starts[1:], len(numbers)], strict=True):
            if number not in self._writers:
                sink = str(self.spills / f"{number}.arrow")
                self._writers[number] = pa.ipc.new_stream(
                    sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
                )
            self._writers[number].write_table(sorted_rows.slice(start, stop - start))

    def close(self) -> None:
        """End the spill files."""
        for writer in self._writers.values():
            writer.close()

    def write(self) -> int:
        """Write every partition that has rows; the number of rows."""
        schema = load_table("catalogue").arrow
        for number in sorted(self._writers):
            order, pixel = self.pixels[number]
            with pa.ipc.open_stream(str(self.spills / f"{number}.arrow")) as reader:
                table = reader.read_all().sort_by(_SORT)
            folder = self.folder / f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                table.cast(schema),
                folder / f"Npix={pixel}.parquet",
                compression="zstd",
                row_group_size=20_000,
            )
            self.written[(order, pixel)] = table.num_rows
            self.rows += table.num_rows
        return self.rows


def partition_pixels(cells: Mapping[int, int], limit: int) -> list[Pixel]:
    """The largest pixels that hold at most ``limit`` rows each, in the order of the sky index.

    Parameters
    ----------
    cells : mapping
        Nested pixel of order 10 -> rows in it; a cell with more than ``limit`` rows stays whole.
    """
    numbers = np.array(sorted(cells), np.int64)
    counts = np.array([cells[int(number)] for number in numbers], np.int64)
    found: list[Pixel] = []
    for order in range(_HISTOGRAM_ORDER + 1):
        pixels = numbers >> 2 * (_HISTOGRAM_ORDER - order)
        distinct, inverse = np.unique(pixels, return_inverse=True)
        sums = np.bincount(inverse, weights=counts).astype(np.int64)
        fits = sums <= limit if order < _HISTOGRAM_ORDER else np.ones(len(sums), bool)
        found += [(order, int(pixel)) for pixel in distinct[fits]]
        left = ~fits[inverse]
        numbers, counts = numbers[left], counts[left]
    return sorted(found, key=lambda pixel: pixel[1] << 2 * (29 - pixel[0]))


def _margin_order(arcsec: float) -> int:
    """Largest order whose cells are everywhere wider than the margin."""
    from hats.pixel_math.healpix_shim import margin2order

    return int(margin2order(arcsec / 60.0))


def margin_cells(pixels: Sequence[Pixel], arcsec: float) -> tuple[list[Pixel], np.ndarray, np.ndarray]:
    """Cells of the margin order that border each partition, and each empty pixel beside them.

    Returns
    -------
    pixels : list of Pixel
        Partitions and empty pixels.
    cells, owner : ndarray of int64, shape (n,)
        Every bordering cell, ascending, and the number in ``pixels`` of the pixel that it borders.
    """
    from hats.pixel_math.pixel_margins import get_margin

    everything = [*pixels, *empty_pixels(pixels)]
    fine = _margin_order(arcsec)
    borders = [np.array(get_margin(order, pixel, fine - order), np.int64) for order, pixel in everything]
    cells = np.concatenate(borders)
    owner = np.repeat(np.arange(len(everything)), [len(border) for border in borders])
    ascending = np.argsort(cells, kind="stable")
    return everything, cells[ascending], owner[ascending]


def empty_pixels(pixels: Sequence[Pixel]) -> list[Pixel]:
    """The largest pixels that hold no partition; with the partitions they cover the sky."""
    taken = set(pixels)
    above = {(k, pixel >> 2 * (order - k)) for order, pixel in pixels for k in range(order)}
    found: list[Pixel] = []
    waiting: list[Pixel] = [(0, pixel) for pixel in range(12)]
    while waiting:
        order, pixel = waiting.pop()
        if (order, pixel) in above:
            waiting.extend((order + 1, 4 * pixel + child) for child in range(4))
        elif (order, pixel) not in taken:
            found.append((order, pixel))
    return sorted(found)


def _owners(row_cells: np.ndarray, cells: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and, for each, a pixel in whose margin the row is; a row may be in several margins."""
    left, right = (np.searchsorted(cells, row_cells, side=side) for side in ("left", "right"))
    counts = right - left
    rows = np.repeat(np.arange(len(row_cells)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, owner[np.repeat(left, counts) + within]
