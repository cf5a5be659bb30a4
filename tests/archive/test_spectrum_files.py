"""Spectra: formats, units, cleaning, names; the real files add up."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.tables import open_table
from applecider_batch.digest import hash64_one
from applecider_batch.schema import load_table

WAVE = np.linspace(4000.0, 9000.0, 51)
FLUX = 1e-16 * (2 + np.sin(WAVE / 300))


def read(folder: Path, content: str | bytes, name: str) -> TableBatch:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return open_table("spectra", folder / name)


def text(wave: np.ndarray = WAVE, flux: np.ndarray = FLUX, head: str = "") -> str:
    return head + "".join(f"{w:.17g}  {f:.17g}\n" for w, f in zip(wave, flux, strict=True))


def only(batch: TableBatch) -> dict[str, Any]:
    assert batch.rejected is not None
    assert batch.rejected.num_rows == 0, batch.rejected["message"].to_pylist()
    assert batch.table.schema == load_table("spectra").arrow
    assert batch.table.num_rows == 1
    return batch.table.to_pylist()[0]


def why(batch: TableBatch) -> str:
    assert batch.table.num_rows == 0
    assert batch.rejected is not None
    assert batch.rejected["reason"].to_pylist() == ["not_a_spectrum"]
    assert batch.rejected["kind"].to_pylist() == ["spectrum"]
    return batch.rejected["message"][0].as_py()


def same(row: dict[str, Any]) -> None:
    assert np.array_equal(np.array(row["wavelength"], np.float32), WAVE.astype(np.float32))
    assert np.array_equal(np.array(row["flux"], np.float32), FLUX.astype(np.float32))


def fits_table(columns: dict[str, Any], **cards: Any) -> bytes:
    from astropy.io import fits
    from astropy.table import Table

    hdu = fits.BinTableHDU(Table(columns))
    hdu.header.update(cards)
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
    return out.getvalue()


def fits_image(flux: np.ndarray, **cards: Any) -> bytes:
    from astropy.io import fits

    hdu = fits.PrimaryHDU(flux)
    hdu.header.update(cards)
    out = io.BytesIO()
    hdu.writeto(out)
    return out.getvalue()


def test_two_columns_of_text(tmp_path: Path) -> None:
    row = only(read(tmp_path, text(), "SN2012au__SN2012au_20120421.txt"))
    same(row)
    assert row["objectId"] == row["object_name"] == "SN2012au"
    assert row["hash64"] == hash64_one("SN2012au")
    assert row["jd"] is row["redshift"] is row["matched_by"] is row["flux_kind"] is None


@pytest.mark.parametrize(
    ("name", "head", "gap"),
    [
        ("a.txt", "# wave  flux  flux_err\n", " "),
        ("a.csv", "wavelength,flux,err\n", ","),
        ("a.csv", "Wavelength (A),Flux [erg/s/cm2/A],err\n", ","),
        ("a.csv", "# a comment, with a comma\nLambda,FLAM,err\n", ","),
        ("a.dat", "", "\t"),
    ],
)
def test_headers_and_a_third_column(tmp_path: Path, name: str, head: str, gap: str) -> None:
    lines = "".join(f"{w:.17g}{gap}{f:.17g}{gap}1e-17\n" for w, f in zip(WAVE, FLUX, strict=True))
    same(only(read(tmp_path, head + lines, name)))


def test_header_entries(tmp_path: Path) -> None:
    head = (
        "# OBJECT: SN 2020abc\n# MJD = 59000.5\n# redshift: 0.02\n# ra: 10.5\n# dec: -5\n# INSTRUMENT: SEDM\n"
    )
    row = only(read(tmp_path, text(head=head), "spec.txt"))
    assert row["object_name"] == "SN 2020abc"
    assert row["jd"] == 2459001.0
    assert row["redshift"] == pytest.approx(0.02)
    assert (row["ra"], row["dec"], row["instrument"]) == (10.5, -5.0, "SEDM")


def test_ztf_name_in_the_file_name(tmp_path: Path) -> None:
    assert only(read(tmp_path, text(), "20200101_ZTF20abcdefg_P60.ascii"))["objectId"] == "ZTF20abcdefg"


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0])
def test_unit_is_told_from_the_range(tmp_path: Path, scale: float) -> None:
    row = only(read(tmp_path, text(wave=WAVE * scale), "a.txt"))
    assert row["wavelength"] == pytest.approx(WAVE, rel=1e-6)


def test_points_are_cleaned_and_sorted(tmp_path: Path) -> None:
    wave, flux = WAVE.copy(), FLUX.copy()
    flux[3], flux[7], wave[11], wave[12] = np.nan, np.inf, np.nan, -4.0
    order = np.random.default_rng(0).permutation(len(wave))
    row = only(read(tmp_path, text(wave[order], flux[order]), "a.txt"))
    keep = np.setdiff1d(np.arange(len(wave)), [3, 7, 11, 12])
    assert row["wavelength"] == pytest.approx(WAVE[keep], rel=1e-6)
    assert row["flux"] == pytest.approx(FLUX[keep], rel=1e-6)


def test_counts_are_marked_as_arbitrary(tmp_path: Path) -> None:
    assert only(read(tmp_path, text(flux=FLUX * 1e18), "a.txt"))["flux_kind"] == "arbitrary"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("hello world\n", "neither two numbers nor names"),
        ("4000 1\n", "only 1 of 1 points are finite"),
        ("4000 nan\n5000 nan\n", "only 0 of 2 points"),
        ("4000 1\n4000 2\n", "same wavelength"),
        ("4000 0\n5000 0\n6000 0\n", "same number everywhere"),
        ("time,mag\n1,2\n", "neither two numbers nor names"),
        ("wave,mag\n1,2\n", "no column for wavelength or flux"),
        (b"\x00\x01\x02", "neither text nor Parquet nor FITS"),
        (b"SIMPLE  =                    T", "cannot be read"),
    ],
)
def test_what_is_no_spectrum_is_explained(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in why(read(tmp_path, content, "bad.txt"))


def test_parquet_with_lists_one_spectrum_a_row(tmp_path: Path) -> None:
    table = pa.table(
        {
            "object": ["AT2019azh", "x", None, "y", "z"],
            "object_key": ["ZTF17aaazdba", "2006KG", "k", "k", "k"],
            "mjd": [58530.0, None, 1.0, 58000.0, 58000.0],
            "redshift": [0.022, 999.0, 0.1, 0.1, 0.1],
            "wavelength": [WAVE.tolist(), WAVE.tolist(), WAVE.tolist(), WAVE[:5].tolist(), None],
            "flux": [FLUX.tolist(), FLUX.tolist(), FLUX.tolist(), FLUX.tolist(), None],
            "flux_kind": ["flux", "snid_flattened_restframe", None, None, None],
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    batch = open_table("spectra", tmp_path / "s.parquet")
    rows = batch.table.to_pylist()
    for row in rows:
        same(row)
    assert [(r["objectId"], r["object_name"]) for r in rows] == [("ZTF17aaazdba", "AT2019azh"), ("x", "x")]
    assert [r["jd"] for r in rows] == [2458530.5, None]
    assert [r["redshift"] for r in rows] == [pytest.approx(0.022), None]
    assert [r["flux_kind"] for r in rows] == ["flux", "snid_flattened_restframe"]
    assert batch.rejected is not None
    assert batch.rejected["member"].to_pylist() == ["row 3", "row 4", "row 5"]
    messages = batch.rejected["message"].to_pylist()
    assert "no object name" in messages[0]
    assert "5 wavelengths but 51 fluxes" in messages[1]
    assert "only 0 of 0 points" in messages[2]


def test_long_table_is_one_spectrum_per_object_and_date(tmp_path: Path) -> None:
    lines = ["object,mjd,wavelength,flux"]
    for name, mjd in (("a", 58000), ("b", 58000), ("a", 58010)):
        lines += [f"{name},{mjd},{w:.17g},{f:.17g}" for w, f in zip(WAVE, FLUX, strict=True)]
    batch = read(tmp_path, "\n".join(lines), "many.csv")
    assert [(r["objectId"], r["jd"]) for r in batch.table.to_pylist()] == [
        ("a", 2458000.5),
        ("b", 2458000.5),
        ("a", 2458010.5),
    ]
    for row in batch.table.to_pylist():
        same(row)
    assert len(set(batch.table["spec_id"].to_pylist())) == 3


def test_fits_table_and_loglam(tmp_path: Path) -> None:
    same(only(read(tmp_path, fits_table({"WAVE": WAVE, "FLUX": FLUX}, OBJECT="SN1"), "t.fits")))
    row = only(read(tmp_path, fits_table({"flux": FLUX, "loglam": np.log10(WAVE)}), "spec-1.fits"))
    assert row["wavelength"] == pytest.approx(WAVE, rel=1e-6)


def test_ecsv_unit(tmp_path: Path) -> None:
    from astropy.table import Table

    table = Table({"wave": WAVE / 10, "flux": FLUX})
    table["wave"].unit = "nm"
    table.write(tmp_path / "t.ecsv", format="ascii.ecsv")
    row = only(open_table("spectra", tmp_path / "t.ecsv"))
    assert row["wavelength"] == pytest.approx(WAVE, rel=1e-6)


@pytest.mark.parametrize("bands", [1, 4])
def test_fits_image_with_a_linear_axis(tmp_path: Path, bands: int) -> None:
    flux = FLUX if bands == 1 else np.stack([FLUX, FLUX * 2, FLUX * 3, FLUX * 4])[:, None]
    step = WAVE[1] - WAVE[0]
    axis = (
        {"CRVAL1": WAVE[0], "CDELT1": step} if bands == 1 else {"CRVAL1": WAVE[2], "CRPIX1": 3, "CD1_1": step}
    )
    data = fits_image(flux, **axis, OBJECT="SN 2021xyz", **{"DATE-OBS": "2021-03-04T12:00:00"})
    row = only(read(tmp_path, data, "i.fits"))
    assert row["wavelength"] == pytest.approx(WAVE, rel=1e-6)
    assert row["flux"] == pytest.approx(FLUX, rel=1e-6)
    assert row["object_name"] == "SN 2021xyz"
    assert row["jd"] == 2459278.0


def test_fits_image_with_a_logarithmic_axis(tmp_path: Path) -> None:
    wave = 10 ** (3.6 + 0.001 * np.arange(len(FLUX)))
    row = only(read(tmp_path, fits_image(FLUX, CRVAL1=3.6, CDELT1=0.001, **{"DC-FLAG": 1}), "l.fits"))
    assert row["wavelength"] == pytest.approx(wave, rel=1e-6)
    assert "no wavelength axis" in why(read(tmp_path, fits_image(FLUX), "n.fits"))


def test_spec_id_is_the_content(tmp_path: Path) -> None:
    first = only(read(tmp_path, text(), "SN1__a.txt"))["spec_id"]
    assert only(read(tmp_path, text(), "SN1__b.txt"))["spec_id"] == first
    assert only(read(tmp_path, text(flux=FLUX * 2), "SN1__a.txt"))["spec_id"] != first
    assert only(read(tmp_path, text(), "SN2__a.txt"))["spec_id"] != first


# --- real files ---------------------------------------------------------------------------------------------


def test_real_spectra(shared_data: Path) -> None:
    path = shared_data / "spectra" / "spectra.parquet"
    source = pl.read_parquet(path)
    batch = open_table("spectra", path)
    assert batch.rejected is not None
    assert batch.table.num_rows + batch.rejected.num_rows == source.height
    assert batch.rejected.num_rows == 0
    got = pl.from_arrow(batch.table)
    assert isinstance(got, pl.DataFrame)
    assert got["object_name"].to_list() == source["object"].to_list()
    ztf = source["object_key"].str.contains(r"^ZTF\d{2}[a-z]{7}$")
    assert got["objectId"].filter(ztf).to_list() == source["object_key"].filter(ztf).to_list()
    assert got["flux_kind"].to_list() == source["flux_kind"].to_list()
    assert got["jd"].null_count() == source["mjd"].null_count()
    plausible = source["redshift"].is_between(-0.1, 20)
    assert got["redshift"].null_count() == source.height - plausible.sum()
    for i in range(0, source.height, 97):
        order = np.argsort(source["wavelength"][i].to_numpy(), kind="stable")
        assert np.array_equal(got["wavelength"][i].to_numpy(), source["wavelength"][i].to_numpy()[order])
        assert np.array_equal(got["flux"][i].to_numpy(), source["flux"][i].to_numpy()[order])


def test_real_raw_files(shared_data: Path) -> None:
    for path in sorted((shared_data / "spectra" / "raw_examples").iterdir()):
        points = np.genfromtxt(path)[:, :2]
        points = points[np.isfinite(points).all(axis=1)]
        row = only(open_table("spectra", path))
        scale = 1e4 if points[:, 0].max() < 10 else 1
        assert row["wavelength"] == pytest.approx(np.sort(points[:, 0]) * scale, rel=1e-6)
        assert len(row["flux"]) == len(points)
        assert row["object_name"] == path.name.split("__")[0]
        assert (row["flux_kind"] == "arbitrary") == (np.median(np.abs(points[:, 1])) > 1e-6)
