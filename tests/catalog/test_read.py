"""read_catalog: Polars, astropy and coordinates say the same as the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_catalog, read_table
from applecider_batch.catalog.store import iter_rows, open_catalog
from applecider_batch.digest import hash64_one
from applecider_batch.errors import UserError
from tests.catalog.synthetic import make_rows, object_names, write_run

NAMES = object_names(40)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("read")
    build_catalog(str(write_run(folder / "run", NAMES)), str(folder / "cat"))
    return str(folder / "cat")


def test_frame_is_polars_with_all_rows(catalogue: str) -> None:
    frame = read_catalog(catalogue)
    assert isinstance(frame, pl.DataFrame)
    want = make_rows(NAMES).to_pylist()
    assert frame["objectId"].to_list() == [row["objectId"] for row in want]
    assert frame["prob_tde"].to_list() == [row["prob_tde"] for row in want]


def test_one_horizon_and_some_columns(catalogue: str) -> None:
    assert read_catalog(catalogue, columns=["prob_cv", "objectId"]).columns == ["prob_cv", "objectId"]
    frame = read_catalog(catalogue, horizon=10)
    assert set(frame["horizon_days"].to_list()) == {10.0}
    full = read_catalog(catalogue, columns=["objectId"], horizon="full")
    assert full.columns == ["objectId"]
    assert full.height == len(NAMES)
    with pytest.raises(UserError, match=r"no horizon '7'; it has 10, 3, 30, full"):
        read_catalog(catalogue, horizon=7)
    with pytest.raises(UserError, match=r"no column \['colour'\]"):
        read_catalog(catalogue, columns=["colour"])


def test_astropy_has_units_and_masks(catalogue: str) -> None:
    from astropy import units as u

    frame = read_catalog(catalogue)
    table = frame.to_astropy()
    assert table["ra"].unit == u.deg
    assert table["mag_peak_g"].unit == u.mag
    assert table["horizon_days"].unit == u.day
    null = frame["prob_top1"].is_null().to_numpy()
    assert null.any()
    assert np.array_equal(table["prob_top1"].mask, null)
    assert np.array_equal(np.asarray(table["prob_top1"])[~null], frame["prob_top1"].to_numpy()[~null])
    assert np.array_equal(table["horizon_days"].mask, frame["horizon_days"].is_null().to_numpy())
    assert table["ra"].info.description.startswith("Right ascension")
    assert table["ra"].info.meta["ucd"] == "pos.eq.ra;meta.main"
    assert list(table["objectId"]) == frame["objectId"].to_list()


def test_coords(catalogue: str) -> None:
    frame = read_catalog(catalogue)
    assert np.allclose(frame.coords.ra.deg, frame["ra"].to_numpy())
    assert np.allclose(frame.coords.dec.deg, frame["dec"].to_numpy())


def test_only_the_row_groups_of_some_objects_are_read(tmp_path: Path) -> None:
    names = object_names(40)
    build_catalog(str(write_run(tmp_path / "run", names)), str(tmp_path / "cat"), rows_per_part=20)
    store, info = open_catalog(str(tmp_path / "cat"))
    whole = read_table(str(tmp_path / "cat")).to_pylist()
    ends = [table.column("objectId")[at].as_py() for table in iter_rows(store, info) for at in (0, -1)]
    for name in {*ends, names[1], names[22]}:
        hashes = np.array([hash64_one(name)], np.uint64)
        read = list(iter_rows(store, info, hashes=hashes))
        assert 1 <= len(read) <= 2 < len(info["parts"])
        mine = [row for table in read for row in table.to_pylist() if row["objectId"] == name]
        assert mine == [row for row in whole if row["objectId"] == name]
    assert list(iter_rows(store, info, hashes=np.empty(0, np.uint64))) == []
