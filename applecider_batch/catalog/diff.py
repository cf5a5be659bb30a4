"""``catalog diff OLD NEW``: what changed class, gate, status or flag between two releases, and why.

Causes are told from what both catalogues record, row by row and for the whole:

``data``      the row saw other packets, points, stamps or a spectrum, or another t0 or position
``model``     another model set, calibration, prior, learned gate or anomaly reference
``code``      another version of the program
``lists``     other lists of known transients, or other match options
``settings``  another device, dtype, batch size, number of threads, horizons or selection

A change is given every cause that is there and that can act on its column: a class does not change by a list.
Both are read in row order, whole objects at a time, in bounded memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.catalog.layers import cut_at, hashes_of
from applecider_batch.catalog.store import iter_rows, open_catalog, whole_objects
from applecider_batch.errors import UsageError
from applecider_batch.schema import load_table
from applecider_batch.storage import store_of

CAUSES = ("data", "model", "code", "lists", "settings")
_BY_ROW: Mapping[str, tuple[str, ...]] = {
    "data": (
        "t0", "ra", "dec", "jd_first", "jd_last", "candid_first", "candid_last", "n_det", "n_neg", "n_nondet",
        "n_fp", "mag_peak_g", "mag_peak_r", "candid_image", "spec_id", "redshift_used", "n_visits_before_t0",
        "ssdistnr_min", "distpsnr1", "sgscore1",
    ),
    "model": ("model_set_id", "calibration_id", "prior_id", "anomaly_ref_id", "gate_id"),
    "code": ("pipeline_version",),
}  # fmt: skip
_OF_RUNS = ("data", "model", "code", "settings")
#: Column -> causes that can act on it. (Flags for spectra and stamps depend on the networks in use.)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("gate", "class_top1", "anomaly_flag", "anomaly_reason", "quality_flags", "error_code"), _OF_RUNS
    ),
    "known_status": ("data", "code", "lists"),
    "tns_eligible": CAUSES,
}
_KEY = ("objectId", "episode", "horizon_days")
_SHOWN_TRANSITIONS = 10
_SETTINGS = ("device_type", "dtype", "batch_size", "threads", "horizons", "selection", "cuts")


def diff_catalogs(
    old_url: str, new_url: str, out: str | None = None, *, storage_options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Compare two releases of a catalogue.

    Parameters
    ----------
    old_url, new_url : str
        Folders of the catalogues.
    out : str, optional
        ``.parquet`` file for every single change (schema ``changes``).

    Returns
    -------
    dict
        Keys as ``catalog diff`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If one is no catalogue, or the file ending is another.
    """
    if out is not None and not out.endswith(".parquet"):
        raise UsageError(f"The changes are written as .parquet, and not to '{out}'.")
    (old, old_info), (new, new_info) = (open_catalog(url, storage_options) for url in (old_url, new_url))
    differs = _identity_differences(old_info, new_info)
    whole = {field["cause"] for field in differs if field["cause"] in ("lists", "settings")}
    names = _columns(old_info, new_info)
    rows: Counter[str] = Counter()
    by_column: Counter[str] = Counter()
    by_cause: Counter[str] = Counter()
    transitions: dict[str, Counter[str]] = {name: Counter() for name in COLUMNS}
    with ExitStack() as stack:
        writer = None
        if out is not None:
            target, file = store_of(out, storage_options)
            sink = stack.enter_context(target.open_output(file))
            writer = stack.enter_context(pq.ParquetWriter(sink, load_table("changes").arrow))
        pairs = _aligned(
            whole_objects(iter_rows(old, old_info, names)), whole_objects(iter_rows(new, new_info, names))
        )
        for left, right in pairs:
            changes, counts = _compare(left, right, whole, names)
            rows.update(counts)
            for column, before, after, causes in changes.select("column", "old", "new", "causes").iter_rows():
                by_column[column] += 1
                by_cause["+".join(causes) or "unexplained"] += 1
                if column in transitions:
                    transitions[column][f"{before or '-'} -> {after or '-'}"] += 1
            if writer is not None and changes.height:
                writer.write_table(load_table("changes").conform(changes.to_arrow()))
    return {
        "old": old_info["run_id"],
        "new": new_info["run_id"],
        "same_content": old_info["content_sha256"] == new_info["content_sha256"],
        "rows_old": rows["old"],
        "rows_new": rows["new"],
        "rows_in_both": rows["both"],
        "rows_appeared": rows["new"] - rows["both"],
        "rows_vanished": rows["old"] - rows["both"],
        "rows_changed": rows["changed"],
        "changes": sum(by_column.values()),
        "changes_by_column": dict(sorted(by_column.items())),
        "changes_by_cause": dict(sorted(by_cause.items())),
        "transitions": {
            name: dict(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_TRANSITIONS])
            for name, counter in transitions.items()
            if counter
        },
        "identity": differs,
        "out": out,
    }


def _columns(*infos: Mapping[str, Any]) -> list[str]:
    """Columns to read: those that both catalogues have."""
    wanted = ["hash64", *_KEY, *COLUMNS, *(name for names in _BY_ROW.values() for name in names)]
    return [name for name in wanted if all(name in info["columns"] for info in infos)]


def _identity_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recorded fields that differ: ``field, cause, old, new``."""
    a, b = old["identity"], new["identity"]
    fields = [("snapshot", "data", a.get("snapshot"), b.get("snapshot")),
              ("models", "model", a.get("models"), b.get("models")),
              ("pipeline_version", "code", a.get("pipeline_version"), b.get("pipeline_version")),
              ("crossmatch", "lists", _lists(old), _lists(new)),
              *((name, "settings", a.get(name), b.get(name)) for name in _SETTINGS)]  # fmt: skip
    return [
        {"field": name, "cause": cause, "old": before, "new": after}
        for name, cause, before, after in fields
        if before != after
    ]


def _lists(info: Mapping[str, Any]) -> Any:
    match = info["crossmatch"]
    if match is None:
        return None
    options = {name: match[name] for name in ("radius_arcsec", "window_days", "late_days")}
    return {"lists": [f"{e['kind']}:{e['list']}:{e['digest']}" for e in match["lists"]], **options}


def _aligned(
    old: Iterator[pa.Table], new: Iterator[pa.Table]
) -> Iterator[tuple[pa.Table | None, pa.Table | None]]:
    """Tables of both sides that cover the same stretch of hashes."""
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        ends = [hashes_of(t)[-1] for t in (left, right) if t is not None]
        bound = min(ends)
        one, left = cut_at(left, bound)
        other, right = cut_at(right, bound)
        yield one, other
        left = next(old, None) if left is None else left
        right = next(new, None) if right is None else right


def _compare(
    left: pa.Table | None, right: pa.Table | None, whole: set[str], names: Sequence[str]
) -> tuple[pl.DataFrame, Counter[str]]:
    """Every change in a stretch, in the columns of the schema ``changes``, and the counts of rows."""
    empty = load_table("catalogue").empty().select(list(names))
    old, new = (pl.DataFrame(pl.from_arrow(t if t is not None else empty)) for t in (left, right))
    both = old.with_columns(_old=pl.lit(True)).join(
        new.with_columns(_new=pl.lit(True)),
        on=["hash64", *_KEY], how="full", nulls_equal=True, coalesce=True, suffix="_after",
    )  # fmt: skip

    def differs(columns: Sequence[str]) -> pl.Expr:
        given = [pl.col(c).ne_missing(pl.col(f"{c}_after")) for c in columns if c in names]
        return pl.any_horizontal(given) if given else pl.lit(False)

    there = pl.col("_old").is_not_null() & pl.col("_new").is_not_null()
    both = both.with_columns(
        **{f"_{cause}": differs(columns) for cause, columns in _BY_ROW.items()},
        **{f"_{cause}": pl.lit(cause in whole) for cause in ("lists", "settings")},
    )
    matched = both.filter(there)
    pieces = [_changed(matched, name, causes) for name, causes in COLUMNS.items() if name in names]
    alone = both.filter(~there).select(
        "hash64", *_KEY, column=pl.lit("row"),
        old=pl.when(pl.col("_old")).then(pl.lit("present")),
        new=pl.when(pl.col("_new")).then(pl.lit("present")),
        causes=pl.lit(["data"] if "settings" not in whole else ["data", "settings"]),
    )  # fmt: skip
    changes = pl.concat([*pieces, alone]).sort(
        "hash64", *_KEY, "column", nulls_last=True, maintain_order=True
    )
    changed = changes.filter(pl.col("column") != "row").unique(["hash64", *_KEY]).height
    counts = Counter(old=old.height, new=new.height, both=matched.height, changed=changed)
    return changes.drop("hash64"), counts


def _changed(matched: pl.DataFrame, name: str, causes: Sequence[str]) -> pl.DataFrame:
    after = f"{name}_after"
    found = matched.filter(pl.col(name).ne_missing(pl.col(after)))
    said = pl.concat_list(
        [pl.when(pl.col(f"_{cause}")).then(pl.lit(cause)) for cause in causes]
    ).list.drop_nulls()
    return found.select(
        "hash64", *_KEY, column=pl.lit(name), old=pl.col(name).cast(pl.String),
        new=pl.col(after).cast(pl.String), causes=said,
    )  # fmt: skip
