"""The same candid twice: which packet is stored.

The most complete packet wins (``completeness``: stamps, then forced photometry, then history), then the
smaller content digest. The rule needs no order of arrival. Packets that lose keep a row in the ``duplicates``
table, one per distinct content; a stored packet that a later, better one replaces gets such a row too, and a
reader leaves out every alert that has one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.digest import MultisetDigest, digest128

_PAIR = np.dtype([("candid", "<i8"), ("d0", "<u8"), ("d1", "<u8")])
_KEY = np.dtype([*_PAIR.descr, ("completeness", "<i4"), ("known", "?"), ("stored", "?")])


def digest_words(digests: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Packet digests (32 hex digits each) as two uint64 arrays whose order is that of the digits."""
    raw = bytes.fromhex("".join(digests.to_pylist()))
    words = np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)
    return words[:, 0], words[:, 1]


def pairs_of(table: pa.Table) -> np.ndarray:
    """The (candid, packet_digest) of each row, as a structured array of shape (n,)."""
    out = np.empty(table.num_rows, _PAIR)
    out["candid"] = table.column("candid").to_numpy()
    out["d0"], out["d1"] = digest_words(table.column("packet_digest"))
    return out


def pair_digest(pairs: np.ndarray) -> MultisetDigest:
    """Multiset digest of (candid, packet digest) rows."""
    digest = MultisetDigest()
    digest.add_many(
        digest128(f"{candid}:{d0:016x}{d1:016x}".encode())
        for candid, d0, d1 in zip(
            pairs["candid"].tolist(), pairs["d0"].tolist(), pairs["d1"].tolist(), strict=True
        )
    )
    return digest


class PacketKeys:
    """What the rule needs of every packet of an ingest: 30 bytes each."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []

    def add(self, alerts: pa.Table) -> None:
        """Take the rows of an alerts table."""
        self._chunks.append(_keys(alerts, known=False, stored=False))

    def extend(self, others: PacketKeys) -> None:
        """Take those of others, too."""
        self._chunks.extend(others._chunks)

    def array(self) -> np.ndarray:
        """All keys in order of arrival."""
        return np.concatenate(self._chunks) if self._chunks else np.empty(0, _KEY)

    def candids(self) -> np.ndarray:
        """Distinct candids, ascending, int64."""
        chunks = [chunk["candid"] for chunk in self._chunks]
        return np.unique(np.concatenate(chunks)) if chunks else np.empty(0, np.int64)


def _keys(table: pa.Table, *, known: bool, stored: bool) -> np.ndarray:
    out = np.empty(table.num_rows, _KEY)
    out[["candid", "d0", "d1"]] = pairs_of(table)
    out["completeness"] = table.column("completeness").to_numpy()
    out["known"], out["stored"] = known, stored
    return out


@dataclass(frozen=True)
class Resolution:
    """Who wins, for every candid of an ingest.

    Attributes
    ----------
    winners : structured array, ascending candid
        The winning (candid, digest) of each candid.
    winner_is_new : bool array
        Whether the winner is a packet of this ingest that the archive does not store yet.
    candid_is_new : bool array
        Whether the archive stores no packet of the candid yet.
    known : structured array, sorted
        Pairs that the archive has accepted before.
    accepted : structured array
        Distinct pairs of this ingest that the archive has not accepted before.
    superseded : Table
        Rows for the ``duplicates`` table: stored packets that lose to one of this ingest.
    """

    winners: np.ndarray
    winner_is_new: np.ndarray
    candid_is_new: np.ndarray
    known: np.ndarray
    accepted: np.ndarray
    superseded: pa.Table

    @property
    def stored(self) -> int:
        """Candids stored for the first time."""
        return int(np.count_nonzero(self.candid_is_new & self.winner_is_new))

    def decide(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For rows of this ingest: is it to be stored, is it a new duplicate, is its candid new?

        Parameters
        ----------
        pairs : structured array, shape (n,)

        Returns
        -------
        three bool arrays, shape (n,)
            Identical packets all get the same answer; the caller keeps one of them.
        """
        if not len(self.winners):
            nothing = np.zeros(len(pairs), bool)
            return nothing, nothing, nothing
        at = np.searchsorted(self.winners["candid"], pairs["candid"])
        wins = self.winners[at] == pairs
        known = np.isin(pairs, self.known) if len(self.known) else np.zeros(len(pairs), bool)
        return wins & self.winner_is_new[at], ~wins & ~known, self.candid_is_new[at]


def resolve(packets: PacketKeys, stored: pa.Table, duplicates: pa.Table) -> Resolution:
    """Apply the rule to the packets of an ingest and what the archive holds of the same candids.

    Parameters
    ----------
    packets : PacketKeys
        All packets that could be read, repetitions included.
    stored, duplicates : Table
        Schema ``duplicates``: the archive's stored alerts and recorded duplicates of these candids.
    """
    new = packets.array()
    old = np.concatenate(
        [_keys(stored, known=True, stored=True), _keys(duplicates, known=True, stored=False)]
    )
    both = np.concatenate([old, new])
    order = np.lexsort(
        (~both["known"], both["d1"], both["d0"], -both["completeness"].astype(np.int64), both["candid"])
    )
    ranked = both[order]
    first = np.ones(len(ranked), bool)
    first[1:] = ranked["candid"][1:] != ranked["candid"][:-1]
    best = ranked[first]
    pair = ranked[["candid", "d0", "d1"]]
    distinct = np.ones(len(ranked), bool)
    distinct[1:] = pair[1:] != pair[:-1]
    accepted = np.ascontiguousarray(pair[distinct & ~ranked["known"]].astype(_PAIR))
    candid_known = np.isin(best["candid"], old["candid"])
    winners = best[["candid", "d0", "d1"]].astype(_PAIR)
    new_wins = ~best["known"]
    replaced = winners["candid"][new_wins & candid_known]
    lost = pc.is_in(stored.column("candid"), value_set=pa.array(replaced, pa.int64()))
    return Resolution(
        winners=winners,
        winner_is_new=new_wins,
        candid_is_new=~candid_known,
        known=np.sort(old[["candid", "d0", "d1"]].astype(_PAIR)),
        accepted=accepted,
        superseded=stored.filter(lost),
    )
