"""Made-up packets with histories, and the plain union of their points: what an archive would hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.features.tables import JD0, FakeShard, alert, forced, limit, point, shard

Row = dict[str, Any]


@dataclass(frozen=True)
class Packet:
    """One alert, and the points that came with it (without known_jd: that is the packet's jd)."""

    alert: Row
    history: tuple[Row, ...] = field(default=())


def archive_of(packets: list[Packet], spectra: list[Row] | None = None) -> FakeShard:
    """Union of the packets: earliest version of a point wins, every forced revision is kept."""
    points: dict[Any, Row] = {}
    for packet in sorted(packets, key=lambda p: (p.alert["jd"], p.alert["candid"])):
        a = packet.alert
        same = ("fid", "isdiffpos", "magpsf", "sigmapsf", "ra", "dec", "rb", "ssdistnr")
        own = point(a["objectId"], a["jd"], candid=a["candid"], **{k: a.get(k) for k in same})
        for row in (own, *packet.history):
            version = (row.get("forcediffimflux"), row.get("procstatus")) if row["origin"] == 2 else None
            identity = row.get("candid") or (row["jd"], row["fid"], row.get("pid"))
            key = (a["objectId"], row["origin"] == 2, identity, version)
            points.setdefault(key, {**row, "known_jd": a["jd"], "known_candid": a["candid"]})
    return shard([p.alert for p in packets], list(points.values()), spectra or [])


def maybe(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), value)


@st.composite
def histories(draw: st.DrawFn, name: str, jd: float, serial: int) -> tuple[Row, ...]:
    rows: list[Row] = []
    for number in range(draw(st.integers(0, 4))):
        # A grid of times: different packets tell of the same exposures.
        when = jd - draw(st.integers(1, 60)) * 0.5
        kind = draw(st.sampled_from(["detection", "limit", "forced"]))
        fid = draw(st.integers(1, 3))
        if kind == "detection":
            sign = draw(st.sampled_from([1, 1, -1]))
            mag = draw(st.sampled_from([17.0, 18.5, 20.0, float("nan"), 99.0]))
            candid = 10_000 * serial + number + 1
            row = point(name, when, origin=1, fid=fid, isdiffpos=sign, magpsf=mag, candid=candid)
        elif kind == "limit":
            row = limit(name, when, fid=fid, pid=int(when * 2) * 4 + fid)
        else:
            flux = draw(st.sampled_from([-30.0, 2.0, 50.0, 80.0, float("inf")]))
            row = forced(name, when, flux, fid=fid, pid=int(when * 2) * 4 + fid)
        rows.append({k: v for k, v in row.items() if k != "known_jd"})
    return tuple(rows)


@st.composite
def objects(draw: st.DrawFn, name: str, serial: int) -> list[Packet]:
    """Up to seven packets of one object, with quiet gaps, bad signs, asteroids and missing stamps."""
    jd, covered, detected = JD0 + draw(st.integers(0, 40)), 50, 5
    packets = []
    for number in range(draw(st.integers(0, 7))):
        candid = serial * 100 + number
        fields = {
            "isdiffpos": draw(st.sampled_from([1, 1, 1, -1])),
            "rb": draw(st.sampled_from([0.9, 0.7, 0.3, None])),
            "drb": draw(st.sampled_from([0.95, 0.4, None])),
            "ssdistnr": draw(st.sampled_from([None, None, 3.0, 40.0])),
            "magpsf": draw(st.sampled_from([16.0, 18.0, 19.5, float("nan")])),
            "fid": draw(st.integers(1, 3)),
            "stamp_status": draw(st.sampled_from([0, 0, 21])),
            "sgscore1": draw(st.sampled_from([0.1, 0.99])),
            "ncovhist": covered,
            "ndethist": detected,
        }
        history = draw(histories(name, jd, candid))
        packets.append(Packet(alert(name, jd, candid, **fields), history))
        step = draw(st.sampled_from([0.0, 0.05, 1.5, 9.0, 61.0, 90.0]))
        jd, covered, detected = (
            jd + step,
            covered + draw(st.integers(0, 12)),
            detected + draw(st.integers(0, 2)),
        )
    return packets


@st.composite
def surveys(draw: st.DrawFn) -> list[Packet]:
    """Packets of up to three objects."""
    names = ["ZTF18aaaaaaa", "ZTF19bbbbbbb", "ZTF20ccccccc"]
    return [p for serial, name in enumerate(names, 1) for p in draw(objects(name, serial))]
