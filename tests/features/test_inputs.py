"""prepare_shard as a whole: bad objects, missing parts, choice of packet, columns of the contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from applecider_batch.archive.read import ShardData
from applecider_batch.errors import UserError
from applecider_batch.features import inputs
from applecider_batch.features.inputs import Prepared, prepare_shard
from applecider_batch.features.points import Alerts
from applecider_batch.features.prepared import ROW_COLUMNS
from applecider_batch.features.profiles import PROFILES, get_profile
from applecider_batch.features.quality import Quality
from applecider_batch.schema import load_table
from tests.features.compare import assert_consistent, row_bytes
from tests.features.tables import JD0, FakeShard, alert, point, shard, table

PAPER = get_profile("paper")
END = JD0 + 100.0


def prepare(data: Any, horizons: list[float | None] | None = None, **kwargs: Any) -> Prepared:
    return prepare_shard(data, horizons or [3.0, None], PAPER, snapshot_jd_max=END, **kwargs)


def good(name: str = "ZTFgood") -> list[dict[str, Any]]:
    return [alert(name, JD0, 91), alert(name, JD0 + 2, 92)]


def beside_good(
    alerts: list[dict[str, Any]], points: list[dict[str, Any]] | None = None
) -> tuple[Prepared, list]:
    """Prepare objects beside a good one, and check that the good one does not notice."""
    whole = shard([*good(), *alerts])
    if points is not None:
        own = shard(good()).photometry
        whole = dataclasses.replace(
            whole,
            objects=shard([*good(), *alerts], [*own.to_pylist(), *points]).objects,
            photometry=pa.concat_tables([own, table("photometry", points)]),
        )
    prepared = prepare(whole)
    assert_consistent(prepared)
    alone = row_bytes(prepare(shard(good())))
    assert {key: row for key, row in row_bytes(prepared).items() if key[0] == "ZTFgood"} == alone
    assert all(r["error_code"] is None for r in prepared.rows.to_pylist())
    return prepared, [row for row in prepared.rows.to_pylist() if row["objectId"] != "ZTFgood"]


@pytest.mark.parametrize("mag", [float("nan"), float("inf"), -float("inf"), 1e30, -50.0, 99.99, None])
@pytest.mark.parametrize("field", ["magpsf", "sigmapsf"])
def test_absurd_photometry_is_left_out(field: str, mag: float | None) -> None:
    bad = alert("ZTFbad", JD0, 1, **{field: mag})
    prepared, rows = beside_good([bad])
    assert len(rows) == 2
    assert rows[0]["t0"] == JD0
    assert rows[0]["quality_flags"] & Quality.ABSURD_PHOTOMETRY
    number = prepared.rows["objectId"].to_pylist().index("ZTFbad")
    assert prepared.photometry.row_index[number] == -1
    assert prepared.image.row_index[number] >= 0


def test_only_negative_detections() -> None:
    _, rows = beside_good([alert("ZTFneg", JD0, 1, isdiffpos=-1), alert("ZTFneg", JD0 + 2, 2, isdiffpos=-1)])
    assert len(rows) == 1
    assert (rows[0]["t0"], rows[0]["n_neg"], rows[0]["n_det"]) == (None, 2, 2)
    assert rows[0]["quality_flags"] & Quality.NO_T0
    assert rows[0]["ra"] == pytest.approx(150.0)


def test_one_detection() -> None:
    prepared, rows = beside_good([alert("ZTFone", JD0, 1)])
    assert [row["gate"] for row in rows] == ["too_few_detections"] * 2
    number = prepared.rows["objectId"].to_pylist().index("ZTFone")
    item = prepared.photometry.row_index[number]
    values = prepared.photometry.values[prepared.photometry.offsets[item] :][:1]
    np.testing.assert_allclose(values[0, [0, 1, 4, 5, 6]], [0, 0, 0, 1, 0])


def test_without_stamps() -> None:
    prepared, rows = beside_good([alert("ZTFbare", JD0, 1, stamp_status=21)])
    assert [row["candid_image"] for row in rows] == [None, None]
    assert all(row["quality_flags"] & Quality.NO_STAMPS for row in rows)
    assert 1 not in prepared.image.candid


def test_one_corrupt_stamp_sends_the_row_to_the_packet_before() -> None:
    _, rows = beside_good([alert("ZTFc", JD0, 1), alert("ZTFc", JD0 + 1, 2, stamp_status=2)])
    assert [row["candid_image"] for row in rows] == [1, 1]
    # As of t0 + 3 d; for the full history as of the last alert.
    assert [row["image_age_days"] for row in rows] == [3.0, 1.0]


def test_a_packet_with_a_time_that_is_no_number() -> None:
    _, rows = beside_good([alert("ZTFwhen", float("nan"), 1)], [point("ZTFwhen", float("nan"))])
    assert len(rows) == 1
    assert rows[0]["t0"] is None
    assert rows[0]["n_det"] == 0


def test_the_image_is_the_latest_eligible_packet() -> None:
    alerts = [
        alert("ZTFa", JD0, 1),
        alert("ZTFa", JD0 + 1, 2),
        alert("ZTFa", JD0 + 2, 3, rb=0.1),
        alert("ZTFa", JD0 + 2.5, 4, isdiffpos=-1),
        alert("ZTFa", JD0 + 4, 5),
    ]
    prepared = prepare(shard(alerts), [0.0, 3.0, None])
    assert prepared.rows["candid_image"].to_pylist() == [1, 2, 5]
    np.testing.assert_allclose(prepared.rows["image_age_days"].to_pylist(), [0.0, 2.0, 0.0])


@pytest.mark.parametrize("name", list(PROFILES))
def test_an_empty_shard(name: str) -> None:
    empty = FakeShard([], *(load_table(t).empty() for t in ("alerts", "photometry", "spectra")))
    prepared = prepare_shard(empty, [3.0, None], get_profile(name), snapshot_jd_max=END)
    assert_consistent(prepared)
    assert prepared.rows.num_rows == 0


def test_an_object_whose_tables_are_empty() -> None:
    data = dataclasses.replace(shard(good()), objects=["ZTFnothing", *shard(good()).objects])
    rows = [r for r in prepare(data).rows.to_pylist() if r["objectId"] == "ZTFnothing"]
    assert [(r["episode"], r["gate_reason"]) for r in rows] == [(0, "no_eligible_detection")]
    assert rows[0]["quality_flags"] & Quality.NO_ALERTS


def test_rows_are_in_the_catalogues_schema() -> None:
    rows = prepare(shard(good())).rows
    catalogue = load_table("catalogue")
    assert rows.column_names == list(ROW_COLUMNS)
    assert [rows.schema.field(n).type for n in ROW_COLUMNS] == [
        catalogue.column(n).arrow_type for n in ROW_COLUMNS
    ]
    for name in ROW_COLUMNS:
        assert catalogue.column(name).nullable or rows[name].null_count == 0


def test_detections_of_both_signs_and_all_bands() -> None:
    alerts = [
        alert("ZTFa", JD0, 1, fid=1, magpsf=17.0, rb=0.6, drb=0.2, programid=1, schemavsn="3.3"),
        alert("ZTFa", JD0 + 1, 2, fid=2, magpsf=16.0, isdiffpos=-1, rb=0.9, drb=0.7, programid=2),
        alert("ZTFa", JD0 + 2, 3, fid=3, magpsf=18.0, rb=0.8, drb=0.9, programid=2, schemavsn="4.01"),
    ]
    row = prepare(shard(alerts), [None]).rows.to_pylist()[0]
    assert [row[f"n_det{band}"] for band in ("", "_g", "_r", "_i")] == [3, 1, 1, 1]
    assert (row["n_neg"], row["mag_peak_g"], row["mag_peak_r"]) == (1, pytest.approx(17.0), None)
    assert (row["rb_max"], row["drb_max"], row["drb_median"]) == pytest.approx((0.9, 0.9, 0.7))
    assert (row["schemavsn_min"], row["schemavsn_max"], row["programid_mask"]) == ("3.3", "4.02", 3)
    assert (row["candid_first"], row["candid_last"]) == (1, 3)
    assert (row["jd_first"], row["jd_last"]) == (JD0, JD0 + 2)


def test_positions_across_zero_hours() -> None:
    alerts = [alert("ZTFa", JD0, 1, ra=359.9999, dec=-3.0), alert("ZTFa", JD0 + 1, 2, ra=0.0003, dec=-3.0002)]
    row = prepare(shard(alerts), [None]).rows.to_pylist()[0]
    assert (row["ra"], row["dec"]) == pytest.approx((0.0001, -3.0001))


def test_galactic_latitude_is_astropys() -> None:
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    positions = [(10.0, -80.0), (192.85948, 27.12825), (266.4, -29.0), (80.0, 5.0)]
    alerts = [alert(f"ZTF{i}", JD0, i, ra=ra, dec=dec) for i, (ra, dec) in enumerate(positions)]
    rows = prepare(shard(alerts), [None]).rows.to_pylist()
    sky = SkyCoord([r["ra"] for r in rows] * u.deg, [r["dec"] for r in rows] * u.deg).galactic.b.deg
    np.testing.assert_allclose([r["galactic_b"] for r in rows], sky, atol=1e-3)


def test_simulated_packets_say_so() -> None:
    def says(publisher: str | None) -> bool | None:
        return prepare(shard([alert("ZTFa", JD0, 1, publisher=publisher)])).rows["simulated"][0].as_py()

    assert says("applecider-batch simulation") is True
    assert says("ZTF (www.ztf.caltech.edu)") is False
    assert says(None) is None


def test_only_the_modalities_asked_for() -> None:
    prepared = prepare(shard(good()), modalities={"image"})
    assert (prepared.photometry.row_index == -1).all()
    assert (prepared.image.row_index >= 0).all()
    assert_consistent(prepared)
    with pytest.raises(UserError, match="Unknown modalities x-rays; allowed are photometry, image, spectra"):
        prepare(shard(good()), modalities={"x-rays"})


def failing_for(name: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    real = inputs.load_alerts

    def load(rows: pa.Table, objects: pa.Array) -> Alerts:
        if name in objects.to_pylist():
            raise error("broken on purpose")
        return real(rows, objects)

    monkeypatch.setattr(inputs, "load_alerts", load)


def test_an_object_that_fails_has_its_row_and_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"ZTF{i}" for i in range(7)]
    data = shard([a for name in names for a in good(name)])
    before = row_bytes(prepare(data))
    failing_for("ZTF3", monkeypatch, ZeroDivisionError)
    prepared = prepare(data)
    assert_consistent(prepared)
    after = row_bytes(prepared)
    assert {k: v for k, v in before.items() if k[0] != "ZTF3"} == {
        k: v for k, v in after.items() if k[0] != "ZTF3"
    }
    row = next(r for r in prepared.rows.to_pylist() if r["objectId"] == "ZTF3")
    assert (row["error_code"], row["gate"]) == ("features_failed", None)
    assert row["object_error"] == "ZeroDivisionError: broken on purpose"
    assert prepared.rows["objectId"].to_pylist().count("ZTF3") == 1


@pytest.mark.parametrize("error", [MemoryError, UserError])
def test_what_is_no_objects_fault_is_raised(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    failing_for("ZTFgood", monkeypatch, error)
    with pytest.raises(error):
        prepare(shard(good()))


@pytest.mark.parametrize("name", list(PROFILES))
def test_all_real_alerts(real_shard: tuple[ShardData, float], name: str) -> None:
    data, jd_max = real_shard
    prepared = prepare_shard(data, [3.0, 10.0, 30.0, None], get_profile(name), snapshot_jd_max=jd_max)
    assert_consistent(prepared)
    assert set(prepared.rows["objectId"].to_pylist()) == set(data.objects)
    assert prepared.rows["error_code"].null_count == prepared.rows.num_rows
    assert set(prepared.image.candid.tolist()) <= set(data.alerts["candid"].to_pylist())


def test_real_objects_do_not_depend_on_each_other(real_shard: tuple[ShardData, float]) -> None:
    data, jd_max = real_shard

    def rows(names: list[str]) -> dict:
        wanted = pa.array(names)
        part = [t.filter(pc.is_in(t["objectId"], value_set=wanted)) for t in (data.alerts, data.photometry)]
        made = prepare_shard(
            ShardData(names, *part, data.spectra), [3.0, None], PAPER, snapshot_jd_max=jd_max
        )
        return row_bytes(made)

    together = rows(data.objects)
    apart: dict = {}
    for first in range(0, len(data.objects), 37):
        apart |= rows(data.objects[first : first + 37])
    assert apart == together
