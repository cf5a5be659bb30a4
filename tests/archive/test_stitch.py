from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from applecider_batch.archive.stitch import KEY_COLUMNS, distinct_points, stitch
from applecider_batch.digest import hash64
from applecider_batch.schema import load_table

SCHEMA = load_table("photometry")
REST = [
    name
    for name in SCHEMA.names
    if name not in ("hash64", "objectId", "jd", "candid", "fid", "pid", "origin", "known_jd", "is_detection")
]


def _nulls_last(value: Any) -> tuple[int, Any]:
    """Numbers, then NaN, then null."""
    if value is None:
        return (2, 0)
    if isinstance(value, float) and math.isnan(value):
        return (1, 0)
    return (0, value)


def _nulls_first(value: Any) -> tuple[int, Any]:
    return (0, 0) if value is None else (1, value)


def _point_key(row: dict[str, Any]) -> tuple[Any, ...]:
    place = ("candid", row["candid"]) if row["candid"] is not None else (row["jd"], row["fid"], row["pid"])
    revision: tuple[Any, ...] = ()
    if row["origin"] == 2:
        names = ("forcediffimflux", "forcediffimfluxunc", "procstatus")
        revision = ("forced", *(repr(row[name]) for name in names))
    return (row["objectId"], place, revision)


def _preference(row: dict[str, Any]) -> tuple[Any, ...]:
    place = [_nulls_last(row[name]) for name in ("jd", "fid", "pid", *REST)]
    return (row["known_jd"], row["origin"], not row["is_detection"], *place)


def stitch_plainly(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rule as one would write it down, row by row."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = _point_key(row)
        if key not in kept or _preference(row) < _preference(kept[key]):
            kept[key] = row
    order = ("hash64", "objectId", "jd", "candid", "fid", "pid", "origin", "known_jd")

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return (*(_nulls_first(row[name]) for name in order), *(_nulls_last(row[name]) for name in REST))

    return sorted(kept.values(), key=place)


def comparable(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(_nulls_last(row[name]) for name in SCHEMA.names) for row in rows]


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a photometry table (values rounded to the columns' types)."""
    columns = {
        name: pa.array([row.get(name) for row in rows], SCHEMA.arrow.field(name).type)
        for name in SCHEMA.names
        if name != "hash64"
    }
    columns["hash64"] = pa.array(hash64([row["objectId"] for row in rows]))
    return SCHEMA.conform(pa.table(columns))


_NUMBER = st.sampled_from([None, -1.5, 0.0, 2.25, math.nan])
_POINT = st.fixed_dictionaries(
    {
        "objectId": st.sampled_from(["ZTF18a", "ZTF19b"]),
        "jd": st.sampled_from([2_459_000.5, 2_459_001.5]),
        "candid": st.sampled_from([None, 11, 12]),
        "fid": st.sampled_from([1, 2]),
        "pid": st.sampled_from([None, 7]),
        "origin": st.sampled_from([0, 1, 3]),
        "known_jd": st.sampled_from([2_459_001.5, 2_459_002.5]),
        "known_candid": st.sampled_from([None, 12]),
        "is_detection": st.booleans(),
        "magpsf": _NUMBER,
        "forcediffimflux": _NUMBER,
        "programid": st.sampled_from([None, 1]),
    }
)
_FORCED = st.builds(
    lambda point, flux, status: (
        point | {"origin": 2, "candid": None, "forcediffimflux": flux, "procstatus": status}
    ),
    _POINT,
    st.sampled_from([None, 3.5, 4.5]),
    st.sampled_from([None, "0", "56,57"]),
)


@settings(max_examples=150)
@given(st.lists(st.one_of(_POINT, _FORCED), max_size=14), st.randoms(use_true_random=False))
def test_the_rule_is_that_of_a_plain_loop_in_any_order(
    rows: list[dict[str, Any]], shuffler: random.Random
) -> None:
    table = table_of(rows)
    expected = comparable(stitch_plainly(table.to_pylist()))
    assert comparable(stitch(table).to_pylist()) == expected
    shuffler.shuffle(rows)
    assert comparable(stitch(table_of(rows)).to_pylist()) == expected
    assert distinct_points(table.select(KEY_COLUMNS)).height == len(expected)


@settings(max_examples=50)
@given(st.lists(st.one_of(_POINT, _FORCED), max_size=14), st.integers(0, 14))
def test_pieces_can_be_stitched_before_the_whole(rows: list[dict[str, Any]], cut: int) -> None:
    whole = stitch(table_of(rows))
    pieces = [stitch(table_of(part)) for part in (rows[:cut], rows[cut:])]
    assert comparable(stitch(pa.concat_tables(pieces)).to_pylist()) == comparable(whole.to_pylist())
    assert comparable(stitch(whole).to_pylist()) == comparable(whole.to_pylist())


def _point(**values: Any) -> dict[str, Any]:
    return {
        "objectId": "ZTF18a",
        "fid": 1,
        "origin": 1,
        "is_detection": True,
        "known_jd": 20.0,
        "jd": 10.0,
    } | values


def test_the_first_delivery_of_a_point_is_kept() -> None:
    own = _point(candid=5, pid=1, origin=0, known_jd=10.0, magpsf=18.0)
    later = _point(candid=5, pid=1, known_jd=12.0, magpsf=18.5)
    kept = stitch(table_of([later, own])).to_pylist()
    assert [(row["magpsf"], row["known_jd"], row["origin"]) for row in kept] == [(18.0, 10.0, 0)]


def test_every_revision_of_a_forced_point_is_kept_since_it_is_known() -> None:
    versions = [
        _point(pid=1, origin=2, known_jd=known, forcediffimflux=flux)
        for known, flux in ((14.0, 100.0), (12.0, 100.0), (13.0, 101.0))
    ]
    limit = _point(pid=1, is_detection=False, diffmaglim=20.5)
    kept = stitch(table_of([*versions, limit])).to_pylist()
    assert [(row["origin"], row["known_jd"], row["forcediffimflux"]) for row in kept] == [
        (1, 20.0, None),
        (2, 12.0, 100.0),
        (2, 13.0, 101.0),
    ]


def test_an_empty_table_stays_one() -> None:
    assert stitch(SCHEMA.empty()).equals(SCHEMA.empty())
