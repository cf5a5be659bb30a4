"""Light curves: the vectorised code against a plain loop, and the corners of the merge."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from applecider_batch.archive.read import ShardData
from applecider_batch.features.inputs import Prepared, prepare_shard
from applecider_batch.features.light_curves import Events, event_features, merge_events
from applecider_batch.features.profiles import get_profile
from tests.features import reference
from tests.features.tables import JD0, alert, forced, limit, point, shard

PAPER = get_profile("paper")


def sequence_of(prepared: Prepared, row: int) -> np.ndarray:
    item = prepared.photometry.row_index[row]
    if item < 0:
        return np.empty((0, 7), np.float32)
    offsets = prepared.photometry.offsets
    return prepared.photometry.values[offsets[item] : offsets[item + 1]]


def test_every_real_row_equals_the_plain_loop(real_shard: tuple[ShardData, float]) -> None:
    data, jd_max = real_shard
    prepared = prepare_shard(data, [3.0, 10.0, 30.0, None], PAPER, snapshot_jd_max=jd_max)
    alerts: dict[str, list[dict]] = {}
    points: dict[str, list[dict]] = {}
    for row in data.alerts.to_pylist():
        alerts.setdefault(row["objectId"], []).append(row)
    for row in data.photometry.to_pylist():
        points.setdefault(row["objectId"], []).append(row)
    rows = prepared.rows.select(["objectId", "episode", "t0", "as_of_jd"]).to_pylist()
    n_episodes = {row["objectId"]: row["episode"] for row in rows}  # rows are in order: the last one stays
    known: dict[tuple, list[list[float]]] = {}
    for number, row in enumerate(rows):
        name = row["objectId"]
        t0s = reference.episodes(alerts[name], points[name])
        if row["episode"] == 0:
            assert not t0s
            assert prepared.photometry.row_index[number] == -1
            continue
        assert row["t0"] == t0s[row["episode"] - 1]
        assert n_episodes[name] == len(t0s)
        t0_next = t0s[row["episode"]] if row["episode"] < len(t0s) else float("inf")
        seen = reference.visible(points[name], row["t0"], t0_next, row["as_of_jd"])
        key = (name, row["episode"], len(seen))
        if key not in known:
            known[key] = reference.sequence(reference.events(seen))
        expected = np.array(known[key], np.float64).reshape(-1, 7)
        ours = sequence_of(prepared, number)
        assert ours.shape == expected.shape, row
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def merged(
    jd: list[float], fid: list[int], flux: list[float], error: list[float], **changes: object
) -> Events:
    profile = dataclasses.replace(PAPER, **changes)  # type: ignore[arg-type]
    n = len(jd)
    arrays = (np.zeros(n, np.int64), np.array(fid), np.array(jd), np.array(flux), np.array(error))
    return merge_events(*arrays, profile)


def test_a_group_is_anchored_at_its_first_point() -> None:
    # 0.4 d apart each: chained to the previous one all would be one group.
    events = merged([0.0, 0.4, 0.8, 1.2], [1] * 4, [10.0] * 4, [1.0] * 4)
    assert events.n_points.tolist() == [2, 2]


def test_exactly_twelve_hours_belongs_to_the_group() -> None:
    assert merged([JD0, JD0 + 0.5], [1, 1], [1.0, 1.0], [1.0, 1.0]).n_points.tolist() == [2]
    beyond = np.nextafter(JD0 + 0.5, np.inf)
    assert merged([JD0, beyond], [1, 1], [1.0, 1.0], [1.0, 1.0]).n_points.tolist() == [1, 1]


def test_bands_are_merged_apart() -> None:
    assert merged([0.0, 0.1], [1, 2], [1.0, 1.0], [1.0, 1.0]).fid.tolist() == [1, 2]


def test_weights_are_inverse_variances_of_signed_fluxes() -> None:
    events = merged([0.0, 0.1], [1, 1], [10.0, -2.0], [1.0, 2.0])
    assert events.flux[0] == pytest.approx((10.0 - 2.0 / 4) / 1.25)
    assert events.flux_err[0] == pytest.approx(1 / np.sqrt(1.25))
    assert events.jd[0] == pytest.approx((0.1 / 4) / 1.25)
    absolute = merged([0.0, 0.1], [1, 1], [10.0, -2.0], [1.0, 2.0], signed_flux=False)
    assert absolute.flux[0] == pytest.approx((10.0 + 2.0 / 4) / 1.25)


def test_events_that_are_not_positive_leave_and_are_counted() -> None:
    events = merged([0.0, 1.0, 2.0], [1, 1, 1], [-5.0, 10.0, 20.0], [1.0, 1.0, 1.0])
    made = event_features(events, 1, PAPER)
    assert made.n_not_positive.tolist() == [1]
    assert len(made.values) == 2
    # The clock starts at the first event that is left.
    assert made.values[0, 0] == 0.0
    assert made.values[1, 0] == np.float32(np.log1p(1.0))


def test_no_more_than_the_first_257_events() -> None:
    n = 300
    made = event_features(merged([float(i) for i in range(n)], [1] * n, [10.0] * n, [1.0] * n), 1, PAPER)
    assert len(made.values) == 257
    assert made.n_cut.tolist() == [n - 257]
    assert made.values[-1, 0] == np.float32(np.log1p(256.0))


def test_a_cut_on_dt() -> None:
    events = merged([0.0, 5.0, 11.0], [1, 1, 1], [10.0] * 3, [1.0] * 3)
    assert len(event_features(events, 1, PAPER, np.array([5.0])).values) == 2
    assert len(event_features(events, 1, PAPER, np.array([np.nan])).values) == 3


def one_object(points: list[dict], **kwargs: object) -> Prepared:
    data = shard([alert("ZTFa", JD0, 1)], [point("ZTFa", JD0, candid=1), *points])
    return prepare_shard(data, [None], PAPER, snapshot_jd_max=JD0 + 100)


def test_forced_points_count_from_five_sigma_and_in_either_sign() -> None:
    points = [
        forced("ZTFa", JD0 - 10, 3.0, known_jd=JD0),
        forced("ZTFa", JD0 - 5, 8.0, known_jd=JD0),
        forced("ZTFa", JD0 - 3, -9.0, known_jd=JD0),
    ]
    prepared = one_object(points)
    curve = prepared.light_curves.to_pylist()
    assert [round(event["flux_ujy"], 4) for event in curve[:2]] == [8.0, -9.0]
    assert len(curve) == 3
    assert len(sequence_of(prepared, 0)) == 2
    assert prepared.rows["n_fp"].to_pylist() == [3]


def test_a_forced_point_of_a_detected_exposure_does_not_count_twice() -> None:
    prepared = one_object([forced("ZTFa", JD0 + 1e-6, 500.0, known_jd=JD0)])
    assert prepared.light_curves["n_points"].to_pylist() == [1]


def test_a_table_beside_packets_does_not_count_twice() -> None:
    repeated = point("ZTFa", JD0 + 1e-5, origin=3, rb=None, isdiffpos=None)
    new = point("ZTFa", JD0 + 2, origin=3, rb=None, isdiffpos=None)
    prepared = one_object([repeated, new])
    assert prepared.light_curves["n_points"].to_pylist() == [1, 1]
    assert prepared.rows["n_det"].to_pylist() == [2]


def test_the_latest_revision_known_counts() -> None:
    revisions = [
        forced("ZTFa", JD0 - 5, 20.0, pid=7, known_jd=JD0),
        forced("ZTFa", JD0 - 5, 30.0, pid=7, known_jd=JD0 + 4),
        forced("ZTFa", JD0 - 5, 40.0, pid=7, known_jd=JD0 + 8),
    ]
    data = shard([alert("ZTFa", JD0, 1)], [point("ZTFa", JD0, candid=1), *revisions])
    prepared = prepare_shard(data, [3.0, 5.0, None], PAPER, snapshot_jd_max=JD0 + 100)
    first = [10 ** sequence_of(prepared, row)[0, 2] for row in range(3)]
    np.testing.assert_allclose(first, [20.0, 30.0, 40.0], rtol=1e-6)
    assert prepared.rows["n_fp"].to_pylist() == [1, 1, 1]


def test_upper_limits_are_no_events() -> None:
    prepared = one_object([limit("ZTFa", JD0 + 3)])
    assert len(prepared.light_curves) == 1
    assert prepared.rows["n_nondet"].to_pylist() == [1]


def test_equal_sequences_exist_once() -> None:
    data = shard([alert("ZTFa", JD0, 1), alert("ZTFa", JD0 + 20, 2)])
    prepared = prepare_shard(data, [3.0, 10.0, 30.0, None], PAPER, snapshot_jd_max=JD0 + 100)
    assert prepared.photometry.row_index.tolist() == [0, 0, 1, 1]
    assert prepared.photometry.offsets.tolist() == [0, 1, 3]


@pytest.mark.parametrize("name", ["paper", "upstream-main", "upstream-archive"])
def test_points_before_t0_belong_to_the_episode_for_thirty_days(name: str) -> None:
    early = [point("ZTFa", JD0 - age, origin=1, candid=int(age), known_jd=JD0) for age in (29.0, 31.0)]
    data = shard([alert("ZTFa", JD0, 1)], [point("ZTFa", JD0, candid=1), *early])
    prepared = prepare_shard(data, [None], get_profile(name), snapshot_jd_max=JD0)
    assert len(sequence_of(prepared, 0)) == 2
    assert prepared.rows["jd_first"].to_pylist() == [JD0 - 29]


@pytest.mark.parametrize("hours", [5.0, 7.0, 10.0, 11.0, 13.0])
def test_the_window_is_measured_by_the_difference_of_times(hours: float) -> None:
    """jd + window rounds to the grid of Julian dates, jd[j] - jd[i] is exact: the latter decides."""
    window = hours / 24.0
    jd = np.sort(JD0 + np.arange(400) * window / 4)
    expected, first = [], None
    for when in jd.tolist():
        if first is None or when - first > window:
            first = when
            expected.append(0)
        expected[-1] += 1
    n = len(jd)
    events = merged(jd.tolist(), [1] * n, [1.0] * n, [1.0] * n, merge_hours=hours)
    assert events.n_points.tolist() == expected
