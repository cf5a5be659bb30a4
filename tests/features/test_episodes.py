"""t0, episodes and the rows of an object."""

from __future__ import annotations

from typing import Any

import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.inputs import Prepared, prepare_shard
from applecider_batch.features.profiles import get_profile
from tests.features.packets import Packet, archive_of
from tests.features.tables import JD0, FakeShard, alert, forced, limit, point, shard

PAPER = get_profile("paper")


def prepare(data: FakeShard, horizons: list[float | None] | None = None, end: float = JD0 + 1000) -> Prepared:
    return prepare_shard(data, horizons or [None], PAPER, snapshot_jd_max=end)


def starts(*alerts: dict[str, Any], points: list[dict[str, Any]] | None = None) -> list[float | None]:
    """t0 - JD0 of every episode of one object."""
    same = ("candid", "isdiffpos", "ssdistnr")
    own = [point(a["objectId"], a["jd"], **{name: a.get(name) for name in same}) for a in alerts]
    prepared = prepare(shard(list(alerts), [*own, *(points or [])]))
    return [None if t is None else t - JD0 for t in prepared.rows["t0"].to_pylist()]


def visit(day: float, covered: int | None, detected: int | None, **fields: Any) -> dict[str, Any]:
    return alert("ZTFa", JD0 + day, int(day * 100) + 1, ncovhist=covered, ndethist=detected, **fields)


@pytest.mark.parametrize(
    ("fields", "eligible"),
    [
        ({}, True),
        ({"rb": None}, True),
        ({"rb": 0.55}, True),
        ({"rb": 0.54}, False),
        ({"isdiffpos": -1}, False),
        ({"ssdistnr": 12.0}, False),
        ({"ssdistnr": 0.0}, False),
        ({"ssdistnr": 12.5}, True),
        ({"ssdistnr": -5.0}, True),
    ],
)
def test_what_sets_t0(fields: dict[str, Any], eligible: bool) -> None:
    first, second = visit(0.0, 10, 1, **fields), visit(3.0, 11, 2)
    assert starts(first, second) == [0.0 if eligible else 3.0]


def test_histories_never_set_t0() -> None:
    earlier = [
        point("ZTFa", JD0 - 5, origin=1, candid=9, known_jd=JD0),
        forced("ZTFa", JD0 - 9, 50.0, known_jd=JD0),
    ]
    assert starts(visit(0.0, 10, 1), points=earlier) == [0.0]


@pytest.mark.parametrize(
    ("day", "missed", "episodes"),
    [(100.0, 5, 2), (60.0, 5, 2), (59.9, 50, 1), (100.0, 4, 1), (1000.0, 0, 1)],
)
def test_a_new_episode_needs_sixty_days_and_five_visits(day: float, missed: int, episodes: int) -> None:
    detected = 3
    later = visit(day, 20 + missed + 1, detected + 1)
    assert len(starts(visit(0.0, 20, detected), later)) == episodes


def test_no_counters_no_new_episode() -> None:
    assert len(starts(visit(0.0, 20, 3), visit(100.0, None, 4))) == 1
    assert len(starts(visit(0.0, 20, None), visit(100.0, 90, 4))) == 1


def test_the_next_eligible_alert_opens_the_episode() -> None:
    # The first alert after the gap is negative, the eligible one comes ten days later.
    alerts = [visit(0.0, 20, 3), visit(100.0, 40, 4, isdiffpos=-1), visit(110.0, 42, 5), visit(112.0, 43, 6)]
    assert starts(*alerts) == [0.0, 110.0]


def test_ineligible_detections_fill_a_gap_and_asteroids_do_not() -> None:
    def middle(**fields: Any) -> list[float | None]:
        return starts(visit(0.0, 20, 3), visit(50.0, 30, 4, **fields), visit(100.0, 40, 5))

    assert middle(rb=0.1) == [0.0]
    assert middle(isdiffpos=-1) == [0.0]
    assert middle(ssdistnr=2.0) == [0.0, 100.0]


def test_a_history_known_in_time_fills_a_gap_and_a_later_one_does_not() -> None:
    first, second = visit(0.0, 20, 3), visit(70.0, 40, 4)
    bridge = {"origin": 1, "candid": 5, "isdiffpos": 1}
    known = point("ZTFa", JD0 + 45, known_jd=JD0 + 70, **bridge)
    assert starts(first, second, points=[known]) == [0.0]
    late = point("ZTFa", JD0 + 45, known_jd=JD0 + 71, **bridge)
    assert starts(first, second, points=[late]) == [0.0, 70.0]
    nothing = limit("ZTFa", JD0 + 45, known_jd=JD0 + 70)
    assert starts(first, second, points=[nothing]) == [0.0, 70.0]


def test_an_episode_ends_where_the_next_one_begins() -> None:
    first, second = Packet(visit(0.0, 20, 3)), Packet(visit(100.0, 40, 4))
    prepared = prepare(archive_of([first, second]), [3.0, 200.0, None])
    rows = prepared.rows.to_pylist()
    assert [(r["episode"], r["horizon_days"]) for r in rows] == [
        (1, 3.0), (1, 200.0), (1, None), (2, 3.0), (2, 200.0), (2, None)
    ]  # fmt: skip
    assert [r["n_det"] for r in rows] == [1] * 6
    assert [r["candid_last"] for r in rows] == [1] * 3 + [10001] * 3
    assert [r["n_visits_before_t0"] for r in rows] == [19] * 3 + [39] * 3
    assert [r["n_det_before_t0"] for r in rows] == [2] * 3 + [3] * 3


def test_an_object_without_t0_has_one_row_that_says_why() -> None:
    rows = prepare(shard([visit(0.0, 9, 1, isdiffpos=-1)]), [3.0, 10.0]).rows.to_pylist()
    assert len(rows) == 1
    row = rows[0]
    assert (row["episode"], row["t0"], row["horizon_days"], row["horizon_complete"]) == (0, None, None, None)
    assert (row["gate"], row["gate_reason"]) == ("too_few_detections", "only_negative")
    assert row["as_of_jd"] == JD0 + 1000


def test_an_object_of_a_table_starts_at_its_first_positive_detection() -> None:
    said = {"origin": 3, "rb": None, "candid": None}
    points = [
        limit("SN1", JD0 - 20, origin=3),
        point("SN1", JD0 - 9, **{**said, "isdiffpos": -1}),
        point("SN1", JD0, **{**said, "isdiffpos": None}),
        point("SN1", JD0 + 8, **{**said, "isdiffpos": None}),
    ]
    rows = prepare(shard([], points), [5.0, None]).rows.to_pylist()
    assert [r["t0"] for r in rows] == [JD0, JD0]
    assert [r["n_det"] for r in rows] == [2, 3]
    assert [r["n_neg"] for r in rows] == [1, 1]
    assert [r["n_nondet"] for r in rows] == [1, 1]


def test_a_table_of_fluxes_is_detected_from_five_sigma_on() -> None:
    flux = {"origin": 3, "magpsf": None, "sigmapsf": None, "isdiffpos": None, "rb": None}
    points = [
        point("TDE", JD0 + day, flux_ujy=value, flux_err_ujy=1.0, **flux)
        for day, value in ((0, 3.0), (2, 6.0), (4, -8.0))
    ]
    row = prepare(shard([], points)).rows.to_pylist()[0]
    assert (row["t0"], row["n_det"], row["n_neg"], row["n_fp"]) == (JD0 + 2, 2, 1, 3)


def test_points_of_another_survey_are_left_out() -> None:
    ptf = point("TDE", JD0 - 3000, origin=3, survey="PTF", rb=None)
    row = prepare(shard([], [ptf, point("TDE", JD0, origin=3, rb=None)])).rows.to_pylist()[0]
    assert (row["t0"], row["n_det"]) == (JD0, 1)


def test_horizons_are_sorted_and_complete_ones_marked() -> None:
    rows = prepare(shard([visit(0.0, 9, 1)]), [None, 30.0, 3.0, 3.0], end=JD0 + 10).rows.to_pylist()
    assert [r["horizon_days"] for r in rows] == [3.0, 30.0, None]
    assert [r["horizon_complete"] for r in rows] == [True, False, True]
    assert [r["as_of_jd"] - JD0 for r in rows] == [3.0, 30.0, 10.0]


@pytest.mark.parametrize("horizons", [[], [-1.0], [float("nan")], [float("inf")]])
def test_wrong_horizons_are_refused(horizons: list[float | None]) -> None:
    with pytest.raises(UserError, match="Horizons must be"):
        prepare_shard(shard([visit(0.0, 9, 1)]), horizons, PAPER, snapshot_jd_max=JD0)
