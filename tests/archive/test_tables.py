"""Light-curve tables: one result for every format, every rejected row explained, real files add up."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.light_curve_tables import is_known, photometry_of
from applecider_batch.archive.table_files import numbers, read_columns
from applecider_batch.archive.table_rejects import Rejects
from applecider_batch.archive.tables import open_table
from applecider_batch.digest import hash64_one
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table

ROWS = {
    "objectId": ["ZTF18abccouv", "ZTF18abccouv", "ZTF19aaaaaab"],
    "mjd": [58300.25, 58301.5, 58302.75],
    "band": ["g", "r", "i"],
    "mag": [18.5, None, 19.25],
    "mag_err": [0.125, None, 0.25],
    "limiting_mag": [None, 20.5, None],
    "isdiffpos": ["t", None, "f"],
}


def read(folder: Path, text: str, name: str = "points.csv") -> TableBatch:
    (folder / name).write_text(text)
    return open_table("photometry", folder / name)


def core(batch: TableBatch) -> pa.Table:
    return batch.table.drop_columns(["hash64"])


def reasons(batch: TableBatch) -> list[tuple[str, str]]:
    assert batch.rejected is not None
    return list(zip(batch.rejected["member"].to_pylist(), batch.rejected["reason"].to_pylist(), strict=True))


@pytest.fixture
def plain(tmp_path: Path) -> TableBatch:
    pq.write_table(pa.table(ROWS), tmp_path / "plain.parquet")
    return open_table("photometry", tmp_path / "plain.parquet")


def test_points_of_a_plain_table(plain: TableBatch) -> None:
    table = plain.table
    assert table.schema == load_table("photometry").arrow
    assert table["jd"].to_pylist() == [2458300.75, 2458302.0, 2458303.25]
    assert table["known_jd"].equals(table["jd"])
    assert set(table["origin"].to_pylist()) == {3}
    assert table["fid"].to_pylist() == [1, 2, 3]
    assert table["is_detection"].to_pylist() == [True, False, True]
    assert table["isdiffpos"].to_pylist() == [1, None, -1]
    assert table["magpsf"].to_pylist() == [18.5, None, 19.25]
    assert table["diffmaglim"].to_pylist() == [None, 20.5, None]
    assert table["hash64"].to_pylist() == [hash64_one(name) for name in ROWS["objectId"]]
    assert plain.kind == "photometry"
    assert plain.name == "plain.parquet"
    assert plain.rejected is not None
    assert plain.rejected.num_rows == 0


@pytest.mark.parametrize("form", ["csv", "tsv", "blanks", "comment header", "csv.gz", "ecsv", "fits"])
def test_every_format_gives_the_same_points(tmp_path: Path, plain: TableBatch, form: str) -> None:
    path = tmp_path / f"points.{form.replace(' ', '_')}"
    table = pa.table(ROWS)
    if form.startswith("csv"):
        sink = pa.BufferOutputStream()
        pa_csv.write_csv(table, sink)
        data = sink.getvalue().to_pybytes()
        path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    elif form in ("ecsv", "fits"):
        from astropy.table import MaskedColumn, Table

        out = Table()
        for name, values in ROWS.items():
            mask = [v is None for v in values]
            filler = "" if isinstance(values[0], str) else np.nan
            data = [filler if v is None else v for v in values]
            out[name] = data if form == "fits" else MaskedColumn(data, mask=mask)
        out.write(path, format="fits" if form == "fits" else "ascii.ecsv")
    else:
        gap = "\t" if form == "tsv" else "  "
        lines = [
            gap.join("nan" if v is None else str(v) for v in row) for row in zip(*ROWS.values(), strict=True)
        ]
        head = gap.join(ROWS)
        path.write_text("\n".join([f"# {head}" if form == "comment header" else head, *lines]) + "\n")
    batch = open_table("photometry", path)
    assert core(batch).equals(core(plain))
    assert reasons(batch) == []


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("oid,jd,fid,magpsf,sigmapsf,diffmaglim", "ZTF18abccouv,2458300.75,1,18.5,0.125,"),
        ("ztf_id,MJD,filter,magnitude,e_mag,maglim", "ZTF18abccouv,58300.25,ztfg,18.5,0.125,null"),
        ("name,obsmjd,filtercode,mag_psf,magerr,limmag", "ZTF18abccouv,58300.25,zg,18.5,0.125,-999"),
        ("object;mjd;passband;mag;dmag;upperlimit", "ZTF18abccouv;58300.25;G;18.5;0.125;F"),
    ],
)
def test_aliases(tmp_path: Path, plain: TableBatch, header: str, row: str) -> None:
    got = read(tmp_path, f"{header}\n{row}\n").table
    first = plain.table.slice(0, 1)
    for column in ("objectId", "jd", "fid", "magpsf", "sigmapsf", "is_detection", "diffmaglim", "hash64"):
        assert got[column].equals(first[column]), column


def test_alerce_export(tmp_path: Path) -> None:
    text = (
        "#### HEADER ####\n# SNNAME:\tZTF21aaaaaaa\n#### HEADER ####\n\n# FILTER g\n"
        "#        MJD  MAG  MAGERR  Upperlimit  Instrument  Telescope  Source\n"
        "\t59472.393\t20.584\tnan\tT\tnan\tnan\tnan\n\t59474.279\t19.146\t0.144\tF\tnan\tnan\tnan\n\n"
        "# FILTER r\n"
        "#        MJD  MAG  MAGERR  Upperlimit  Instrument  Telescope  Source\n"
        "\t59475.1\t19.0\t0.1\tF\tnan\tnan\tnan\n"
    )
    table = read(tmp_path, text, "x.dat").table
    assert table["objectId"].to_pylist() == ["ZTF21aaaaaaa"] * 3
    assert table["fid"].to_pylist() == [1, 1, 2]
    assert table["is_detection"].to_pylist() == [False, True, True]
    assert table["magpsf"].to_pylist() == pytest.approx([None, 19.146, 19.0])
    assert table["diffmaglim"].to_pylist() == pytest.approx([20.584, None, None])


def test_fluxes_give_magnitude_sign_and_significance(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "objectId,mjd,band,flux_uJy,flux_err_uJy\na,58300,g,100,10\na,58301,g,-100,10\na,58302,g,30,10\n",
    ).table
    assert table["is_detection"].to_pylist() == [True, True, False]
    assert table["isdiffpos"].to_pylist() == [1, -1, None]
    assert table["magpsf"][:2].to_pylist() == pytest.approx([18.9, 18.9])
    assert table["sigmapsf"][:2].to_pylist() == pytest.approx([0.1085736, 0.1085736], rel=1e-5)
    assert table["magpsf"][2].as_py() is table["sigmapsf"][2].as_py() is None
    assert table["flux_ujy"].to_pylist() == [100, -100, 30]


def test_explicit_limit_keeps_its_forced_flux(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "objectId,mjd,band,limiting_mag,flux_uJy,flux_err_uJy,is_detection,survey\n"
        "a,58300,g,20.5,100,10,False,ZTF\na,55000,r,20.5,100,10,False,PTF\n",
    ).table
    assert table["is_detection"].to_pylist() == [False, False]
    assert table["flux_ujy"].to_pylist() == [100, 100]
    assert table["survey"].to_pylist() == [None, "PTF"]


BAD_ROWS = [
    (",58300,g,18,0.1,", "missing_field", "no object name"),
    ("a,,g,18,0.1,", "missing_field", "no time"),
    ("a,yesterday,g,18,0.1,", "bad_value", "mjd is 'yesterday', not a finite number"),
    ("a,2458300.5,g,18,0.1,", "bad_value", "no Julian date"),
    ("a,58300,,18,0.1,", "missing_field", "no band"),
    ("a,58300,V,18,0.1,", "bad_value", "band 'V' is none of g, r, i"),
    ("a,58300,g,inf,0.1,", "bad_value", "mag is 'inf', not a finite number"),
    ("a,58300,g,bright,0.1,", "bad_value", "mag is 'bright', not a finite number"),
    ("a,58300,g,99,0.1,", "bad_value", "magnitude 99 is not in 0..40"),
    ("a,58300,g,18,0,", "bad_value", "error 0 is not positive"),
    ("a,58300,g,18,-0.1,", "bad_value", "error -0.1 is not positive"),
    ("a,58300,g,,,", "missing_field", "neither magnitude, limit nor flux"),
    ("a,58300,g,18", "bad_value", "4 fields where 6 were expected"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD_ROWS)
def test_bad_row_is_explained_and_costs_no_other(tmp_path: Path, row: str, reason: str, message: str) -> None:
    good = "a,58300.5,g,18.5,0.1,"
    batch = read(tmp_path, f"objectId,mjd,band,mag,mag_err,limiting_mag\n{good}\n{row}\n{good}\n")
    assert batch.table.num_rows == 2
    assert reasons(batch) == [("line 3", reason)]
    assert batch.rejected is not None
    assert message in batch.rejected["message"][0].as_py()
    assert "'points.csv'" in batch.rejected["message"][0].as_py()
    assert batch.rejected["source_id"][0].as_py() == batch.source_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objectId,band,mag\na,g,18\n", "no column for jd or mjd"),
        ("objectId,mjd,mag\na,58300,18\n", "no column for fid"),
        ("objectId,mjd,band\na,58300,g\n", "no column for magpsf or diffmaglim or flux_ujy"),
        ("mjd,band,mag\n58300,g,18\n", "names no object"),
        ("objectId,mjd,MJD,band,mag\na,1,1,g,18\n", "names a column twice"),
        ("", "holds no rows"),
        ("dear archive,\nplease find no table\n", "no column for"),
    ],
)
def test_unusable_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, text)


def test_lists_binary_files_and_absent_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"objectId": ["a"], "mjd": [[1.0]], "band": ["g"], "mag": [[1.0]]}), tmp_path / "l.parquet"
    )
    with pytest.raises(UserError, match="holds lists in mjd, mag"):
        open_table("photometry", tmp_path / "l.parquet")
    for name, data, message in (
        ("a.parquet", b"PAR1 and nothing else", "Parquet file 'a.parquet' cannot be read"),
        ("a.gz", b"\x1f\x8b\x08 cut off", "damaged gzip"),
        ("a.fits", b"SIMPLE  =                    T", "FITS file 'a.fits' cannot be read"),
        ("a.bin", b"\xff\xfe\x00\x01", "neither text nor Parquet nor FITS"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            open_table("photometry", tmp_path / name)
    with pytest.raises(UserError, match="no file or folder"):
        open_table("photometry", tmp_path / "absent.csv")
    with pytest.raises(UserError, match="'photometry' or 'spectra'"):
        open_table("images", tmp_path / "a.bin")  # type: ignore[arg-type]


def test_object_from_the_files_name(tmp_path: Path) -> None:
    batch = read(tmp_path, "mjd,band,mag\n58300,g,18\n", "SN_Ia__ZTF21abjvwdj_points.csv")
    assert batch.table["objectId"].to_pylist() == ["ZTF21abjvwdj"]


def test_source_id_is_the_content(tmp_path: Path) -> None:
    text = "objectId,mjd,band,mag\na,58300,g,18\n"
    first, renamed = read(tmp_path, text), read(tmp_path, text, "other.csv")
    changed = read(tmp_path, text.replace("18", "19"))
    assert first.source_id == renamed.source_id != changed.source_id
    assert first.table.equals(renamed.table)


def test_folder_is_one_source_whatever_the_names(tmp_path: Path) -> None:
    texts = [
        "objectId,mjd,band,mag\na,58300,g,18\n",
        "objectId,mjd,band,mag\nb,58300,g,18\n",
        "no table at all\n",
    ]
    batches = []
    for names in (("1.csv", "2.csv", "3.txt"), ("z.csv", "a.csv", "m.txt")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name, text in zip(names, texts, strict=True):
            (folder / name).write_text(text)
        batches.append(open_table("photometry", folder))
    assert batches[0].source_id == batches[1].source_id
    assert batches[0].table.equals(batches[1].table)
    assert sorted(batches[0].table["objectId"].to_pylist()) == ["a", "b"]
    assert reasons(batches[0]) == [("3.txt", "undecodable")]


def test_numbers_of_every_kind() -> None:
    values, bad = numbers(pa.chunked_array([pa.array(["1.5", " nan", "-999", None, "x", "1e3"])]))
    assert values[[0, 5]].tolist() == [1.5, 1000.0]
    assert np.isnan(values[1:5]).all()
    assert bad.tolist() == [False, False, False, False, True, False]
    values, bad = numbers(pa.chunked_array([pa.array([1, None, -99999])]))
    assert values[0] == 1
    assert np.isnan(values[1:]).all()
    assert not bad.any()


CELL = st.one_of(
    st.sampled_from(
        ["", "a", "g", "r", "3", "58300", "18.5", "-999", "nan", "inf", "1e999", "True", "F", '"', "é"]
    ),
    st.floats(allow_nan=True).map(str),
    st.text(max_size=5),
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(CELL, min_size=5, max_size=7), min_size=1, max_size=6),
    st.sampled_from([",", "\t", " "]),
)
def test_wild_text_adds_up_or_is_refused(rows: list[list[str]], delimiter: str) -> None:
    lines = [
        delimiter.join(row) for row in [["objectId", "mjd", "band", "mag", "mag_err", "is_detection"], *rows]
    ]
    rejects = Rejects("0" * 32, "wild", "photometry")
    try:
        raw = read_columns("\n".join(lines).encode(), "wild.csv", is_known)
        table = photometry_of(raw, "wild.csv", rejects)
    except UserError:
        return
    assert table.num_rows + rejects.table().num_rows == raw.table.num_rows + len(raw.rejected)
    assert pc.all(pc.is_finite(table["jd"])).as_py() in (True, None)


# --- real files ---------------------------------------------------------------------------------------------


def test_real_light_curves(shared_data: Path) -> None:
    path = shared_data / "lightcurves" / "ztf_lightcurves.parquet"
    source = pl.read_parquet(path)
    batch = open_table("photometry", path)
    assert batch.rejected is not None
    assert batch.table.num_rows + batch.rejected.num_rows == source.height
    assert batch.rejected.num_rows == 0
    got = pl.from_arrow(batch.table)
    assert isinstance(got, pl.DataFrame)
    assert got["objectId"].to_list() == source["objectId"].to_list()
    assert np.array_equal(got["jd"].to_numpy(), source["mjd"].to_numpy() + 2400000.5)
    assert np.array_equal(
        got["fid"].to_numpy(), source["band"].replace_strict({"g": 1, "r": 2, "i": 3}).to_numpy()
    )
    for ours, theirs in (("magpsf", "mag"), ("sigmapsf", "mag_err"), ("diffmaglim", "limiting_mag")):
        assert got[ours].equals(source[theirs].alias(ours)), ours
    assert got["is_detection"].to_list() == source["is_detection"].to_list()
    assert got["flux_ujy"].cast(pl.Float32).equals(source["flux_uJy"].alias("flux_ujy"))
    signs = source["isdiffpos"].replace_strict({"t": 1, "f": -1}, return_dtype=pl.Int8)
    assert got["isdiffpos"].filter(signs.is_not_null()).to_list() == signs.drop_nulls().to_list()
    assert (got["survey"] == "PTF").sum() == (source["survey"] == "PTF").sum()
    assert got["survey"].null_count() == (source["survey"] == "ZTF").sum()


def test_real_alerce_exports(shared_data: Path) -> None:
    for path in sorted((shared_data / "lightcurves" / "raw_examples").iterdir()):
        lines = [
            line.split()
            for line in path.read_text().splitlines()
            if line.strip() and not line.startswith("#")
        ]
        batch = open_table("photometry", path)
        assert batch.rejected is not None
        assert batch.table.num_rows + batch.rejected.num_rows == len(lines)
        assert batch.table["is_detection"].to_pylist() == [words[3] == "F" for words in lines]
        mags = pc.coalesce(batch.table["magpsf"], batch.table["diffmaglim"]).to_numpy()
        assert mags == pytest.approx([float(words[1]) for words in lines], rel=1e-6)
        assert set(batch.table["objectId"].to_pylist()) == {path.name.split("__")[1].split("_")[0]}


def test_real_gaia_file_is_refused_because_it_is_not_ztf(shared_data: Path) -> None:
    with pytest.raises(UserError, match="no column for fid"):
        open_table("photometry", shared_data / "lightcurves" / "gaia_alerts_G_cv_agn.parquet")
