"""Damaged bytes: nothing crashes, nothing is lost, no neighbour is touched, both ways of decoding agree."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from applecider_batch.archive import packets as packets_module
from applecider_batch.archive.avro import Datum, parse_writer_schema, read_container
from applecider_batch.archive.avro_reader import UnsupportedSchemaError, compile_schema, read_columns
from applecider_batch.archive.packets import Packet, PacketBatch, decode_packets, split_file
from applecider_batch.archive.quarantine import Quarantine, SourceInfo
from applecider_batch.digest import table_digest
from tests.archive import avro_maker as make

SOURCE = SourceInfo("cd" * 16, "night")
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def _datum(number: int) -> Datum:
    record = make.record(number, cutoutScience=None, cutoutTemplate=None, cutoutDifference=None)
    return next(read_container(io.BytesIO(make.container([record]))))


GOOD = [_datum(i) for i in range(6)]


def _decode(bodies: list[bytes], few: int) -> PacketBatch:
    packets = [Packet(f"{i}.avro", Datum(GOOD[0].schema, body)) for i, body in enumerate(bodies)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packets_module, "FEW", few)
        return decode_packets(packets, Quarantine(SOURCE))


def _same(a: PacketBatch, b: PacketBatch) -> None:
    assert a.packets_in == b.packets_in
    for name in ("alerts", "photometry", "stamps"):
        assert table_digest(getattr(a, name)) == table_digest(getattr(b, name))
    assert sorted(a.quarantine["member"].to_pylist()) == sorted(b.quarantine["member"].to_pylist())


@QUICK
@given(st.data())
def test_a_damaged_record_is_alone_in_its_fate(data: st.DataObject) -> None:
    bodies = [bytearray(datum.body) for datum in GOOD]
    victim = data.draw(st.integers(0, len(bodies) - 1))
    body = bodies[victim]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if how == "set":
            body[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del body[at : at + data.draw(st.integers(1, 20))]
            body = body or bytearray(b"\x00")
        else:
            body[at:at] = data.draw(st.binary(min_size=1, max_size=12))
    bodies[victim] = body
    at_once = _decode([bytes(b) for b in bodies], few=1)
    _same(at_once, _decode([bytes(b) for b in bodies], few=1 << 30))
    assert at_once.packets_in == len(bodies)
    stored = set(at_once.alerts["candid"].to_pylist())
    assert {make.CANDID0 + i for i in range(len(bodies)) if i != victim} <= stored


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
    "string": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
}


@st.composite
def schemas(draw: st.DrawFn, depth: int = 0, counter: list[int] | None = None) -> tuple[Any, Any]:
    """A schema that is read at once, and a strategy of its values."""
    counter = counter if counter is not None else [0]
    kinds = list(VALUES) + (["record", "array", "enum", "fixed"] if depth < 3 else [])
    kind = draw(st.sampled_from(["record"] if depth == 0 else kinds))
    counter[0] += 1
    name = f"t{counter[0]}"
    node: Any
    if kind == "record":
        below = [draw(schemas(depth=depth + 1, counter=counter)) for _ in range(draw(st.integers(1, 4)))]
        fields = [{"name": f"f{i}", "type": found} for i, (found, _) in enumerate(below)]
        node = {"type": "record", "name": name, "fields": fields}
        values = st.fixed_dictionaries({f"f{i}": value for i, (_, value) in enumerate(below)})
    elif kind == "array":
        item, value = draw(schemas(depth=depth + 1, counter=counter))
        node, values = {"type": "array", "items": item}, st.lists(value, max_size=4)
    elif kind == "enum":
        node = {"type": "enum", "name": name, "symbols": ["a", "b", "c"]}
        values = st.sampled_from(["a", "b", "c"])
    elif kind == "fixed":
        node, values = {"type": "fixed", "name": name, "size": 3}, st.binary(min_size=3, max_size=3)
    else:
        node, values = kind, VALUES[kind]
    how = draw(st.sampled_from(["plain", "null first", "null last"])) if depth else "plain"
    if how == "plain":
        return node, values
    return (["null", node] if how == "null first" else [node, "null"]), st.none() | values


def _plain(value: Any) -> Any:
    """Values that compare: NaN by its name."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "nan" if isinstance(value, float) and value != value else value


@QUICK
@given(st.data())
def test_any_schema_reads_like_fastavro(data: st.DataObject) -> None:
    node, values = data.draw(schemas())
    records = data.draw(st.lists(values, min_size=1, max_size=5))
    data_file = make.container(records, node)
    expected = list(fastavro.reader(io.BytesIO(data_file)))
    bodies = [datum.body for datum in read_container(io.BytesIO(data_file))]
    text = fastavro.reader(io.BytesIO(data_file)).metadata["avro.schema"].encode()
    every = frozenset(f"f{i}" for i in range(4))
    try:
        plan = compile_schema(parse_writer_schema(text), every)
    except UnsupportedSchemaError:
        assert "array" in str(node)  # of more than flat records
        return
    columns, found = read_columns(plan, bodies)
    assert not found.bad.any()
    assert _plain(columns.to_arrow(found.buffer).to_pylist()) == _plain(expected)


HISTORY: dict[str, Any] = {
    "type": "record",
    "name": "item",
    "fields": [
        {"name": "jd", "type": "double"},
        {"name": "mag", "type": ["null", "float"]},
        {"name": "pid", "type": ["long", "null"]},
        {"name": "sign", "type": ["null", "string"]},
        {"name": "real", "type": "boolean"},
        {"name": "band", "type": {"type": "enum", "name": "band", "symbols": ["g", "r", "i"]}},
        {"name": "raw", "type": {"type": "fixed", "name": "raw", "size": 2}},
        {"name": "left_out", "type": ["null", "bytes"]},
    ],
}
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "jd": st.floats(),
            "mag": st.none() | st.floats(width=32),
            "pid": st.none() | st.integers(-(2**63), 2**63 - 1),
            "sign": st.none() | st.text(max_size=5),
            "real": st.booleans(),
            "band": st.sampled_from("gri"),
            "raw": st.binary(min_size=2, max_size=2),
            "left_out": st.none() | st.binary(max_size=5),
        }
    ),
    max_size=12,
)


@QUICK
@given(st.lists(ITEMS, min_size=1, max_size=4), st.data())
def test_a_damaged_history_spoils_its_own_record_or_reads_like_fastavro(
    histories: list[Any], data: st.DataObject
) -> None:
    node = {
        "type": "record",
        "name": "packet",
        "fields": [{"name": "h", "type": ["null", {"type": "array", "items": HISTORY}]}],
    }
    file = make.container([{"h": history} for history in histories], node)
    schema = next(datum.schema for datum in read_container(io.BytesIO(file)))
    bodies = [datum.body for datum in read_container(io.BytesIO(file))]
    hurt = data.draw(st.integers(0, len(bodies) - 1))
    body = bytearray(bodies[hurt])
    place = data.draw(st.integers(0, len(body) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if how == "flip":
        body[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        body[place:] = body[place:] + b"\x00" if how == "grow" else b""
    bodies[hurt] = bytes(body)
    kept = frozenset(field["name"] for field in HISTORY["fields"]) - {"left_out"}
    columns, found = read_columns(compile_schema(schema, kept), bodies)
    assert set(np.flatnonzero(found.bad)) <= {hurt}
    for row in np.flatnonzero(~found.bad).tolist():
        expected: Any = fastavro.schemaless_reader(
            io.BytesIO(bodies[row]), schema.parsed, None, handle_unicode_errors="replace"
        )
        for item in expected["h"] or ():
            del item["left_out"]
        try:
            (got,) = columns.take(np.array([row])).to_arrow(found.buffer).to_pylist()
        except pa.ArrowInvalid:  # no UTF-8
            continue
        assert _plain(got) == _plain(expected)


@QUICK
@given(st.binary(max_size=400), st.sampled_from([b"", b"Obj\x01", make.container([make.record(0)])[:900]]))
def test_any_bytes_are_a_packet_or_a_quarantine_row(tail: bytes, head: bytes) -> None:
    quarantine = Quarantine(SOURCE)
    packets = split_file("a.avro", head + tail, quarantine)
    batch = decode_packets(packets, quarantine)
    assert batch.packets_in == len(packets) + 1
    assert quarantine.rows[0]["reason"] in ("not_avro", "truncated", "undecodable")
    assert quarantine.rows[0]["message"].endswith(".")
