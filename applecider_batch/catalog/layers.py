"""Reading a release that is a base and deltas as one table.

A *layer* is the base or a delta: parts in row order.  A delta says which objects it replaces; of these no row
of an earlier layer counts, so no object stands in two layers, and the rows of all, merged by hash64, are in
row order.

Three columns belong to the release, not to the row, because a night changes them in rows that nobody touched:
``as_of_jd`` of the full history is the release's end, ``anomaly_qvalue`` depends on all p-values, and
``sibling_group`` on the neighbours.  Of a release with deltas they are made while reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.catalog.anomaly import QValues
from applecider_batch.catalog.store import iter_part, whole_objects
from applecider_batch.storage import Store

#: Column of a release -> what it is made from while reading.
MADE_FROM: Mapping[str, tuple[str, ...]] = {
    "as_of_jd": ("horizon_days",),
    "anomaly_qvalue": QValues.COLUMNS,
    "sibling_group": (),
}


def layers(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Base and deltas of a release, oldest first; each has ``parts`` and ``side_tables``."""
    return [info, *info.get("deltas", ())]


def all_files(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every file of a release: ``file``, ``rows``, ``bytes``, ``sha256``."""
    found: list[Mapping[str, Any]] = [] if info.get("pvalues") is None else [info["pvalues"]]
    for layer in layers(info):
        found += [*layer["parts"], *(part for parts in layer["side_tables"].values() for part in parts)]
        found += (layer.get("index") or {}).values()
        found += [layer[name] for name in ("replaced", "siblings") if name in layer and layer is not info]
    return found


def replaced_after(store: Store, info: Mapping[str, Any]) -> list[np.ndarray]:
    """Of each layer, hash64 (uint64, ascending) of the objects that a later layer replaces."""
    gone = [np.empty(0, np.uint64)]
    for delta in reversed(info.get("deltas", ())):
        gone.append(np.union1d(gone[-1], read_file(store, delta["replaced"]).column("hash64").to_numpy()))
    return gone[::-1]


def iter_merged(
    store: Store,
    info: Mapping[str, Any],
    name: str = "catalogue",
    columns: Sequence[str] | None = None,
    *,
    batch_rows: int,
    hashes: np.ndarray | None = None,
) -> Iterator[pa.Table]:
    """Rows of a release with deltas, or of one of its side tables, in row order.

    Parameters
    ----------
    name : str
        ``catalogue`` or a side table.
    columns : sequence of str, optional
    batch_rows : int
        Rows read at once from a layer.
    hashes : ndarray, uint64, ascending, optional
        Row groups that hold none of these are not read.
    """
    needed = None if columns is None else list(dict.fromkeys(["hash64", "objectId", *columns]))
    finish: Callable[[pa.Table], pa.Table] = _as_it_is
    if name == "catalogue":
        made = [c for c in MADE_FROM if columns is None or c in columns]
        if needed is not None:
            needed = list(dict.fromkeys([*needed, *(source for c in made for source in MADE_FROM[c])]))
        finish = ReleaseColumns(store, info, made).apply
    streams = []
    for layer, gone in zip(layers(info), replaced_after(store, info), strict=True):
        parts = layer["parts"] if name == "catalogue" else layer["side_tables"].get(name, ())
        read = (
            table
            for part in parts
            for table in iter_part(store, part, needed, batch_rows=batch_rows, hashes=hashes)
        )
        streams.append(_without(whole_objects(read), gone))
    for table in _by_hash(streams):
        done = finish(table)
        yield done if columns is None else done.select(list(dict.fromkeys(columns)))


def _as_it_is(table: pa.Table) -> pa.Table:
    return table


def _without(tables: Iterable[pa.Table], gone: np.ndarray) -> Iterator[pa.Table]:
    for table in tables:
        kept = table.filter(pa.array(~np.isin(hashes_of(table), gone))) if len(gone) else table
        if kept.num_rows:
            yield kept


def _by_hash(streams: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Streams in row order, without common objects, as one."""
    heads = [next(stream, None) for stream in streams]
    while any(head is not None for head in heads):
        bound = min(hashes_of(head)[-1] for head in heads if head is not None)
        pieces = []
        for number, stream in enumerate(streams):
            piece, rest = cut_at(heads[number], bound)
            heads[number] = next(stream, None) if rest is None else rest
            if piece is not None:
                pieces.append(piece)
        joined = pa.concat_tables(pieces)
        order = np.argsort(hashes_of(joined), kind="stable")
        yield joined if len(pieces) == 1 else joined.take(pa.array(order))


def hashes_of(table: pa.Table) -> np.ndarray:
    """The column ``hash64``, uint64."""
    values: np.ndarray = table.column("hash64").to_numpy()
    return values


def cut_at(table: pa.Table | None, bound: np.uint64) -> tuple[pa.Table | None, pa.Table | None]:
    """Rows up to and with a hash, and the rest; None for no rows."""
    if table is None:
        return None, None
    at = int(np.searchsorted(hashes_of(table), bound, side="right"))
    return (table.slice(0, at) if at else None), (table.slice(at) if at < table.num_rows else None)


class ReleaseColumns:
    """Makes the columns that belong to a release with deltas.

    Parameters
    ----------
    made : sequence of str
        Which of :data:`MADE_FROM`.
    """

    def __init__(self, store: Store, info: Mapping[str, Any], made: Sequence[str]) -> None:
        self._made = tuple(made)
        self._end = info["as_of_jd"]
        self._qvalues = read_qvalues(store, info) if "anomaly_qvalue" in made else None
        self.siblings = sibling_changes(store, info) if "sibling_group" in made else None

    def apply(self, table: pa.Table) -> pa.Table:
        """The same rows with the release's columns."""
        if "as_of_jd" in self._made:
            full = table.column("horizon_days").is_null()
            table = _set(table, "as_of_jd", pc.if_else(full, self._end, table.column("as_of_jd")))
        if self._qvalues is not None:
            table = self._qvalues.annotate(table)
        if self.siblings is not None and self.siblings.num_rows:
            at = pc.index_in(table.column("hash64"), self.siblings.column("hash64").combine_chunks())
            group = self.siblings.column("sibling_group").take(at)
            table = _set(
                table, "sibling_group", pc.if_else(at.is_valid(), group, table.column("sibling_group"))
            )
        return table


def _set(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    position = table.schema.get_field_index(name)
    return table.set_column(position, table.schema.field(position), values)


def read_qvalues(store: Store, info: Mapping[str, Any]) -> QValues:
    """The q-values of a release, ready to annotate."""
    qvalues = QValues.from_table(read_file(store, info["pvalues"]))
    qvalues.finish()
    return qvalues


def sibling_changes(store: Store, info: Mapping[str, Any]) -> pa.Table:
    """``hash64`` and ``sibling_group`` of objects whose group a delta changed without touching them."""
    latest: dict[int, str | None] = {}
    for delta in info["deltas"]:
        # A delta that has the object's rows has the group in them.
        for value in read_file(store, delta["replaced"]).column("hash64").to_pylist() if latest else ():
            latest.pop(value, None)
        table = read_file(store, delta["siblings"])
        latest.update(
            zip(table.column("hash64").to_pylist(), table.column("sibling_group").to_pylist(), strict=True)
        )
    return pa.table(
        {"hash64": pa.array(latest, pa.uint64()), "sibling_group": pa.array(latest.values(), pa.string())}
    )


def read_file(store: Store, entry: Mapping[str, Any]) -> pa.Table:
    """A small file of a release, whole."""
    with store.open_input(entry["file"]) as source:
        return pq.read_table(source)


def scan_merged(
    store: Store, info: Mapping[str, Any], name: str, scan: Callable[[list[str]], pl.LazyFrame]
) -> pl.LazyFrame:
    """The same as :func:`iter_merged`, as a lazy frame: a query reads only the columns it needs."""
    frames = []
    for layer, gone in zip(layers(info), replaced_after(store, info), strict=True):
        parts = layer["parts"] if name == "catalogue" else layer["side_tables"].get(name, ())
        if parts:
            frame = scan([part["file"] for part in parts])
            frames.append(frame.filter(~pl.col("hash64").is_in(pl.Series(gone).implode())))
    merged = pl.concat(frames).sort("hash64", maintain_order=True) if len(frames) > 1 else frames[0]
    if name != "catalogue":
        return merged
    full = pl.col("horizon_days").is_null()
    names = merged.collect_schema().names()
    merged = merged.with_columns(
        pl.when(full).then(pl.lit(info["as_of_jd"])).otherwise("as_of_jd").alias("as_of_jd")
    )
    siblings = pl.LazyFrame(pl.from_arrow(sibling_changes(store, info))).rename({"sibling_group": "_group"})
    ladder = pl.LazyFrame(pl.from_arrow(read_qvalues(store, info).ladder()))
    merged = (
        merged.join(siblings.with_columns(_regrouped=True), on="hash64", how="left", maintain_order="left")
        .with_columns(pl.when("_regrouped").then("_group").otherwise("sibling_group").alias("sibling_group"))
        .join(
            ladder,
            on=["horizon_days", "anomaly_pvalue", "anomaly_n_ref"],
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        .with_columns(pl.col("_q").alias("anomaly_qvalue"))
    )
    return merged.select(names)
