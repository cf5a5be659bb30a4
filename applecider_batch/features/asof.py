"""Rows (object, episode, horizon) and the wall of each: what was known by then.

A row's wall is ``as_of_jd``: t0 + horizon, or for the full history the end of the snapshot. Visible are
packets with jd <= as_of_jd and before the next episode's t0, and points with the same condition on
``known_jd``; both from 30 d before t0 on. A row of an object without t0 sees all of the object's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.episodes import Episodes
from applecider_batch.features.order import order_within
from applecider_batch.features.points import Alerts, Points
from applecider_batch.features.segments import expand_ranges, run_numbers, search_in_segments, starts_of


@dataclass(frozen=True)
class RowSet:
    """Rows sorted by (object, episode, horizon ascending, full last).

    Attributes
    ----------
    episode : ndarray of int64, shape (n,)
        Position in :class:`Episodes`.
    horizon_days : ndarray of float64, shape (n,)
        NaN: the full history.
    as_of_jd : ndarray of float64, shape (n,)
    complete : ndarray of bool, shape (n,)
        The snapshot reaches as_of_jd.
    """

    episode: np.ndarray
    horizon_days: np.ndarray
    as_of_jd: np.ndarray
    complete: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)


def check_horizons(horizons: Sequence[float | None]) -> list[float | None]:
    """Horizons ascending, each once, None (full) last.

    Raises
    ------
    UserError
        If there is none, or one is negative or not a finite number.
    """
    numbers = [float(h) for h in horizons if h is not None]
    wrong = [h for h in numbers if not (np.isfinite(h) and h >= 0)]
    if wrong or not len(horizons):
        raise UserError(
            f"Horizons must be numbers of days >= 0 or 'full'; given {wrong[0] if wrong else 'none at all'}.",
            hint="For example --horizons 3,10,30,full.",
        )
    full: list[float | None] = [None] if None in horizons else []
    return [*sorted(set(numbers)), *full]


def expand_rows(episodes: Episodes, horizons: Sequence[float | None], snapshot_jd_max: float) -> RowSet:
    """One row per episode and horizon; an object without t0 has one row, over its full history.

    Parameters
    ----------
    episodes : Episodes
    horizons : sequence of float or None
        Days after t0; None is the full history.
    snapshot_jd_max : float
        Last jd of the snapshot, days.

    Returns
    -------
    RowSet
    """
    days = np.array([np.nan if h is None else h for h in check_horizons(horizons)])
    has_t0 = np.isfinite(episodes.t0)
    repeat = np.where(has_t0, len(days), 1)
    episode, position = expand_ranges(np.zeros(len(repeat), np.int64), repeat)
    horizon = np.where(has_t0[episode], days[position], np.nan)
    as_of = np.where(np.isnan(horizon), snapshot_jd_max, episodes.t0[episode] + horizon)
    return RowSet(episode, horizon, as_of, as_of <= snapshot_jd_max)


def packet_rows(episodes: Episodes, alerts: Alerts, max_days: float) -> RowSet:
    """One row per eligible packet of an episode, as of that packet: what was known when it was sent.

    Parameters
    ----------
    episodes : Episodes
    alerts : Alerts
    max_days : float
        Packets up to so many days after t0; inf for all.

    Returns
    -------
    RowSet
        ``horizon_days`` is the packet's jd - t0. Objects without t0 have no row.
    """
    known = np.flatnonzero(np.isfinite(episodes.t0))
    t0, obj = episodes.t0[known], episodes.obj[known]
    end = np.minimum(t0 + max_days, np.nextafter(episodes.t0_next[known], -np.inf))
    first = search_in_segments(alerts.obj, alerts.jd, obj, t0, "left")
    last = np.maximum(first, search_in_segments(alerts.obj, alerts.jd, obj, end, "right"))
    segment, position = expand_ranges(first, last)
    eligible = alerts.eligible[position]
    pairs = np.stack([known[segment], alerts.jd[position]], axis=1)[eligible]
    pairs = np.unique(pairs, axis=0)  # two packets of one exposure are one moment
    episode, jd = pairs[:, 0].astype(np.int64), pairs[:, 1]
    return RowSet(episode, jd - episodes.t0[episode], jd, np.ones(len(jd), bool))


@dataclass(frozen=True)
class Walls:
    """Distinct views of the packets: an episode and the last jd that is visible.

    Attributes
    ----------
    episode : ndarray of int64, shape (m,)
    wall_jd : ndarray of float64, shape (m,)
        Packets and known_jd up to and including this one are visible.
    """

    episode: np.ndarray
    wall_jd: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)


def walls_of(episodes: Episodes, episode: np.ndarray, as_of_jd: np.ndarray) -> Walls:
    """The wall of a row: as_of_jd, or just before the next episode's t0 if that comes first."""
    return Walls(episode, np.minimum(as_of_jd, np.nextafter(episodes.t0_next[episode], -np.inf)))


@dataclass(frozen=True)
class View:
    """What is visible behind each wall, computed once for walls that show the same.

    Attributes
    ----------
    of_wall : ndarray of int64, shape (m,)
        Number of the distinct view of each wall.
    episode, first, last : ndarray of int64, shape (v,)
        Per distinct view: its episode, and the range [first, last) of positions before the filter on the
        start.
    segment, position : ndarray of int64, shape (p,)
        All (view, position) pairs, views ascending.
    """

    of_wall: np.ndarray
    episode: np.ndarray
    first: np.ndarray
    last: np.ndarray
    segment: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.episode)


def view_packets(alerts: Alerts, points: Points, episodes: Episodes, walls: Walls) -> tuple[View, View]:
    """Packets and points visible behind each wall, both numbered alike.

    Returns
    -------
    (View, View)
        Of the alerts, positions in time order; of the points, positions in order of known_jd.
    """
    obj, start = episodes.obj[walls.episode], episodes.window_start[walls.episode]
    first = search_in_segments(alerts.obj, alerts.jd, obj, start, "left")
    last = np.maximum(first, search_in_segments(alerts.obj, alerts.jd, obj, walls.wall_jd, "right"))
    point_first, point_last = _known_points(points, episodes, walls)
    # Views of one episode grow with the wall: the same ends mean the same content.
    of_wall, kept = _distinct(walls.episode, last, point_last)
    segment, position = expand_ranges(first[kept], last[kept])
    alert_view = View(of_wall, walls.episode[kept], first[kept], last[kept], segment, position)
    return alert_view, _point_view(points, episodes, walls, of_wall, kept, point_first, point_last)


def view_points(points: Points, episodes: Episodes, walls: Walls) -> View:
    """Points visible behind each wall, one view per wall; positions are in order of known_jd inside a
    view."""
    first, last = _known_points(points, episodes, walls)
    every = np.arange(len(walls))
    return _point_view(points, episodes, walls, every, every, first, last)


def _known_points(points: Points, episodes: Episodes, walls: Walls) -> tuple[np.ndarray, np.ndarray]:
    obj = episodes.obj[walls.episode]
    first = search_in_segments(points.obj, points.known_jd, obj, np.full(len(obj), -np.inf), "left")
    return first, search_in_segments(points.obj, points.known_jd, obj, walls.wall_jd, "right")


def _distinct(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the distinct combination of each item, and one item of each combination."""
    order = order_within(*keys)
    starts = starts_of(*(key[order] for key in keys))
    of_item = np.empty(len(order), np.int64)
    of_item[order] = run_numbers(starts, len(order))
    return of_item, order[starts]


def _point_view(
    points: Points,
    episodes: Episodes,
    walls: Walls,
    of_wall: np.ndarray,
    kept: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> View:
    segment, position = expand_ranges(first[kept], last[kept])
    episode = walls.episode[kept]
    inside = points.jd[position] >= episodes.window_start[episode][segment]
    return View(of_wall, episode, first[kept], last[kept], segment[inside], position[inside])
