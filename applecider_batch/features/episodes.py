"""Episodes of an object: when the clock of each one starts.

Rule
----
*Eligible* is an alert with positive subtraction, rb >= 0.55 where given, and no solar-system match within
12". The first eligible alert opens episode 1 and is its t0. An object known only from a photometry table has
one episode, t0 = its first positive detection there. prv_candidates and forced points never set t0.

Two neighbouring alerts p, q of an object (those with a solar-system match left out, any sign) have a *quiet
gap* between them if (a) no detection for at least 60 d: the largest distance in time between neighbouring
detections from p to q, counting the prv_candidates known by q, reaches 60 d; and (b) at least 5 visits
without detection: ncovhist - ndethist grew by 5 or more from p to q. The first eligible alert at or after the
end of a quiet gap opens a new episode. Without ncovhist or ndethist there is no new episode.

Everything here follows from packets at or before the episode's own t0: (a) takes only points with known_jd <=
q's jd, and p and q lie at or before t0. So whether an episode exists at a horizon never depends on later
packets. An episode ends where the next one's t0 begins: packets from then on are not its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from applecider_batch.features.points import NO_ID, TABLE, Alerts, Points
from applecider_batch.features.segments import (
    int_column,
    reduce_segments,
    run_numbers,
    search_in_segments,
    starts_of,
)

QUIET_DAYS = 60.0
QUIET_VISITS = 5
#: Photometry from so long before t0 belongs to the episode; prv_candidates and fp_hists reach back as far.
LOOKBACK_DAYS = 30.0
_UNKNOWN = np.iinfo(np.int32).min


@dataclass(frozen=True)
class Episodes:
    """Episodes of a shard, sorted by (object, t0).

    Attributes
    ----------
    obj : ndarray of int64, shape (n,)
        Position of the object in the shard.
    number : ndarray of int16, shape (n,)
        1, 2, …; 0 for an object without t0 (it has this one entry).
    t0, t0_next : ndarray of float64, shape (n,)
        JD of the first eligible alert (NaN for number 0) and of the next episode's (inf where there is none).
    visits_before, detections_before : ndarray of int64, shape (n,)
        ncovhist - 1 and ndethist - 1 of the alert at t0: both count the alert's own exposure. -1 where not
        known.
    """

    obj: np.ndarray
    number: np.ndarray
    t0: np.ndarray
    t0_next: np.ndarray
    visits_before: np.ndarray
    detections_before: np.ndarray

    @property
    def window_start(self) -> np.ndarray:
        """JD from which points belong to the episode: t0 - 30 d; -inf without t0."""
        return np.where(np.isfinite(self.t0), self.t0 - LOOKBACK_DAYS, -np.inf)


def find_episodes(alerts: Alerts, points: Points, n_objects: int) -> Episodes:
    """Episodes of every object of a shard (the rule stands at the top of this module).

    Parameters
    ----------
    alerts : Alerts
    points : Points
    n_objects : int

    Returns
    -------
    Episodes
        At least one entry for every object.
    """
    opening = _opening_alerts(alerts, points)
    covered = int_column(alerts.table, "ncovhist", _UNKNOWN)[opening]
    detected = int_column(alerts.table, "ndethist", _UNKNOWN)[opening]
    obj, t0 = alerts.obj[opening], alerts.jd[opening]

    table_obj, table_t0 = _table_only(alerts, points, n_objects)
    without = np.setdiff1d(np.arange(n_objects), np.concatenate([obj, table_obj]))
    unknown = np.full(len(table_obj) + len(without), _UNKNOWN, np.int64)
    all_obj = np.concatenate([obj, table_obj, without])
    all_t0 = np.concatenate([t0, table_t0, np.full(len(without), np.nan)])
    before = [np.concatenate([values, unknown]) for values in (covered, detected)]
    order = np.lexsort((all_t0, all_obj))
    all_obj, all_t0 = all_obj[order], all_t0[order]
    visits, detections = (np.where(b[order] > 0, b[order] - 1, NO_ID) for b in before)

    starts = starts_of(all_obj)
    run = run_numbers(starts, len(all_obj))
    number = np.arange(len(all_obj)) - starts[run] + 1 if len(all_obj) else np.empty(0, np.int64)
    number = np.where(np.isnan(all_t0), 0, number)
    t0_next = np.full(len(all_obj), np.inf)
    same = all_obj[1:] == all_obj[:-1]
    t0_next[:-1][same] = all_t0[1:][same]
    return Episodes(all_obj, number.astype(np.int16), all_t0, t0_next, visits, detections)


def _opening_alerts(alerts: Alerts, points: Points) -> np.ndarray:
    """Positions of the alerts that open an episode, ascending."""
    chain = np.flatnonzero(~alerts.solar_system)
    if not len(chain):
        return chain
    quiet = np.zeros(len(chain), np.int64)
    quiet[1:] = _quiet_gaps(alerts, points, chain[:-1], chain[1:])
    # Quiet gaps before each alert, counted over the whole shard: only differences inside an object are used.
    gaps = np.cumsum(quiet)
    eligible = np.flatnonzero(alerts.eligible[chain])
    obj, count = alerts.obj[chain[eligible]], gaps[eligible]
    opens = np.ones(len(eligible), bool)
    opens[1:] = (obj[1:] != obj[:-1]) | (count[1:] > count[:-1])
    return chain[eligible[opens]]


def _quiet_gaps(alerts: Alerts, points: Points, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """True for pairs of neighbouring alerts of one object with a quiet gap between them."""
    covered = int_column(alerts.table, "ncovhist", _UNKNOWN)
    missed = covered - int_column(alerts.table, "ndethist", _UNKNOWN)
    known = (covered != _UNKNOWN) & (int_column(alerts.table, "ndethist", _UNKNOWN) != _UNKNOWN)
    quiet = alerts.obj[before] == alerts.obj[after]
    quiet &= known[before] & known[after] & (missed[after] - missed[before] >= QUIET_VISITS)
    quiet &= alerts.jd[after] - alerts.jd[before] >= QUIET_DAYS
    candidates = np.flatnonzero(quiet)
    if len(candidates):
        longest = _longest_silence(alerts, points, before[candidates], after[candidates])
        quiet[candidates[longest < QUIET_DAYS]] = False
    return quiet


def _longest_silence(alerts: Alerts, points: Points, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Longest time without a detection between two alerts, as known at the later one, days."""
    seen = np.flatnonzero(points.detection & ~points.solar_system)
    order = seen[np.lexsort((points.jd[seen], points.obj[seen]))]
    # The gap in which each detection lies: the pair whose later alert is the first at or after it.
    pair = search_in_segments(alerts.obj[after], alerts.jd[after], points.obj[order], points.jd[order])
    inside = pair < len(after)
    pair = np.minimum(pair, len(after) - 1)
    inside &= alerts.obj[after][pair] == points.obj[order]
    inside &= (points.jd[order] > alerts.jd[before][pair]) & (
        points.known_jd[order] <= alerts.jd[after][pair]
    )
    # The two alerts bound the gap even where their own points are not in the photometry.
    segment = np.concatenate([pair[inside], np.arange(len(after)), np.arange(len(after))])
    jd = np.concatenate([points.jd[order][inside], alerts.jd[before], alerts.jd[after]])
    by_time = np.lexsort((jd, segment))
    segment, jd = segment[by_time], jd[by_time]
    step = np.zeros(len(jd))
    step[1:] = np.where(segment[1:] == segment[:-1], jd[1:] - jd[:-1], 0.0)
    return reduce_segments(np.maximum, step, segment, len(after), 0.0)


def _table_only(alerts: Alerts, points: Points, n_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects that no packet speaks of, and their first positive detection in a table."""
    has_alert = np.zeros(n_objects, bool)
    has_alert[alerts.obj] = True
    first = np.full(n_objects, np.inf)
    chosen = np.flatnonzero(points.good & (points.origin == TABLE) & ~has_alert[points.obj])
    np.minimum.at(first, points.obj[chosen], points.jd[chosen])
    obj = np.flatnonzero(np.isfinite(first))
    return obj, first[obj]
