"""Real packets: what is stored equals what fastavro reads, by a plain loop over each packet."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive import packets as packets_module
from applecider_batch.archive.cleaning import NO_SENTINEL
from applecider_batch.archive.packets import PacketBatch, decode_packets, split_file
from applecider_batch.archive.quarantine import Quarantine, SourceInfo
from applecider_batch.digest import hash64_one, table_digest
from applecider_batch.schema import load_table

SIGNS = {"t": 1, "1": 1, True: 1, "f": -1, "0": -1, False: -1}


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted([*folder.glob("archive/*.tar.gz"), *folder.glob("variants/*.tar.gz")]):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                yield f"{path.name}/{member.name}", stream.read()


@pytest.fixture(scope="module")
def files(shared_data: Path) -> list[tuple[str, bytes]]:
    return list(_files(shared_data / "alerts"))


@pytest.fixture(scope="module")
def records(files: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    return [record for _, data in files for record in fastavro.reader(io.BytesIO(data))]


def _decode(files: list[tuple[str, bytes]], few: int, patch: pytest.MonkeyPatch) -> PacketBatch:
    patch.setattr(packets_module, "FEW", few)
    quarantine = Quarantine(SourceInfo("0" * 32, "test"))
    found = [packet for name, data in files for packet in split_file(name, data, quarantine)]
    return decode_packets(found, quarantine)


@pytest.fixture(scope="module")
def batch(files: list[tuple[str, bytes]]) -> Iterator[PacketBatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield _decode(files, 1, patch)


def _expected(name: str, value: Any, kind: pa.DataType) -> Any:
    """A candidate's value as the contract wants it: the slow, obvious way."""
    if value is None:
        return None
    if name == "isdiffpos":
        return SIGNS[value]
    if name == "ssnamenr" and value in ("null", ""):
        return None
    if isinstance(value, (int, float)) and name not in NO_SENTINEL and value in (-999, -99999):
        return None
    return float(np.float32(value)) if kind == pa.float32() else value


def _equal(a: Any, b: Any) -> bool:
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def test_alerts_equal_fastavro(batch: PacketBatch, records: list[dict[str, Any]]) -> None:
    rows = batch.alerts.to_pylist()
    assert batch.quarantine.num_rows == 0
    assert len(rows) == len(records) == batch.packets_in
    kinds = {field.name: field.type for field in load_table("alerts").arrow}
    compared = 0
    for row, record in zip(rows, records, strict=True):
        candidate = record["candidate"]
        assert row["candid"] == candidate["candid"]
        assert row["objectId"] == record["objectId"]
        assert row["hash64"] == hash64_one(record["objectId"])
        for name, value in candidate.items():
            if name in kinds and name != "candid":
                assert _equal(row[name], _expected(name, value, kinds[name])), (row["candid"], name, value)
                compared += 1
        for name in ("schemavsn", "publisher"):
            assert row[name] == record.get(name)
        histories = ("prv_candidates", "prv_nondetections")
        assert row["n_prv"] == sum(len(record.get(name) or []) for name in histories)
        assert row["n_fp"] == len(record.get("fp_hists") or [])
    assert compared > 90 * len(records)


def test_no_field_is_dropped(batch: PacketBatch, records: list[dict[str, Any]]) -> None:
    known = set(load_table("alerts").names)
    for row, record in zip(batch.alerts.to_pylist(), records, strict=True):
        extra = json.loads(row["extra"] or "{}")
        for name, value in record["candidate"].items():
            if name not in known and value is not None:
                assert _equal(extra["candidate"][name], value)
        for name in ("properties", "survey_matches"):
            assert (name in extra) == (name in record)


def _points(record: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A packet's points as (origin, candid, jd, fid, pid, is_detection, sign, values...)."""
    own = record["candidate"]
    for origin, entries in ((0, [own]), (1, record.get("prv_candidates")), (2, record.get("fp_hists"))):
        for p in entries or []:
            get = {name: _expected(name, p.get(name), pa.float32()) for name in NUMBERS}
            seen = get["forcediffimflux"] is not None if origin == 2 else get["magpsf"] is not None
            sign = SIGNS[p["isdiffpos"]] if p.get("isdiffpos") is not None else None
            place = (None, None) if origin == 2 else (p.get("ra"), p.get("dec"))
            known = own["jd"], own["candid"], record["objectId"]
            key = origin, p.get("candid"), p["jd"], p["fid"], p["pid"], p["programid"]
            yield (*key, seen, sign, *place, p.get("procstatus"), *known, *get.values())


NUMBERS = [
    "magpsf",
    "sigmapsf",
    "diffmaglim",
    "rb",
    "ssdistnr",
    "forcediffimflux",
    "forcediffimfluxunc",
    "magzpsci",
]


def test_points_equal_a_plain_loop(batch: PacketBatch, records: list[dict[str, Any]]) -> None:
    columns = ["origin", "candid", "jd", "fid", "pid", "programid", "is_detection", "isdiffpos", "ra", "dec"]
    columns += ["procstatus", "known_jd", "known_candid", "objectId", *NUMBERS]
    plain = [record for record in records if "prv_nondetections" not in record]
    flux_based = {record["candid"] for record in records if "prv_nondetections" in record}
    assert len(flux_based) == 1
    got = sorted(
        repr(tuple(row[name] for name in columns))
        for row in batch.photometry.to_pylist()
        if row["known_candid"] not in flux_based
    )
    assert got == sorted(repr(point) for record in plain for point in _points(record))


def test_flux_histories_become_magnitudes(batch: PacketBatch, records: list[dict[str, Any]]) -> None:
    record = next(record for record in records if "prv_nondetections" in record)
    own = record["candidate"]
    zero_point = own["magpsf"] + 2.5 * math.log10(own["psfFlux"])
    rows = [row for row in batch.photometry.to_pylist() if row["known_candid"] == record["candid"]]
    seen = {(row["jd"], row["fid"]): row for row in rows if row["origin"] == 1 and row["is_detection"]}
    limits = {(row["jd"], row["fid"]): row for row in rows if row["origin"] == 1 and not row["is_detection"]}
    bands = {"g": 1, "r": 2, "i": 3}
    assert len(seen) == len(record["prv_candidates"])
    assert len(limits) == len(record["prv_nondetections"])
    for p in record["prv_candidates"]:
        row = seen[p["jd"], bands[p["band"]]]
        assert row["magpsf"] == pytest.approx(zero_point - 2.5 * math.log10(abs(p["psfFlux"])), abs=1e-5)
        assert row["sigmapsf"] == pytest.approx(1.0857362 * p["psfFluxErr"] / abs(p["psfFlux"]), rel=1e-5)
        assert row["isdiffpos"] == (1 if p["psfFlux"] > 0 else -1)
    for p in record["prv_nondetections"]:
        row = limits[p["jd"], bands[p["band"]]]
        assert row["diffmaglim"] == pytest.approx(
            zero_point - 2.5 * math.log10(5 * p["psfFluxErr"]), abs=1e-5
        )
        assert row["isdiffpos"] is None
        assert row["candid"] is None
    # The history repeats the packet's own candidate; that copy is recognised, the others have no candid.
    assert [row["candid"] for row in seen.values() if row["candid"]] == [record["candid"]]
    forced = [row for row in rows if row["origin"] == 2]
    assert [row["forcediffimflux"] for row in forced] == [
        None if p["psfFlux"] is None else float(np.float32(p["psfFlux"])) for p in record["fp_hists"]
    ]
    assert forced[0]["magzpsci"] == pytest.approx(zero_point, abs=1e-5)


def test_columns_at_once_equal_one_by_one(
    files: list[tuple[str, bytes]], batch: PacketBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = _decode(files, 1 << 30, monkeypatch)
    assert alone.alerts.equals(batch.alerts)
    for name in ("photometry", "stamps"):
        assert table_digest(getattr(alone, name)) == table_digest(getattr(batch, name))
