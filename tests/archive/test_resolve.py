from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from applecider_batch.archive.resolve import PacketKeys, digest_words, pair_digest, pairs_of, resolve
from applecider_batch.digest import hash64
from applecider_batch.schema import load_table

_DIGESTS = [f"{n:032x}" for n in (0, 1, 2**63, 2**64, 2**127, 2**128 - 1)]
_PACKETS = st.tuples(st.sampled_from([-5, 10, 11]), st.integers(0, 2), st.sampled_from(_DIGESTS))


def _rows(packets: list[tuple[int, int, str]]) -> pa.Table:
    rows = [
        {"objectId": "a", "jd": 1.0, "candid": c, "completeness": n, "packet_digest": d, "source_id": "s"}
        for c, n, d in packets
    ]
    names = [name for name in load_table("duplicates").names if name != "hash64"]
    schema = load_table("duplicates").arrow
    columns: dict[str, Any] = {n: pa.array([row[n] for row in rows], schema.field(n).type) for n in names}
    columns["hash64"] = pa.array(hash64(["a"] * len(rows)))
    return load_table("duplicates").conform(pa.table(columns))


def _best(packets: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    return min(packets, key=lambda packet: (-packet[1], packet[2]))


@settings(max_examples=120)
@given(st.lists(st.lists(_PACKETS, max_size=6), min_size=1, max_size=4))
def test_the_winner_is_that_of_all_packets_ever_seen(ingests: list[list[tuple[int, int, str]]]) -> None:
    # One content has one completeness.
    contents = {(candid, digest): rank for batch in ingests for candid, rank, digest in batch}
    batches = [[(c, contents[(c, d)], d) for c, _, d in batch] for batch in ingests]
    stored: dict[int, tuple[int, int, str]] = {}
    lost: set[tuple[int, int, str]] = set()
    seen: list[tuple[int, int, str]] = []
    total = pair_digest(pairs_of(_rows([])))
    for batch in batches:
        keys = PacketKeys()
        keys.add(_rows(batch))
        result = resolve(keys, _rows(list(stored.values())), _rows(sorted(lost)))
        assert result.stored == len({c for c, _, _ in batch} - stored.keys())
        store, duplicate, new = result.decide(pairs_of(_rows(batch)))
        total.merge(pair_digest(result.accepted))
        for row in result.superseded.to_pylist():
            lost.add((row["candid"], row["completeness"], row["packet_digest"]))
        for packet, loses, is_new in zip(batch, duplicate, new, strict=True):
            assert is_new == (packet[0] not in {c for c, _, _ in seen})
            if loses:
                lost.add(packet)
        for packet, keep in zip(batch, store, strict=True):
            if keep:
                stored[packet[0]] = packet
        seen += batch
        for candid in {c for c, _, _ in seen}:
            mine = [packet for packet in seen if packet[0] == candid]
            assert stored[candid] == _best(mine)
            assert {packet for packet in lost if packet[0] == candid} == set(mine) - {_best(mine)}
    assert total.hexdigest() == pair_digest(pairs_of(_rows(sorted(set(seen))))).hexdigest()


def test_words_keep_the_order_of_the_digits() -> None:
    high, low = digest_words(pa.array(_DIGESTS))
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == sorted(
        zip(high.tolist(), low.tolist(), strict=True)
    )
    assert high.dtype == low.dtype == np.uint64
