"""Preprocessing of the upstream profiles against tables recorded with the public code (golden README, section
5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.features.light_curves import Events, event_features
from applecider_batch.features.points import mag_to_flux
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.upstream import (
    CANDIDATE_FIELDS,
    POLICIES,
    event_metadata,
    event_table,
    merge_points,
)

UPSTREAM = get_profile("upstream-main")
JD_DAYS = 1e-8
FLOAT64 = 1e-11
FLOAT32 = 1e-6


def close(ours: np.ndarray, golden: np.ndarray, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(golden, np.float64), rtol=rtol, atol=atol
    )


@pytest.fixture(scope="module")
def merged(shared_golden: Path) -> tuple[list[str], Events]:
    return merge_points(pq.read_table(shared_golden / "photometry_input.parquet"))


def names_of(objects: list[str], events: Events) -> list[str]:
    return [objects[i] for i in events.sequence]


def test_flux_of_a_magnitude(shared_golden: Path) -> None:
    table = pl.read_parquet(shared_golden / "photometry_input.parquet")
    flux, error = mag_to_flux(table["magpsf"].to_numpy(), table["sigmapsf"].to_numpy())
    close(flux, table["flux"].to_numpy(), FLOAT64)
    close(error, table["flux_error"].to_numpy(), FLOAT64)


def test_merged_points(shared_golden: Path, merged: tuple[list[str], Events]) -> None:
    objects, events = merged
    golden = pl.read_parquet(shared_golden / "photometry_merged.parquet").sort("objectId", "mjd", "fid")
    assert names_of(objects, events) == golden["objectId"].to_list()
    np.testing.assert_array_equal(events.fid, golden["fid"].to_numpy())
    close(events.jd, golden["jd"].to_numpy(), 0.0, JD_DAYS)
    close(events.flux, golden["flux"].to_numpy(), FLOAT64)
    close(events.flux_err, golden["flux_error"].to_numpy(), FLOAT64)


def test_events(shared_golden: Path, merged: tuple[list[str], Events]) -> None:
    objects, events = merged
    golden = pl.read_parquet(shared_golden / "photometry_events.parquet").with_row_index("row")
    golden = golden.sort("objectId", "row")
    assert names_of(objects, events) == golden["objectId"].to_list()
    columns = event_table(events)
    np.testing.assert_array_equal(columns["band_id"], golden["band_id"].to_numpy())
    close(events.jd, golden["jd"].to_numpy(), 0.0, JD_DAYS)
    for name in ("dt", "dt_prev"):
        close(columns[name], golden[name].to_numpy(), FLOAT32, JD_DAYS)
    for name in ("logflux", "logflux_err", "has_g_r", "has_r_i"):
        close(columns[name], golden[name].to_numpy(), FLOAT32)
    for name in ("g_r", "g_r_err", "r_i", "r_i_err"):
        close(columns[name], golden[name].fill_null(float("nan")).to_numpy(), FLOAT64, 1e-12)


def test_tensors(shared_golden: Path, merged: tuple[list[str], Events]) -> None:
    objects, events = merged
    with np.load(shared_golden / "photo_tensors.npz") as golden:
        for horizon in (10.0, 30.0, 100.0):
            made = event_features(events, len(objects), UPSTREAM, np.full(len(objects), horizon))
            items = np.flatnonzero(golden["horizon_days"] == np.float32(horizon))
            assert len(items) == len(objects)
            for item in items:
                number = objects.index(str(golden["object_ids"][item]))
                ours = made.values[made.offsets[number] : made.offsets[number + 1]]
                theirs = golden["tensors"][golden["offsets"][item] : golden["offsets"][item + 1]]
                assert ours.shape == theirs.shape
                close(ours, theirs, FLOAT32, JD_DAYS)


def test_metadata_of_events(shared_golden: Path, merged: tuple[list[str], Events]) -> None:
    objects, events = merged
    golden = pl.read_parquet(shared_golden / "multimodal_meta.parquet")
    names = golden["objectId"].unique().to_list()
    candidates = pq.read_table(shared_golden / "alert_candidates.parquet")
    index, columns = event_metadata(objects, events, candidates)
    keep = np.isin(np.array(names_of(objects, events))[index], names)
    index, columns = index[keep], {name: values[keep] for name, values in columns.items()}
    golden = golden.with_row_index("row").sort("objectId", "row")
    assert [objects[i] for i in events.sequence[index]] == golden["objectId"].to_list()
    np.testing.assert_array_equal(events.fid[index], golden["fid_event"].to_numpy())
    close(events.jd[index], golden["jd_event"].to_numpy(), 0.0, JD_DAYS)
    close(columns["jd_alert"], golden["jd_alert"].to_numpy(), 0.0, JD_DAYS)
    close(columns["alert_dt_days"], golden["alert_dt_days"].to_numpy(), FLOAT64, JD_DAYS)
    assert [POLICIES[i] for i in columns["policy"]] == golden["policy"].to_list()
    history = [name for name in golden.columns if name in columns and name not in CANDIDATE_FIELDS]
    history = [name for name in history if name not in ("jd_alert", "alert_dt_days", "policy")]
    assert len(history) == 10
    for name in (*CANDIDATE_FIELDS, *history):
        days = JD_DAYS if "days" in name else 0.0
        close(columns[name], golden[name].to_numpy(), FLOAT32, days)


def test_missing_fields_are_sentinels_and_nan_stays(shared_golden: Path) -> None:
    candidates = pq.read_table(shared_golden / "alert_candidates.parquet").slice(0, 2)
    for name, value in (("sgscore1", None), ("chinr", float("nan"))):
        column = candidates.schema.get_field_index(name)
        candidates = candidates.set_column(column, name, pa.array([value, value], pa.float64()))
    points = pa.table(
        {
            "objectId": candidates["objectId"],
            "jd": candidates["jd"],
            "fid": candidates["fid"],
            "flux": [100.0, 100.0],
            "flux_error": [1.0, 1.0],
        }
    )
    objects, events = merge_points(points)
    _, columns = event_metadata(objects, events, candidates)
    assert set(columns["sgscore1"]) == {-999.0}
    assert np.isnan(columns["chinr"]).all()
