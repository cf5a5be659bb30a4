"""The as-of wall: packets later than a row's as-of change no byte of the row or of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from applecider_batch.archive.read import ShardData
from applecider_batch.features.curve_summary import CURVE_SUMMARY
from applecider_batch.features.cuts import own_presets, read_own
from applecider_batch.features.gate_model import Judges, LearnedGate
from applecider_batch.features.inputs import MODALITIES, prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.models.seeding import PACKAGED_GATE
from tests.features import reference
from tests.features.compare import assert_consistent, row_bytes
from tests.features.packets import Packet, archive_of, histories, surveys
from tests.features.tables import JD0, FakeShard, alert, forced, point, spectrum

PAPER = get_profile("paper")
HORIZONS = [0.0, 3.0, 10.0, 100.0, None]
END = JD0 + 2000.0
JUDGES = Judges(
    own_presets(read_own("[bright]\nalert = ['magpsf < 16']\nrow = ['n_neg = 0']", "test")),
    LearnedGate.from_bytes(PACKAGED_GATE.read_bytes(), "packaged"),
)
EXAMPLES = settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def rows_until(data: FakeShard | ShardData, jd: float, profile: str = "paper", end: float = END) -> dict:
    wanted = (*MODALITIES, CURVE_SUMMARY) if profile == "paper" else MODALITIES
    prepared = prepare_shard(
        data, HORIZONS, get_profile(profile), snapshot_jd_max=end, modalities=wanted, judges=JUDGES
    )
    assert_consistent(prepared)
    return row_bytes(prepared, lambda row: row["episode"] > 0 and row["as_of_jd"] <= jd)


def altered(packet: Packet, history: tuple) -> Packet:
    """A later packet with other content and another history (the same candid)."""
    a = {**packet.alert, "magpsf": 14.0, "isdiffpos": 1, "rb": 0.99, "ssdistnr": None, "ncovhist": 999}
    return Packet(a, history)


@EXAMPLES
@given(surveys(), st.data(), st.sampled_from(["paper", "upstream-main"]))
def test_later_packets_change_no_byte(packets: list[Packet], data: st.DataObject, name: str) -> None:
    # At the very end of some row's horizon, where a packet of the next night could tell of the last one.
    starts = [p.alert["jd"] for p in packets] or [JD0]
    cut = data.draw(st.sampled_from(starts)) + data.draw(st.sampled_from([0.0, 3.0, 10.0, 100.0]))
    early = [p for p in packets if p.alert["jd"] <= cut]
    late = [p for p in packets if p.alert["jd"] > cut]
    changed = []
    for number, p in enumerate(late):
        kind = data.draw(st.sampled_from(["as it is", "dropped", "altered"]))
        history = data.draw(histories(p.alert["objectId"], p.alert["jd"], 900 + number))
        if kind != "dropped":
            changed.append(altered(p, history) if kind == "altered" else p)
    whole = rows_until(archive_of(packets), cut, name)
    assert rows_until(archive_of(early), cut, name) == whole
    assert rows_until(archive_of(early + changed), cut, name) == whole


@EXAMPLES
@given(surveys())
def test_an_object_does_not_depend_on_its_neighbours(packets: list[Packet]) -> None:
    together = rows_of(packets)
    alone: dict = {}
    for name in {p.alert["objectId"] for p in packets}:
        alone |= rows_of([p for p in packets if p.alert["objectId"] == name])
    assert alone == together


def rows_of(packets: list[Packet]) -> dict:
    wanted = (*MODALITIES, CURVE_SUMMARY)
    return row_bytes(
        prepare_shard(
            archive_of(packets), HORIZONS, PAPER, snapshot_jd_max=END, modalities=wanted, judges=JUDGES
        )
    )


@EXAMPLES
@given(surveys())
def test_made_up_objects_equal_the_plain_loop(packets: list[Packet]) -> None:
    data = archive_of(packets)
    prepared = prepare_shard(data, HORIZONS, PAPER, snapshot_jd_max=END)
    assert_consistent(prepared)
    for number, row in enumerate(prepared.rows.to_pylist()):
        own = [r for r in data.alerts.to_pylist() if r["objectId"] == row["objectId"]]
        points = [r for r in data.photometry.to_pylist() if r["objectId"] == row["objectId"]]
        t0s = reference.episodes(own, points)
        if row["episode"] == 0:
            assert not t0s
            continue
        assert row["t0"] == t0s[row["episode"] - 1]
        t0_next = t0s[row["episode"]] if row["episode"] < len(t0s) else float("inf")
        seen = reference.visible(points, row["t0"], t0_next, row["as_of_jd"])
        expected = np.array(reference.sequence(reference.events(seen))).reshape(-1, 7)
        item, offsets = prepared.photometry.row_index[number], prepared.photometry.offsets
        ours = (
            prepared.photometry.values[offsets[item] : offsets[item + 1]] if item >= 0 else np.empty((0, 7))
        )
        np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-6)


def test_a_late_history_and_a_revised_forced_flux_are_not_seen() -> None:
    """The two ways in which a later packet speaks of the time before the wall."""
    first = Packet(alert("ZTFa", JD0, 1), (bare(forced("ZTFa", JD0 - 3, 40.0, pid=3)),))
    late = Packet(
        alert("ZTFa", JD0 + 5, 2),
        (
            bare(forced("ZTFa", JD0 - 3, 60.0, pid=3)),
            bare(point("ZTFa", JD0 - 2, origin=1, candid=77, magpsf=16.0)),
        ),
    )
    wall = JD0 + 3
    assert rows_until(archive_of([first, late]), wall) == rows_until(archive_of([first]), wall)
    # The test can fail: with the late packet visible its points do change the row.
    assert rows_until(archive_of([first, late]), END) != rows_until(archive_of([first]), END)


def bare(row: dict) -> dict:
    return {k: v for k, v in row.items() if k != "known_jd"}


def test_late_spectra_are_not_seen() -> None:
    packets = [Packet(alert("ZTFa", JD0, 1))]
    early, late = spectrum("ZTFa", "s1", JD0 + 2), spectrum("ZTFa", "s2", JD0 + 1.0)
    before = rows_until(archive_of(packets, [early]), JD0 + 3)
    assert rows_until(archive_of(packets, [early, spectrum("ZTFa", "s3", JD0 + 3.01)]), JD0 + 3) == before
    assert rows_until(archive_of(packets, [early, late]), JD0 + 3) != before
    nothing = rows_until(archive_of(packets), JD0 + 3)
    assert rows_until(archive_of(packets, [spectrum("ZTFa", "s3", JD0 + 3.01)]), JD0 + 3) == nothing != before


def packets_until(data: ShardData, jd: float) -> ShardData:
    alerts = data.alerts.filter(pc.less_equal(data.alerts["jd"], jd))
    photometry = data.photometry.filter(pc.less_equal(data.photometry["known_jd"], jd))
    names = set(alerts["objectId"].to_pylist()) | set(photometry["objectId"].to_pylist())
    return ShardData([n for n in data.objects if n in names], alerts, photometry, data.spectra)


@pytest.mark.parametrize("profile", ["paper", "upstream-main"])
def test_real_objects_behind_the_wall(real_shard: tuple[ShardData, float], profile: str) -> None:
    data, jd_max = real_shard
    seen = 0
    for jd in np.quantile(data.alerts["jd"].to_numpy(), [0.05, 0.2, 0.5, 0.9]):
        whole = rows_until(data, float(jd), profile, jd_max)
        assert rows_until(packets_until(data, float(jd)), float(jd), profile, jd_max) == whole
        seen += len(whole)
    assert seen > 500


def test_real_nights_ingested_later_change_nothing(
    shared_data: Path, ingest_real: Callable[[list[Path]], tuple[ShardData, float]]
) -> None:
    """The same through the archive: with and without the nights after the wall."""
    nights = sorted((shared_data / "alerts" / "archive").glob("*.tar.gz"))
    everything, jd_max = ingest_real(nights)
    last, wall = ingest_real(nights[: 2 * len(nights) // 3])
    assert wall < jd_max
    behind = rows_until(last, wall, end=jd_max)
    assert rows_until(everything, wall, end=jd_max) == behind
    assert behind
