"""Known sources: the TNS layout, the search against astropy, the status, the built catalogue."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.crossmatch import CrossMatcher, MatchOptions
from applecider_batch.catalog.known import KnownList, parse_known, read_known
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.side import read_side_table
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.errors import UsageError, UserError
from tests.catalog.synthetic import object_names, write_run

TNS = """"2024-01-15 00:00:00"
"objid","name_prefix","name","ra","declination","redshift","type","discoverydate","time_received"
"2","SN","2021abc","150.0","2.0","0.01","SN Ia","2021-03-01 12:00:00.000","2021-03-02 00:00:00"
"3","AT","2021xyz","151.0","bad","","","2021-04-01 00:00:00",""
"""


def _list(ra, dec, jd, kind="transient", received=None, until=None) -> KnownList:
    ra, dec, jd = (np.atleast_1d(np.asarray(v, float)) for v in (ra, dec, jd))
    got = np.full(len(ra), np.nan) if received is None else np.atleast_1d(np.asarray(received, float))
    names = [f"S{i}" for i in range(len(ra))]
    return KnownList("l", kind, "d", ra, dec, jd, jd, got, names, [None] * len(ra), until, 0)


@pytest.mark.parametrize("zipped", [False, True])
def test_tns_dump(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("tns.csv.zip" if zipped else "tns.csv")
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tns_public_objects.csv", TNS)
    else:
        path.write_text(TNS)
    known = read_known(str(path))
    assert (known.names, known.types, known.rejected) == (["SN2021abc"], ["SN Ia"], 1)
    assert known.until == 2460324.5
    assert known.jd_lo[0] == 2459275.0
    assert known.jd_received[0] == 2459275.5


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="no columns for the position"):
        read_known(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="is not there"):
        read_known(str(tmp_path / "b.csv"))
    with pytest.raises(UsageError, match="KIND"):
        parse_known("stars=x.csv")
    assert parse_known("agn=x.csv") == ("agn", "x.csv")


def test_pairs_against_astropy() -> None:
    from astropy import units
    from astropy.coordinates import SkyCoord, search_around_sky

    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 400), np.degrees(np.arcsin(rng.uniform(-1, 1, 400)))
    ra[0], dec[0], ra[1] = 359.9999, 0.0, 0.0001
    near_dec = np.clip(dec + rng.normal(0, 3, 400) / 3600, -90, 90)
    near_ra = (ra + rng.normal(0, 3, 400) / 3600 / np.cos(np.deg2rad(dec))) % 360
    found = CrossMatcher([_list(near_ra, near_dec, np.full(400, 10.0))]).match(ra, dec, np.full(400, 10.0))
    a, b, sep, _ = search_around_sky(
        SkyCoord(ra, dec, unit="deg"), SkyCoord(near_ra, near_dec, unit="deg"), 3 * units.arcsec
    )
    expected = {(i, j): s for i, j, s in zip(a.tolist(), b.tolist(), sep.arcsec, strict=True)}
    got = dict(
        zip(zip(found.episode.tolist(), found.source.tolist(), strict=True), found.sep_arcsec, strict=True)
    )
    assert len(expected) > 50
    assert got.keys() == expected.keys()
    assert max(abs(got[key] - expected[key]) for key in got) < 1e-5


@pytest.mark.parametrize(
    ("lists", "status"),
    [
        ([_list(10, 5, 1005)], "known"),
        ([_list(10, 5, 1200)], "out_of_window"),
        ([_list(10, 5, 1005, received=1011)], "late"),
        ([_list([10, 10], [5, 5], [1005, 1001], received=[1011, 1002])], "known"),
        ([_list(50, 5, 1005)], "unreported"),
        ([_list(50, 5, 1005, until=999.0)], "unchecked"),
        ([_list(50, 5, 1005), _list(10, 5, 0, "agn")], "known"),
        ([_list(50, 5, 1005), _list(10, 5, 900, "minor_planet")], "unreported"),
        ([_list(50, 5, 1005, "agn")], "unchecked"),
    ],
)
def test_status(lists: list[KnownList], status: str) -> None:
    matcher = CrossMatcher(lists)
    first = np.array([1000.0])
    found = matcher.match(np.array([10.0]), np.array([5.0]), first)
    assert matcher._status(found, first, np.array([True])).tolist() == [status]


def test_an_object_without_a_position_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "name_prefix,name,ra,declination,internal_names\n"
        'SN,2020a,1,2,"ATLAS20x, ZTF20aaaaaaa"\nAT,2020b,3,4,\n'
    )
    assert read_known(str(tmp_path / "a.csv")).objects == ["ZTF20aaaaaaa", None]
    known = replace(_list([10, 20], [5, 6], [1005, 1005]), objects=[None, "ZTF20aaaaaaa"])
    names = pa.array(["ZTF20aaaaaaa", "ZTF20aaaaaab", "ZTF20aaaaaaa"])
    ra, dec, first = np.array([np.nan, np.nan, 20]), np.array([np.nan, np.nan, 6]), np.full(3, 1000.0)
    found = CrossMatcher([known]).match(ra, dec, first, names=names)
    assert (found.episode.tolist(), found.source.tolist()) == ([0, 2], [1, 1])
    assert np.isnan(found.sep_arcsec[0])
    assert found.sep_arcsec[1] == pytest.approx(0.0, abs=1e-6)
    status = CrossMatcher([known])._status(found, first, np.isfinite(ra))
    assert status.tolist() == ["known", "unchecked", "known"]

    # In rows of a catalogue, and in the side table.
    run = write_run(tmp_path / "run", object_names(60))
    build_catalog(str(run), str(tmp_path / "plain"))
    table = read_table(str(tmp_path / "plain"))
    row = next(r for r in table.to_pylist() if r["t0"] is not None)
    ours = pc.equal(table.column("objectId"), row["objectId"])
    for name in ("ra", "dec"):
        column = pc.if_else(ours, pa.scalar(None, pa.float64()), table.column(name))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    known = replace(_list(0, 0, row["t0"] + 2), objects=[row["objectId"]])
    rows, pairs = CrossMatcher([known]).annotate_with_pairs(table)
    for got in rows.filter(ours).to_pylist():
        assert (got["known_status"], got["xm_n"], got["xm_tns_sep"]) == ("known", 1, None)
    assert pairs.select(["objectId", "sep"]).to_pylist() == [{"objectId": row["objectId"], "sep": None}]


def test_built_catalogue(tmp_path: Path) -> None:
    names = object_names(60)
    run = write_run(tmp_path / "run", names)
    build_catalog(str(run), str(tmp_path / "plain"))
    rows = {r["objectId"]: r for r in read_table(str(tmp_path / "plain"), horizon="full").to_pylist()}
    row = next(r for r in rows.values() if r["t0"] is not None)
    known = [_list(row["ra"], row["dec"], row["t0"] + 2)]
    build_catalog(str(run), str(tmp_path / "cat"), known=known, match=MatchOptions(2.0))
    assert verify_catalog(str(tmp_path / "cat"))["problems"] == []
    for got in read_table(str(tmp_path / "cat")).to_pylist():
        if got["objectId"] == row["objectId"]:
            assert (got["known_status"], got["xm_tns_name"], got["xm_n"]) == ("known", "S0", 1)
            assert got["xm_tns_dt"] == pytest.approx(2.0, abs=1e-4)
            assert got["tns_eligible"] is False
        else:
            assert got["known_status"] in ("unreported", "unchecked")
            assert got["xm_tns_name"] is None


def test_a_row_without_an_iau_name_has_its_other_name(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("iau_name,name,ra,dec\nSN2020abc,ZTF20x,1,2\n,ZTF20y,3,4\n")
    assert read_known(str(path), "transient").names == ["SN2020abc", "ZTF20y"]


def test_every_source_near_is_kept_in_a_side_table(tmp_path: Path) -> None:
    names = object_names(60)
    run = write_run(tmp_path / "run", names)
    build_catalog(str(run), str(tmp_path / "plain"))
    rows = [r for r in read_table(str(tmp_path / "plain"), horizon="full").to_pylist() if r["t0"] is not None]
    a, b = rows[3], rows[8]
    offsets = (0.5, 2.0, 1.0)
    ra = [a["ra"]] * 3 + [b["ra"]]
    dec = [a["dec"] + s / 3600 for s in offsets] + [b["dec"]]
    jd = [a["t0"] + 2, a["t0"] + 3, a["t0"] + 900, b["t0"] - 1]
    build_catalog(
        str(run), str(tmp_path / "cat"), known=[_list(ra, dec, jd), _list([b["ra"]], [b["dec"]], [0], "agn")]
    )
    assert verify_catalog(str(tmp_path / "cat"))["problems"] == []
    found = read_side_table(str(tmp_path / "cat"), "crossmatches").to_dicts()
    counts = {r["objectId"]: r["xm_n"] for r in read_table(str(tmp_path / "cat"), horizon="full").to_pylist()}
    assert len(found) == 5 == sum(n or 0 for n in counts.values())
    mine = [m for m in found if m["objectId"] == a["objectId"]]
    assert [m["name"] for m in mine] == ["S0", "S1", "S2"]  # of the same event first, then the nearest
    assert [m["sep"] for m in mine] == pytest.approx([0.5, 2.0, 1.0], abs=1e-3)
    assert [m["dt"] for m in mine] == pytest.approx([2, 3, 900], abs=1e-3)
    assert [m["in_window"] for m in mine] == [True, True, False]
    assert [m["list"] for m in found if m["objectId"] == b["objectId"]] == ["transient:l", "agn:l"]
    with pytest.raises(UserError, match="no side table 'embeddings'"):
        read_side_table(str(tmp_path / "cat"), "embeddings")


def test_a_list_is_read_from_any_url(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("name,ra,dec\nx,1,2\n")
    assert read_known(f"file://{tmp_path}/list.csv").names == ["x"]
