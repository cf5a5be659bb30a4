"""Plain per-object loops for what the package computes over a whole shard: the oracle of the vectorised code.

Written from the rules in the docstrings of episodes.py, points.py and light_curves.py, with Python lists
only.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

Row = dict[str, Any]
LOOKBACK = 30.0


def eligible(alert: Row) -> bool:
    near = alert["ssdistnr"] is not None and 0 <= alert["ssdistnr"] <= 12
    bogus = alert["rb"] is not None and alert["rb"] < 0.55
    return alert["isdiffpos"] == 1 and not bogus and not near


def rock(row: Row) -> bool:
    return row["ssdistnr"] is not None and 0 <= row["ssdistnr"] <= 12


def is_forced(point: Row) -> bool:
    return point["origin"] == 2 or (point["origin"] == 3 and point["flux_ujy"] is not None)


def signed_flux(point: Row) -> tuple[float, float] | None:
    """Flux and error in µJy, or None where the point holds no usable measurement."""
    if point["origin"] == 3 and point["flux_ujy"] is not None:
        flux, error = point["flux_ujy"], point["flux_err_ujy"]
    elif point["origin"] == 2:
        if point["procstatus"] not in (None, "0", "57") or point["forcediffimflux"] is None:
            return None
        if point["magzpsci"] is None or point["forcediffimfluxunc"] is None:
            return None
        scale = 10 ** (-0.4 * (point["magzpsci"] - 23.9))
        flux, error = point["forcediffimflux"] * scale, point["forcediffimfluxunc"] * scale
    else:
        mag, sigma = point["magpsf"], point["sigmapsf"]
        if not point["is_detection"] or mag is None or sigma is None:
            return None
        if not (5 <= mag <= 30 and 0 < sigma <= 5) or (point["isdiffpos"] is None and point["origin"] != 3):
            return None
        flux = 10 ** (-0.4 * (mag - 23.9))
        error = sigma * flux * math.log(10) / 2.5
        if point["isdiffpos"] == -1:
            flux = -flux
    limit = 10 ** (-0.4 * (5 - 23.9))
    if error is None or not (math.isfinite(flux) and math.isfinite(error)):
        return None
    return (flux, error) if 0 < error <= limit and abs(flux) <= limit else None


def is_detection(point: Row) -> bool:
    if point["origin"] == 3 and point["flux_ujy"] is not None:
        measured = signed_flux(point)
        return measured is not None and abs(measured[0]) >= 5 * measured[1]
    return bool(point["is_detection"]) and point["origin"] != 2


def episodes(alerts: list[Row], points: list[Row]) -> list[float]:
    """t0 of every episode of one object with alerts."""
    chain = [a for a in sorted(alerts, key=lambda a: (a["jd"], a["candid"])) if not rock(a)]
    t0s: list[float] = []
    quiet_since = True  # a new episode may open
    for number, q in enumerate(chain):
        if number:
            p = chain[number - 1]
            seen = [x["jd"] for x in points if is_detection(x) and not rock(x)]
            known = [x["known_jd"] for x in points if is_detection(x) and not rock(x)]
            times = [j for j, k in zip(seen, known, strict=True) if p["jd"] < j <= q["jd"] and k <= q["jd"]]
            times = sorted([p["jd"], *times, q["jd"]])
            silence = max(b - a for a, b in itertools.pairwise(times))
            counts = [x[n] for x in (p, q) for n in ("ncovhist", "ndethist")]
            if None not in counts and silence >= 60:
                missed = (counts[2] - counts[3]) - (counts[0] - counts[1])
                quiet_since = quiet_since or missed >= 5
        if eligible(q) and quiet_since:
            t0s.append(q["jd"])
            quiet_since = False
    return t0s


def visible(points: list[Row], t0: float, t0_next: float, as_of: float) -> list[Row]:
    shown = [
        p for p in points if p["known_jd"] <= as_of and p["known_jd"] < t0_next and p["jd"] >= t0 - LOOKBACK
    ]
    latest: dict[Any, Row] = {}
    for p in sorted(shown, key=lambda p: p["known_jd"]):
        if is_forced(p):
            latest[p["jd"], p["fid"], p["pid"]] = p
    return [p for p in shown if not is_forced(p)] + list(latest.values())


def events(points: list[Row], forced_snr: float = 5.0) -> list[tuple[float, int, float, float, int]]:
    """Merged events (jd, fid, flux, error, points) of one sequence, paper's profile, in time order."""
    used = []
    for p in points:
        measured = signed_flux(p)
        if measured is None or p["fid"] not in (1, 2, 3):
            continue
        later = is_forced(p) or p["origin"] == 3
        same = [x for x in points if x["fid"] == p["fid"] and abs(x["jd"] - p["jd"]) <= 1e-4 and x is not p]
        first_hand = [x for x in same if not is_forced(x) and x["origin"] != 3]
        if p["origin"] == 3 and first_hand:
            continue
        if later and any(is_detection(x) and signed_flux(x) for x in first_hand):
            continue
        if is_forced(p):
            if abs(measured[0]) < forced_snr * measured[1]:
                continue
        elif not is_detection(p):
            continue
        used.append((p["jd"], p["fid"], *measured))
    merged = []
    for fid in (1, 2, 3):
        group: list[tuple[float, int, float, float]] = []
        for point in [*sorted(u for u in used if u[1] == fid), None]:
            if group and (point is None or point[0] - group[0][0] > 0.5):
                weights = [1 / e**2 for _, _, _, e in group]
                total = math.fsum(weights)
                jd = (
                    group[0][0]
                    + math.fsum(w * (g[0] - group[0][0]) for w, g in zip(weights, group, strict=True)) / total
                )
                flux = math.fsum(w * g[2] for w, g in zip(weights, group, strict=True)) / total
                merged.append((jd, fid, flux, 1 / math.sqrt(total), len(group)))
                group = []
            if point is not None:
                group.append(point)
    return sorted(merged)


def sequence(merged: list[tuple[float, int, float, float, int]]) -> list[list[float]]:
    """The seven features of each positive event."""
    kept = [e for e in merged if e[2] > 0][:257]
    rows = []
    for number, (jd, fid, flux, error, _) in enumerate(kept):
        previous = jd - kept[number - 1][0] if number else 0.0
        row = [math.log1p(jd - kept[0][0]), math.log1p(previous), math.log10(max(flux, 1e-6))]
        row.append(error / (max(flux, 1e-6) * math.log(10)))
        rows.append(row + [1.0 if fid == band else 0.0 for band in (1, 2, 3)])
    return rows
