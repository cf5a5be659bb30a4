"""Exports, each read back by the tool it is for."""

from __future__ import annotations

import builtins
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.export import export_catalog
from applecider_batch.catalog.hats_export import export_hats
from applecider_batch.catalog.hats_pixels import empty_pixels, partition_pixels
from applecider_batch.catalog.read import read_catalog, read_table
from applecider_batch.catalog.store import open_catalog
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from tests.catalog.synthetic import object_names, write_run

NAMES = object_names(120)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("export")
    build_catalog(str(write_run(folder / "run", NAMES)), str(folder / "cat"))
    return str(folder / "cat")


def test_parquet_is_the_same_table(catalogue: str, tmp_path: Path) -> None:
    answer = export_catalog(catalogue, str(tmp_path / "c.parquet"), "parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    assert answer["rows"] == table.num_rows
    assert table.equals(read_table(catalogue))
    assert table.schema.field("ra").metadata[b"unit"] == b"deg"
    export_catalog(catalogue, str(tmp_path / "h.parquet"), "parquet", horizon=10)
    assert set(pq.read_table(tmp_path / "h.parquet")["horizon_days"].to_pylist()) == {10.0}


def test_csv_reads_back(catalogue: str, tmp_path: Path) -> None:
    export_catalog(catalogue, str(tmp_path / "c.csv"), "csv")
    schema = load_table("catalogue").arrow
    options = pyarrow.csv.ConvertOptions(
        column_types={field.name: field.type for field in schema},
        strings_can_be_null=True, quoted_strings_can_be_null=False,
    )  # fmt: skip
    back = pyarrow.csv.read_csv(tmp_path / "c.csv", convert_options=options)
    assert back.cast(schema).equals(read_table(catalogue))


def test_fits_round_trip(catalogue: str, tmp_path: Path) -> None:
    from astropy.table import Table

    export_catalog(catalogue, str(tmp_path / "c.fits"), "fits")
    back = Table.read(tmp_path / "c.fits")
    want = read_table(catalogue)
    assert str(back["ra"].unit) == "deg"
    for column in load_table("catalogue").columns:
        null = want[column.name].is_null().to_numpy()
        mask = np.asarray(getattr(back[column.name], "mask", False)) & np.ones(len(back), bool)
        values = want[column.name].to_pylist()
        for row in range(len(back)):
            cell = back[column.name][row]
            if null[row]:
                empty = column.type == "string" and (mask[row] or cell == "")
                assert empty or mask[row] or np.isnan(cell), (column.name, row)
            elif column.type == "uint64":
                assert int(cell) == values[row]
            else:
                assert not mask[row]
                assert cell == values[row], column.name


def test_ecsv_round_trip(catalogue: str, tmp_path: Path) -> None:
    from astropy.table import Table

    out = tmp_path / "c.ecsv"
    export_catalog(catalogue, str(out), "ecsv", horizon="full")
    read = Table.read(out, format="ascii.ecsv")
    table = read_table(catalogue, horizon="full")
    assert read.colnames == table.column_names
    assert len(read) == table.num_rows
    assert read["ra"].unit == "deg"
    assert read["ra"].info.meta["ucd"] == "pos.eq.ra;meta.main"
    for name in ("objectId", "t0", "prob_sni", "n_det", "simulated", "class_top1"):
        expected = table.column(name).to_pylist()
        masked = np.ma.getmaskarray(read[name]) if hasattr(read[name], "mask") else np.zeros(len(read), bool)
        found = [None if m else v for v, m in zip(read[name].tolist(), masked, strict=True)]
        assert found == pytest.approx(expected) if name == "prob_sni" else found == expected, name
    assert "content_sha256" in read.meta


def test_votable_is_valid_and_keeps_nulls(catalogue: str, tmp_path: Path) -> None:
    from astropy.io.votable import parse

    path = tmp_path / "c.vot"
    export_catalog(catalogue, str(path), "votable", horizon="full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = parse(path, verify="exception")
    table = document.get_first_table()
    want = read_table(catalogue, horizon="full")
    ucds = {field.name: (field.ucd, str(field.unit or "")) for field in table.fields}
    assert ucds["ra"] == ("pos.eq.ra;meta.main", "deg")
    assert ucds["prob_sni"][0] == "stat.probability;src.class"
    assert {info.name: info.value for info in document.resources[0].infos}["trained"] == "False"
    back = table.to_table()
    for name in (
        "objectId",
        "prob_tde",
        "n_det",
        "drb_available",
        "candid_image",
        "class_top1",
        "horizon_days",
    ):
        null = want[name].is_null().to_numpy()
        values = want[name].to_pylist()
        for row in range(len(back)):
            cell = back[name][row]
            if null[row]:
                assert cell is np.ma.masked or cell == "" or np.isnan(cell), (name, row, cell)
            else:
                assert cell == values[row], (name, row)


def test_unknown_format_and_horizon_are_refused(catalogue: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'xlsx' is no export format; allowed are parquet, csv, ecsv, hats"):
        export_catalog(catalogue, str(tmp_path / "c"), "xlsx")
    with pytest.raises(UserError, match="no horizon '99'"):
        export_catalog(catalogue, str(tmp_path / "c"), "csv", horizon=99)


def test_missing_hats_names_the_extra(
    catalogue: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_hats(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "hats" or name.startswith("hats."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_hats)
    with pytest.raises(UserError, match=r"pip install 'applecider-batch\[hats\]'"):
        export_catalog(catalogue, str(tmp_path / "h"), "hats")
    assert not (tmp_path / "h").exists()


def test_partitions_are_the_largest_that_fit() -> None:
    rng = np.random.default_rng(1)
    cells = {
        int(c): int(n) for c, n in zip(rng.integers(0, 12 << 20, 400), rng.integers(1, 30, 400), strict=True)
    }
    pixels = partition_pixels(cells, 100)

    def inside(order: int, pixel: int) -> int:
        return sum(n for c, n in cells.items() if c >> 2 * (10 - order) == pixel)

    assert sum(inside(*p) for p in pixels) == sum(cells.values())
    for order, pixel in pixels:
        assert inside(order, pixel) <= 100
        assert order == 0 or inside(order - 1, pixel >> 2) > 100


def test_empty_pixels_are_those_of_hats() -> None:
    pixel_math = pytest.importorskip("hats.pixel_math")
    from hats.pixel_tree.negative_tree import compute_negative_tree_pixels
    from hats.pixel_tree.pixel_tree import PixelTree

    pixels = [(0, 3), (2, 17), (1, 30), (5, 4099)]
    tree = PixelTree.from_healpix([pixel_math.HealpixPixel(*pixel) for pixel in pixels])
    want = sorted((int(p.order), int(p.pixel)) for p in compute_negative_tree_pixels(tree))
    assert empty_pixels(pixels) == want


@pytest.fixture(scope="module")
def hats_folder(catalogue: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hats")
    out = tmp_path_factory.mktemp("hats") / "out"
    store, info = open_catalog(catalogue)
    answer = export_hats(store, info, str(out), list(info["classes"]), rows_per_partition=8)
    assert answer["catalogues"] == ["horizon_10", "horizon_3", "horizon_30", "horizon_full"]
    assert answer["rows"] == info["rows"]
    return out


def test_hats_is_strictly_valid(hats_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from hats.io.validation import is_valid_catalog

    with caplog.at_level(logging.WARNING):
        for folder in sorted(hats_folder.iterdir()):
            assert is_valid_catalog(folder, strict=True), caplog.text
            assert is_valid_catalog(folder / "catalogue", strict=True), caplog.text
    said = [r.getMessage() for r in caplog.records if "found collection" not in r.getMessage()]
    assert said == []


@pytest.mark.filterwarnings("ignore")
def test_lsdb_opens_cone_and_crossmatch(catalogue: str, hats_folder: Path) -> None:
    lsdb = pytest.importorskip("lsdb")
    want = read_catalog(catalogue, horizon="full")
    opened = lsdb.open_catalog(str(hats_folder / "horizon_full"), columns="all")
    frame = opened.compute()
    assert sorted(frame["objectId"]) == sorted(want["objectId"])
    centre = want.row(7, named=True)
    from astropy.coordinates import SkyCoord

    here = SkyCoord(centre["ra"], centre["dec"], unit="deg")
    near = set(want["objectId"].to_numpy()[want.coords.separation(here).deg < 20.0])
    cone = opened.cone_search(centre["ra"], centre["dec"], 20 * 3600.0).compute()
    assert set(cone["objectId"]) == near
    assert len(near) > 1
    import pandas as pd

    shifted = pd.DataFrame(
        {
            "ra": want["ra"].to_numpy(),
            "dec": want["dec"].to_numpy() + 0.5 / 3600,
            "name": want["objectId"].to_list(),
        }
    )
    other = lsdb.from_dataframe(shifted, margin_threshold=5.0)
    matched = other.crossmatch(opened, radius_arcsec=1.0, suffixes=("_l", "_r")).compute()
    assert sorted(matched["name_l"]) == sorted(want["objectId"])
    assert (matched["name_l"] == matched["objectId_r"]).all()


def test_hats_into_a_full_folder_is_refused(catalogue: str, tmp_path: Path) -> None:
    pytest.importorskip("hats")
    (tmp_path / "h").mkdir()
    (tmp_path / "h/file").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        export_catalog(catalogue, str(tmp_path / "h"), "hats")


@pytest.mark.filterwarnings("ignore")
def test_margin_finds_pairs_across_a_border(tmp_path: Path) -> None:
    lsdb = pytest.importorskip("lsdb")
    import pandas as pd

    names = object_names(20)
    # Both sides of the meridian between two base pixels, 2 arcsec away from it, far from the equator.
    side = {name: 1 if number % 2 else -1 for number, name in enumerate(names)}
    positions = {
        n: (90.0 + side[n] * 2 / 3600 / np.cos(np.radians(50 + i)), 50.0 + i) for i, n in enumerate(names)
    }
    build_catalog(str(write_run(tmp_path / "run", names, positions=positions)), str(tmp_path / "cat"))
    store, info = open_catalog(str(tmp_path / "cat"))
    export_hats(store, info, str(tmp_path / "hats"), ["full"])
    opened = lsdb.open_catalog(str(tmp_path / "hats/horizon_full"), columns="all")
    assert opened.margin is not None
    assert set(opened.margin.compute()["objectId"]) == set(names)
    mirrored = pd.DataFrame({"ra": [180.0 - positions[n][0] for n in names],
                             "dec": [positions[n][1] for n in names], "name": names})  # fmt: skip
    left = lsdb.from_dataframe(mirrored)
    matched = left.crossmatch(opened, radius_arcsec=4.5, suffixes=("_l", "_r")).compute()
    assert sorted(matched["name_l"]) == sorted(names)
    assert (matched["name_l"] == matched["objectId_r"]).all()
