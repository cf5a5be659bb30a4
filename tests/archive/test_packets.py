"""Packets of every layout and defect, written by fastavro: what becomes of each."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import cramjam
import fastavro
import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive import packets as packets_module
from applecider_batch.archive.packets import PacketBatch, decode_packets, packet_digest, split_file
from applecider_batch.archive.quarantine import Quarantine, SourceInfo, candid_of_name
from applecider_batch.archive.unfold import completeness
from applecider_batch.errors import InternalError
from tests.archive import avro_maker as make

SOURCE = SourceInfo("ab" * 16, "night")


def decode(files: Sequence[tuple[str, bytes]]) -> PacketBatch:
    quarantine = Quarantine(SOURCE)
    found = [packet for name, data in files for packet in split_file(name, data, quarantine)]
    batch = decode_packets(found, quarantine)
    assert batch.packets_in == batch.alerts.num_rows + batch.quarantine.num_rows
    return batch


def one(record: dict[str, Any], writer: dict[str, Any] | None = None) -> dict[str, Any]:
    """The alerts row of one packet."""
    rows = decode([("a.avro", make.container([record], writer))]).alerts.to_pylist()
    assert len(rows) == 1
    return rows[0]


def refused(record: dict[str, Any], writer: dict[str, Any] | None = None) -> dict[str, Any]:
    """The quarantine row of one packet."""
    batch = decode([("a.avro", make.container([record], writer))])
    assert batch.alerts.num_rows == 0
    return batch.quarantine.to_pylist()[0]


@pytest.fixture(params=["at once", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of decoding."""
    monkeypatch.setattr(packets_module, "FEW", 1 if request.param == "at once" else 1 << 30)
    return str(request.param)


def test_signs_and_sentinels(way: str) -> None:
    files = [(f"{i}.avro", make.container([make.record(i)])) for i in range(8)]
    rows = decode(files).alerts.to_pylist()
    assert [row["isdiffpos"] for row in rows] == [1, -1, 1, -1] * 2
    assert [row["ssdistnr"] for row in rows] == [3.5, None] * 4
    assert [row["ssnamenr"] for row in rows] == ["Ceres", None] * 4
    assert {row["sky"] for row in rows} == {-999.0}  # a sky background may have any value
    assert [row["candid"] for row in rows] == [make.CANDID0 + i for i in range(8)]
    assert {row["source_id"] for row in rows} == {SOURCE.source_id}


def test_forced_sentinels_are_null_and_no_detection(way: str) -> None:
    rows = decode([("a.avro", make.container([make.record(2)]))]).photometry.to_pylist()
    forced = [row for row in rows if row["origin"] == 2]
    assert [row["forcediffimflux"] for row in forced] == [-250.5, None]
    assert [row["forcediffimfluxunc"] for row in forced] == [12.5, None]
    assert [row["is_detection"] for row in forced] == [True, False]
    assert [row["procstatus"] for row in forced] == ["0", "61"]
    assert {(row["known_jd"], row["known_candid"]) for row in rows} == {(make.JD0 + 2, make.CANDID0 + 2)}


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "bzip2", "xz"])
def test_codecs_give_the_same_packets_and_digests(codec: str) -> None:
    records = [make.record(i) for i in range(3)]
    plain = decode([(f"{i}.avro", make.container([r])) for i, r in enumerate(records)])
    coded = decode([(f"{i}.avro", make.container([r], codec=codec)) for i, r in enumerate(records)])
    assert coded.alerts.equals(plain.alerts)
    assert coded.stamps.num_rows == 3


def test_zstandard_without_its_library_in_fastavro() -> None:
    header = {"avro.schema": json.dumps(make.SCHEMA).encode(), "avro.codec": b"zstandard"}
    plain = split_file("a.avro", make.container([make.record(1)]), Quarantine(SOURCE))[0].datum.body
    block = bytes(cramjam.zstd.compress(plain))
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "map", "values": "bytes"}, header)
    data = b"Obj\x01" + out.getvalue() + b"s" * 16 + b"\x02"
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "bytes", block)
    batch = decode([("a.avro", data + out.getvalue() + b"s" * 16)])
    assert batch.alerts["candid"].to_pylist() == [make.CANDID0 + 1]


def test_digest_is_of_content_not_of_writing() -> None:
    record = make.record(1)
    documented = copy.deepcopy(make.SCHEMA) | {"doc": "other words", "version": "9"}
    same = one(record)["packet_digest"]
    assert one(record, documented)["packet_digest"] == same
    assert one(make.record(1, candidate__magpsf=18.5))["packet_digest"] != same
    assert one(record, make.schema(rb=["float", "null"]))["packet_digest"] != same


def test_several_packets_in_one_container(way: str) -> None:
    records = [make.record(i) for i in range(6)]
    packed = decode([("night.avro", make.container(records, codec="deflate"))])
    single = decode([(f"{i}.avro", make.container([r])) for i, r in enumerate(records)])
    assert packed.alerts.equals(single.alerts)
    assert packed.photometry.num_rows == single.photometry.num_rows


def test_candid_only_in_the_candidate(way: str) -> None:
    record = make.record(3)
    row = one(record, make.without("candid", "publisher", "fp_hists", "schemavsn"))
    assert row["candid"] == make.CANDID0 + 3
    assert (row["publisher"], row["schemavsn"], row["n_fp"]) == (None, None, 0)


def test_two_candids_that_differ_are_both_kept() -> None:
    row = one(make.record(3, candidate__candid=77))
    assert row["candid"] == make.CANDID0 + 3
    assert json.loads(row["extra"]) == {"candidate": {"candid": 77}}


def test_boolean_isdiffpos(way: str) -> None:
    writer = make.schema(isdiffpos="boolean")
    assert one(make.record(0, candidate__isdiffpos=True), writer)["isdiffpos"] == 1
    assert one(make.record(0, candidate__isdiffpos=False), writer)["isdiffpos"] == -1


def test_unknown_sign_is_null_and_kept() -> None:
    row = one(make.record(0, candidate__isdiffpos="maybe"))
    assert row["isdiffpos"] is None
    assert json.loads(row["extra"]) == {"candidate": {"isdiffpos": "maybe"}}


def test_null_and_absent_histories_and_stamps(way: str) -> None:
    record = make.record(4, prv_candidates=None, fp_hists=None, cutoutScience=None)
    batch = decode([("a.avro", make.container([record]))])
    row = batch.alerts.to_pylist()[0]
    assert (row["n_prv"], row["n_fp"], row["stamp_status"]) == (0, 0, 1)
    assert batch.photometry.num_rows == 1
    stamps = batch.stamps.to_pylist()[0]
    assert stamps["cutoutScience"] is None
    assert (stamps["heightTemplate"], stamps["widthDifference"]) == (63, 63)
    bare = make.without("cutoutScience", "cutoutTemplate", "cutoutDifference", "prv_candidates")
    batch = decode([("a.avro", make.container([record], bare))])
    assert batch.alerts["stamp_status"].to_pylist() == [0b010101]
    assert batch.stamps.num_rows == 0


def test_a_history_of_1500_entries(way: str) -> None:
    records = [make.record(i) for i in range(3)]
    records[1]["prv_candidates"] = [make.prv(1, back) for back in range(1500)]
    batch = decode([(f"{i}.avro", make.container([r])) for i, r in enumerate(records)])
    assert batch.alerts["n_prv"].to_pylist() == [0, 1500, 2]
    points = [row for row in batch.photometry.to_pylist() if row["known_candid"] == make.CANDID0 + 1]
    prv = [row for row in points if row["origin"] == 1]
    assert sum(row["is_detection"] for row in prv) == 750
    assert [row["jd"] for row in prv] == [make.JD0 - 1.0 - back for back in range(1500)]
    assert {row["isdiffpos"] for row in prv if row["is_detection"]} == {-1}


def test_upper_limits(way: str) -> None:
    rows = decode([("a.avro", make.container([make.record(4)]))]).photometry.to_pylist()
    limits = [row for row in rows if row["origin"] == 1 and not row["is_detection"]]
    assert [row["diffmaglim"] for row in limits] == [20.125, 20.375]
    assert {row["candid"] for row in limits} == {row["isdiffpos"] for row in limits} == {None}
    assert {row["magpsf"] for row in limits} == {None}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0])
def test_absurd_magnitudes_are_stored(way: str, value: float) -> None:
    record = make.record(2, candidate__magpsf=value, candidate__rb=value)
    record["prv_candidates"][0]["magpsf"] = value
    batch = decode([("a.avro", make.container([record]))])
    stored = batch.alerts.to_pylist()[0]["magpsf"]
    assert np.array_equal(stored, np.float32(value), equal_nan=True)
    points = [row for row in batch.photometry.to_pylist() if row["origin"] < 2]
    assert [row["is_detection"] for row in points] == [math.isfinite(value), math.isfinite(value), False]


@pytest.mark.parametrize(
    ("ra", "dec"), [(math.nan, 1.0), (-999.0, 1.0), (1.0, math.inf), (1.0, 95.0), (361.0, 0.0)]
)
def test_a_position_that_is_none(ra: float, dec: float) -> None:
    row = one(make.record(0, candidate__ra=ra, candidate__dec=dec))
    assert (row["ra"] is None) or (row["dec"] is None)
    assert set(json.loads(row["extra"])["candidate"]) <= {"ra", "dec"}


def test_unknown_fields_are_kept(way: str) -> None:
    writer = make.schema(colour=["null", "string"], score="double", sgmag="float")
    writer["fields"].append({"name": "broker", "type": "string"})
    writer["fields"].append({"name": "tags", "type": {"type": "array", "items": "int"}})
    record = make.record(0, candidate__colour=None, candidate__score=math.nan, candidate__sgmag=2.5)
    row = one({**record, "broker": "x", "tags": [1, 2]}, writer)
    extra = {"candidate": {"score": "nan", "sgmag": 2.5}, "broker": "x", "tags": [1, 2]}
    assert json.loads(row["extra"]) == extra
    assert one(make.record(0))["extra"] is None


def test_maps_and_mixed_unions_are_kept_as_text() -> None:
    writer = make.schema(mixed=["null", "string", "double"])
    writer["fields"].append({"name": "scores", "type": {"type": "map", "values": "double"}})
    record = {**make.record(1, candidate__mixed=1.5), "scores": {"b": 2.0, "a": 1.0}}
    row = one(record, writer)
    assert row["candid"] == make.CANDID0 + 1
    extra = json.loads(row["extra"])
    assert json.loads(extra["scores"]) == {"a": 1.0, "b": 2.0}
    assert json.loads(extra["candidate"]["mixed"]) == 1.5


def test_numbers_that_do_not_fit_are_kept_as_text(way: str) -> None:
    row = one(make.record(0, candidate__programid=4000))
    assert row["programid"] is None
    assert json.loads(row["extra"]) == {"candidate": {"programid": 4000}}


def test_history_entries_without_a_date_are_counted(way: str) -> None:
    record = make.record(4)
    record["prv_candidates"][1]["jd"] = math.nan
    record["prv_candidates"][2]["jd"] = -999.0
    batch = decode([("a.avro", make.container([record]))])
    row = batch.alerts.to_pylist()[0]
    assert row["n_prv"] == 4
    assert json.loads(row["extra"]) == {"prv_candidates_left_out": 2}
    assert batch.photometry["origin"].to_pylist().count(1) == 2


@pytest.mark.parametrize(
    ("changes", "writer", "reason", "words"),
    [
        ({"candidate__jd": math.nan}, None, "missing_field", "no jd"),
        ({"candidate__jd": -999.0}, None, "bad_value", "not a Julian date"),
        ({"candidate__jd": math.inf}, None, "bad_value", "not a Julian date"),
        ({"objectId": "  "}, None, "missing_field", "no objectId"),
        ({}, make.without("objectId"), "missing_field", "no objectId"),
        ({}, make.without("candidate"), "missing_field", "no 'candidate'"),
        ({"candidate__fid": None}, make.schema(fid=["null", "int"]), "missing_field", "filter"),
        ({}, make.schema(jd=None), "missing_field", "no jd"),
    ],
)
def test_what_a_row_needs(
    way: str, changes: dict[str, Any], writer: dict[str, Any] | None, reason: str, words: str
) -> None:
    row = refused(make.record(5, **changes), writer)
    assert row["reason"] == reason
    assert words in row["message"]
    assert row["candid"] == make.CANDID0 + 5
    assert row["n_bytes"] > 0
    assert row["member"] == "a.avro"
    assert row["source"] == "night"


def test_records_that_are_no_packets(way: str) -> None:
    stamps_only = make.without(
        "schemavsn", "publisher", "objectId", "candid", "candidate", "prv_candidates", "fp_hists"
    )
    other = {"type": "record", "name": "x", "fields": [{"name": "candidate", "type": "string"}]}
    for record, writer in ((make.record(0), stamps_only), ({"candidate": "me"}, other)):
        row = refused(record, writer)
        assert (row["reason"], row["candid"], row["objectId"]) == ("missing_field", None, None)


def test_fields_of_other_types_do_not_crash(way: str) -> None:
    numbers = {"type": "array", "items": "int"}
    writer = make.schema(
        rb="string", ra="string", magpsf=numbers, fid="double", ssnamenr=numbers, tblid="bytes"
    )
    changes = {"rb": "0.5", "ra": "north", "magpsf": [1], "fid": 2.0, "ssnamenr": [1], "tblid": b"\x01"}
    row = one(make.record(0, **{f"candidate__{name}": value for name, value in changes.items()}), writer)
    assert (row["rb"], row["ra"], row["magpsf"], row["fid"], row["ssnamenr"]) == (0.5, None, None, 2, None)
    extra = json.loads(row["extra"])["candidate"]
    assert extra == {"ra": "north", "magpsf": [1], "ssnamenr": [1], "tblid": "01"}


def test_a_refused_packet_leaves_the_others(way: str) -> None:
    records = [make.record(i) for i in range(5)]
    records[2]["candidate"]["jd"] = math.nan
    batch = decode([(f"{i}.avro", make.container([r])) for i, r in enumerate(records)])
    assert batch.alerts["candid"].to_pylist() == [make.CANDID0 + i for i in (0, 1, 3, 4)]
    assert batch.stamps["candid"].to_pylist() == [make.CANDID0 + i for i in (0, 1, 3, 4)]
    assert set(batch.photometry["known_candid"].to_pylist()) == {make.CANDID0 + i for i in (0, 1, 3, 4)}
    assert batch.quarantine["objectId"].to_pylist() == [records[2]["objectId"]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_avro"),
        (b"this is a text\n", "not_avro"),
        (b"Obj\x01", "truncated"),
        (make.container([make.record(1)])[:-40], "truncated"),
        (make.container([make.record(1)])[:300], "truncated"),
        (make.container([make.record(1)])[:-16] + b"x" * 16, "undecodable"),
        (make.container([make.record(1)], codec="deflate").replace(b"deflate", b"inflate"), "undecodable"),
        (make.container([]), "undecodable"),
        (
            make.container([make.record(1)]).replace(b'"type": "record"', b'"type": "recurd"', 1),
            "undecodable",
        ),
    ],
)
def test_broken_files(data: bytes, reason: str) -> None:
    good = make.container([make.record(0)])
    name = "somewhere/1234567890115015001.avro"
    batch = decode([("a.avro", good), (name, data), ("b.avro", good)])
    assert batch.alerts.num_rows == 2
    row = batch.quarantine.to_pylist()[0]
    assert row["reason"] == reason
    assert row["candid"] == 1234567890115015001
    assert row["n_bytes"] == len(data)
    assert row["message"].endswith(".")


def test_a_damaged_container_keeps_what_is_before_the_damage() -> None:
    whole = make.container([make.record(0)]) + make.container([make.record(1)])
    batch = decode([("two.avro", whole)])
    assert batch.alerts["candid"].to_pylist() == [make.CANDID0]
    row = batch.quarantine.to_pylist()[0]
    assert row["member"] == "two.avro#1"
    assert "The 1 packets before that place are kept." in row["message"]


def test_bytes_that_are_no_text_do_not_lose_a_packet(way: str) -> None:
    data = make.container([make.record(0)]).replace(
        b"ZTF (www.ztf.caltech.edu)", b"ZTF \xff\xfe\xfdw.ztf.caltech.edu)"
    )
    files = [("a.avro", make.container([make.record(1)])), ("b.avro", data)]
    rows = decode(files).alerts.to_pylist()
    assert [row["candid"] - make.CANDID0 for row in rows] == [1, 0]
    assert "\ufffd" in rows[1]["publisher"]
    broken = make.container([make.record(0)]).replace(b"ZTF20aaaaaaa", b"ZTF20aaa\xffaaa")
    batch = decode([("a.avro", make.container([make.record(1)])), ("b.avro", broken)])
    assert batch.quarantine["reason"].to_pylist() == ["bad_value"]


def test_completeness_orders_stamps_then_forced_then_history() -> None:
    cases = [(0, 0, 0), (0, 0, 9), (0, 1, 0), (0, 1, 99_999), (0, 2, 0), (2, 99_999, 9), (3, 0, 0), (3, 0, 1)]
    ranks = completeness(*(np.array(column, np.int32) for column in zip(*cases, strict=True)))
    assert ranks.dtype == np.int32
    assert ranks.tolist() == sorted(set(ranks.tolist()))
    assert ranks[-1] > 0


def test_batches_must_add_up() -> None:
    batch = decode([("a.avro", make.container([make.record(0)]))])
    with pytest.raises(InternalError, match="2 packets came in, 1 became alerts and 0 were set aside"):
        PacketBatch(batch.alerts, batch.photometry, batch.stamps, batch.quarantine, 2)


@pytest.mark.parametrize(
    ("name", "candid"),
    [("1234567890115015001.avro", 1234567890115015001), ("x/12.avro", None), ("1" * 25, None), (None, None)],
)
def test_candid_of_a_file_name(name: str | None, candid: int | None) -> None:
    assert candid_of_name(name) == candid


def test_packet_digest_vector() -> None:
    """Documented: BLAKE2b-128 of the fingerprint and the record's bytes."""
    packet = split_file("a.avro", make.container([make.record(0)]), Quarantine(SOURCE))[0]
    joined = packet.datum.schema.fingerprint + packet.datum.body
    assert packet_digest(packet.datum) == hashlib.blake2b(joined, digest_size=16).hexdigest()


def test_rows_are_in_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets_module, "FEW", 3)
    other = make.schema(sky=None)
    files = [
        (f"{i}.avro", make.container([make.record(i)], other if i % 3 == 0 else None)) for i in range(12)
    ]
    assert decode(files).alerts["candid"].to_pylist() == [make.CANDID0 + i for i in range(12)]
    assert isinstance(decode(files).alerts, pa.Table)
