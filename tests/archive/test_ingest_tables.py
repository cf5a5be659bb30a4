from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.compact import compact
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.matching import separation_arcsec
from applecider_batch.archive.objects import objects_table
from applecider_batch.archive.read import Archive
from applecider_batch.archive.verify import verify
from applecider_batch.digest import digest128
from applecider_batch.schema import load_table
from tests.archive.packet_maker import Packet, Source, bad_packet
from tests.archive.trees import everything, tree


def _table(kind: str, rows: list[dict[str, Any]]) -> pa.Table:
    schema = load_table(kind)
    names = [name for name in schema.names if name != "hash64"]
    return pa.table({n: pa.array([row.get(n) for row in rows], schema.arrow.field(n).type) for n in names})


def points(source_id: str, object_id: str, days: range, **more: Any) -> TableBatch:
    rows = [
        {
            "objectId": object_id,
            "jd": 2_459_000.5 + day,
            "fid": 1,
            "origin": 3,
            "known_jd": 2_459_000.5 + day,
            "is_detection": True,
            "magpsf": 18.0 + day / 8,
            **more,
        }
        for day in days
    ]
    return TableBatch("photometry", _table("photometry", rows), source_id, f"{source_id}.csv")


def spectra(source_id: str, *rows: dict[str, Any]) -> TableBatch:
    full = [
        {
            "objectId": row["object_name"],
            "spec_id": digest128(repr(sorted(row.items())).encode()),
            "wavelength": [4000.0, 4001.0],
            "flux": [1.0, 2.0],
            "source_id": source_id,
            **row,
        }
        for row in rows
    ]
    return TableBatch("spectra", _table("spectra", full), source_id, f"{source_id}.fits")


PACKETS = [
    Packet("ZTF20near", 1, ra=100.0, dec=60.0),
    Packet("ZTF20next", 1, ra=100.0, dec=60.0005),
    Packet("ZTF20edge", 1, ra=359.9999, dec=-5.0),
]


def test_spectra_find_their_object_by_name_else_by_position(tmp_path: Path) -> None:
    arcsec = 1 / 3600
    batch = spectra(
        "spec",
        {"object_name": "ZTF20edge", "ra": 100.0, "dec": 60.0},  # the name goes before the position
        {"object_name": "SN2020a", "ra": 100.0 + 0.5 * arcsec / np.cos(np.radians(60)), "dec": 60.0},
        {
            "object_name": "SN2020b",
            "ra": 100.0,
            "dec": 60.0005 - 0.4 * arcsec,
        },  # two within reach: the nearer
        {"object_name": "SN2020c", "ra": 0.0001, "dec": -5.0},  # across ra 0
        {"object_name": "SN2020d", "ra": 100.0, "dec": 60.0 - 2.1 * arcsec},
        {"object_name": "SN2020e"},
    )
    result = ingest([Source("s", PACKETS)], str(tmp_path), spectra=[batch])
    assert (result["spectra_in"], result["spectra_stored"], result["spectra_unmatched"]) == (6, 6, 2)
    table = Archive.open(str(tmp_path)).read_spectra(0, 1 << 64)
    found = {r["object_name"]: (r["objectId"], r["matched_by"]) for r in table.to_pylist()}
    assert found == {
        "ZTF20edge": ("ZTF20edge", "objectId"),
        "SN2020a": ("ZTF20near", "position"),
        "SN2020b": ("ZTF20next", "position"),
        "SN2020c": ("ZTF20edge", "position"),
        "SN2020d": ("SN2020d", None),
        "SN2020e": ("SN2020e", None),
    }
    # A spectrum alone makes no object.
    assert set(Archive.open(str(tmp_path)).read_shard(0, 1 << 64).objects) == {p.object_id for p in PACKETS}
    rows = {
        row["objectId"]: row["n_spectra"] for row in objects_table(Archive.open(str(tmp_path))).to_pylist()
    }
    assert rows == {"ZTF20near": 1, "ZTF20next": 1, "ZTF20edge": 2}
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_a_light_curve_without_alerts_is_an_object_and_counted_as_unmatched(tmp_path: Path) -> None:
    lone = points("lone", "AT2020x", range(4), ra=10.0, dec=-3.0)
    joined = points("joined", "ZTF20near", range(3))
    result = ingest([Source("s", PACKETS)], str(tmp_path), photometry=[lone, joined])
    assert (result["photometry_in"], result["photometry_stored"]) == (7, 7)
    assert result["photometry_unmatched"] == 4
    archive = Archive.open(str(tmp_path))
    assert archive.read_object("AT2020x").photometry.num_rows == 4
    near = archive.read_object("ZTF20near").photometry.column("origin").to_pylist()
    assert sorted(near) == [0, 3, 3, 3]
    (row,) = [row for row in objects_table(archive).to_pylist() if row["objectId"] == "AT2020x"]
    assert (row["n_alerts"], row["n_points"]) == (0, 4)
    assert (row["ra"], row["dec"]) == (pytest.approx(10.0), pytest.approx(-3.0))
    # The archive's end is that of its alerts; a table that goes on longer does not move it.
    assert archive.snapshot.jd_max == PACKETS[0].jd
    assert archive.snapshot.jd_max_tables == 2_459_003.5
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_an_archive_of_tables_alone_ends_with_them(tmp_path: Path) -> None:
    ingest([], str(tmp_path), photometry=[points("lone", "AT2020x", range(4))])
    assert Archive.open(str(tmp_path)).snapshot.jd_max == 2_459_003.5


def test_tables_are_taken_once_and_their_repetitions_counted(tmp_path: Path) -> None:
    twice = spectra("one", {"object_name": "SN2020a"}, {"object_name": "SN2020a"}, {"object_name": "SN2020b"})
    tables: dict[str, Any] = {"photometry": [points("p", "AT2020x", range(4))], "spectra": [twice]}
    result = ingest([], str(tmp_path), **tables)
    assert (result["spectra_in"], result["spectra_stored"], result["spectra_duplicates"]) == (3, 2, 1)
    before = tree(tmp_path)
    again = ingest([], str(tmp_path), **tables)
    assert tree(tmp_path) == before
    assert again["already"] == ["p.csv", "one.fits"]
    assert not again["changed"]
    # The same spectrum in another file, and a point that another table has, too.
    more = ingest(
        [],
        str(tmp_path),
        spectra=[spectra("two", {"object_name": "SN2020a"})],
        photometry=[points("q", "AT2020x", range(2, 6))],
    )
    assert more["changed"]
    shard = Archive.open(str(tmp_path)).read_shard(0, 1 << 64)
    assert (shard.spectra.num_rows, shard.photometry.num_rows) == (2, 6)


def test_the_order_of_arrival_of_tables_and_packets_changes_nothing(tmp_path: Path) -> None:
    source = Source("s", PACKETS)
    curves = [points("p", "ZTF20near", range(4)), points("q", "AT2020x", range(3))]
    named = spectra("n", {"object_name": "ZTF20near"})
    for name, steps in (
        ("a", [([source], [], []), ([], curves, []), ([], [], [named])]),
        ("b", [([], curves[::-1], []), ([source], [], []), ([], [], [named])]),
    ):
        for sources, photometry, spectrum in steps:
            ingest(sources, str(tmp_path / name), photometry=photometry, spectra=spectrum)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    digests = [Archive.open(str(tmp_path / name)).snapshot.logical_digest for name in "ab"]
    before = everything(tmp_path / "a")
    result = compact(str(tmp_path / "a"), full=True)
    assert digests == [result["logical_digest"]] * 2
    assert everything(tmp_path / "a") == before
    assert verify(str(tmp_path / "a"), deep=True)["problems"] == []


def test_spectra_that_came_before_their_object_are_matched_when_it_comes(tmp_path: Path) -> None:
    batch = spectra(
        "spec", {"object_name": "SN2020a", "ra": 100.0, "dec": 60.0}, {"object_name": "ZTF20edge"}
    )
    first = ingest([], str(tmp_path / "a"), spectra=[batch])
    assert first["spectra_unmatched"] == 2
    later = ingest([Source("s", PACKETS)], str(tmp_path / "a"))
    assert later["spectra_rematched"] == 1
    archive = Archive.open(str(tmp_path / "a"))
    assert archive.read_object("ZTF20near").spectra.column("matched_by").to_pylist() == ["position"]
    assert archive.read_object("ZTF20edge").spectra.num_rows == 1
    ingest([Source("s", PACKETS)], str(tmp_path / "b"), spectra=[batch])
    assert Archive.open(str(tmp_path / "b")).snapshot.logical_digest == archive.snapshot.logical_digest
    for name in (packet.object_id for packet in PACKETS):
        one, other = (Archive.open(str(tmp_path / url)).read_object(name).spectra for url in "ab")
        assert one.column("spec_id").equals(other.column("spec_id"))
    assert ingest([Source("t", [Packet("ZTF20far", 2)])], str(tmp_path / "a"))["spectra_rematched"] == 0
    assert verify(str(tmp_path / "a"), deep=True)["problems"] == []


def test_what_a_table_set_aside_is_kept_with_its_reason(tmp_path: Path) -> None:
    batch = points("p", "AT2020x", range(2))
    rejected = pa.table({k: [v] for k, v in (bad_packet("p", "row 3") | {"kind": "photometry"}).items()})
    result = ingest(
        [], str(tmp_path), photometry=[TableBatch("photometry", batch.table, "p", "p.csv", rejected)]
    )
    assert (result["photometry_in"], result["photometry_rejected"], result["rejected"]) == (3, 1, 1)
    assert Archive.open(str(tmp_path)).quarantine().column("member").to_pylist() == ["row 3"]
    assert verify(str(tmp_path), deep=True)["problems"] == []


def test_separations_are_those_of_astropy() -> None:
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 200), np.degrees(np.arcsin(rng.uniform(-1, 1, 200)))
    near = SkyCoord(ra * u.deg, dec * u.deg)
    for row in range(0, 200, 20):
        expected = near[row].separation(near).arcsec
        assert separation_arcsec(ra[row], dec[row], ra, dec) == pytest.approx(expected, abs=1e-4)
