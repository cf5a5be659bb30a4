"""Stable hashes and digests that do not depend on row order or Arrow layout."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applecider_batch import digest

# Documented in docs/decisions.md: these values may never change.
VECTORS = {"ZTF18abccouv": 0xEFC4D29389F86E0D, "ZTF24aaaaaaa": 0xE7D0C5995FCD2801}


def test_hash64_vectors() -> None:
    for name, expected in VECTORS.items():
        assert digest.hash64_one(name) == expected
        assert expected == int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def test_hash64_takes_every_layout() -> None:
    names = ["ZTF18a", "ZTF18b", "ZTF18a"]
    plain = digest.hash64(names)
    assert plain.dtype == np.uint64
    assert plain[0] == plain[2] != plain[1]
    for array in (
        pa.array(names),
        pa.array(names, pa.large_string()),
        pa.array(names).dictionary_encode(),
        pa.chunked_array([names[:1], names[1:]]),
        pa.chunked_array([pa.array(names[:1]).dictionary_encode(), pa.array(names[1:]).dictionary_encode()]),
    ):
        np.testing.assert_array_equal(digest.hash64(array), plain)
    assert len(digest.hash64([])) == 0


def _table() -> pa.Table:
    return pa.table(
        {
            "name": ["a", "bb", None, ""],
            "x": [1.0, float("nan"), None, -0.0],
            "n": pa.array([1, None, 3, 2**64 - 1], pa.uint64()),
            "flag": [True, None, False, None],
            "list": pa.array([[1.0, 2.0], None, [], [float("nan")]], pa.list_(pa.float32())),
            "words": [["a", "b"], ["ab"], None, []],
            "nested": [{"a": 1, "b": "x"}, None, {"a": None, "b": "x"}, {"a": 2, "b": None}],
        }
    )


def test_table_digest_ignores_order_and_layout() -> None:
    table = _table()
    shuffled = table.take([2, 0, 3, 1])
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    encoded = table.set_column(0, "name", table["name"].combine_chunks().dictionary_encode())
    expected = digest.table_digest(table)
    assert digest.table_digest(shuffled) == expected
    assert digest.table_digest(chunked) == expected
    assert digest.table_digest(encoded) == expected


@pytest.mark.parametrize("column", _table().column_names)
@pytest.mark.parametrize("row", range(4))
def test_table_digest_sees_every_cell(column: str, row: int) -> None:
    table = _table()
    values = table[column].to_pylist()
    values[row] = values[(row + 1) % 4]
    changed = table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))
    assert digest.table_digest(changed) != digest.table_digest(table)


def test_null_nan_zero_and_empty_differ() -> None:
    column = pa.array([None, float("nan"), 0.0, float("inf")])
    rows = digest.row_digests(pa.table({"x": column}))
    assert len(set(rows)) == 4
    payloads = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000], "<u8").view("<f8")
    assert len(set(digest.row_digests(pa.table({"x": payloads})))) == 1
    assert len(set(digest.row_digests(pa.table({"x": [0.0, -0.0]})))) == 1
    lists = pa.array([None, [], [None]], pa.list_(pa.float32()))
    assert len(set(digest.row_digests(pa.table({"x": lists})))) == 3


def test_neighbouring_strings_do_not_run_together() -> None:
    left = pa.table({"a": ["ab"], "b": ["c"]})
    right = pa.table({"a": ["a"], "b": ["bc"]})
    assert digest.row_digests(left) != digest.row_digests(right)


def test_table_digest_needs_the_names() -> None:
    assert digest.table_digest(pa.table({"a": [1]})) != digest.table_digest(pa.table({"b": [1]}))


@given(st.lists(st.text(), max_size=20), st.randoms())
def test_multiset_digest(names: list[str], random: object) -> None:
    digests = [digest.digest128(name.encode()) for name in names]
    one = digest.MultisetDigest()
    one.add_many(digests)
    random.shuffle(digests)  # type: ignore[attr-defined]
    two = digest.MultisetDigest()
    two.add_many(digests)
    assert one.hexdigest() == two.hexdigest()
    assert digest.MultisetDigest.from_hex(one.hexdigest()).hexdigest() == one.hexdigest()
    extra = digest.digest128(b"one more")
    two.add(extra)
    assert two.hexdigest() != one.hexdigest()
    two.remove(extra)
    assert two.hexdigest() == one.hexdigest()


def test_multiset_counts_repeats() -> None:
    table = pa.table({"x": [1, 1]})
    assert digest.multiset_of(table).hexdigest() != digest.multiset_of(table.slice(0, 1)).hexdigest()


def test_json_digest_ignores_key_order_and_refuses_nan() -> None:
    assert digest.json_digest({"a": 1, "b": 2}) == digest.json_digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest.json_digest({"a": float("nan")})
