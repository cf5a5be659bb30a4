"""Local cross-match of episodes with lists of known sources.

The status of an episode:

``known``          a transient within the radius, discovered within the window around the episode's first
                   detection; or a source of a minor-planet, variable-star or AGN list within the radius
``late``           the same, but every such report reached the list's keeper more than ``late_days`` after the
                   first detection
``out_of_window``  transients within the radius, all of another time; shown, and never called unreported
``unreported``     none of these, with all lists searched: at least one transient list, none of which was
                   written before the first detection
``unchecked``      otherwise (no position, no first detection, no transient list, list too old)

An episode without a position is looked for by its objectId in the lists that give the survey's names; that it
is not in them proves nothing.

TNS asks its users to match against its dump on their own machines.  The search is a k-d tree of unit vectors;
memory is that of the lists and of one batch of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.known import KINDS, KnownList
from applecider_batch.digest import json_digest
from applecider_batch.errors import UsageError
from applecider_batch.schema import load_table

RADIUS_ARCSEC = 3.0
WINDOW_DAYS = (-30.0, 100.0)
LATE_DAYS = 10.0
#: A date in a minor-planet list counts if it falls on a night of the episode.
MOVER_SLACK_DAYS = 0.5
NOT_ELIGIBLE_CLASSES = ("CV", "AGN")
_STAR_TYPES = ("cv", "nova", "star", "varstar", "var", "agn", "qso", "m dwarf")


@dataclass(frozen=True)
class MatchOptions:
    """How sources are matched: radius in arcsec, window and lateness in days after the first detection."""

    radius_arcsec: float = RADIUS_ARCSEC
    window_days: tuple[float, float] = WINDOW_DAYS
    late_days: float = LATE_DAYS

    def __post_init__(self) -> None:
        if not 0 < self.radius_arcsec <= 3600:
            raise UsageError(f"The match radius must be in (0, 3600] arcsec, and is {self.radius_arcsec:g}.")
        if not self.window_days[0] <= self.window_days[1]:
            raise UsageError(f"The window must be EARLIEST,LATEST in days, and is {self.window_days}.")


@dataclass(frozen=True)
class Matches:
    """All pairs within the radius, sorted by (episode, rank): the first pair decides the status.

    Attributes
    ----------
    episode, source : ndarray of int64, shape (p,)
    sep_arcsec : ndarray of float64, shape (p,)
        NaN where the episode has no position and its name was found.
    dt_days : ndarray of float64, shape (p,)
        Discovery minus first detection; NaN where the discovery is not dated to the day.
    in_window : ndarray of bool, shape (p,)
    """

    episode: np.ndarray
    source: np.ndarray
    sep_arcsec: np.ndarray
    dt_days: np.ndarray
    in_window: np.ndarray


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 3) of positions in degrees."""
    lon, lat = np.deg2rad(ra), np.deg2rad(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def pairs_within(
    tree: Any, xyz: np.ndarray, radius_arcsec: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (row of ``xyz``, point of the tree, separation in arcsec) within a radius, by row and point."""
    chord = 2.0 * np.sin(np.deg2rad(radius_arcsec / 3600.0) / 2.0)
    near = np.flatnonzero(np.isfinite(tree.query(xyz, k=1, distance_upper_bound=np.nextafter(chord, 9.0))[0]))
    lists = tree.query_ball_point(xyz[near], chord, return_sorted=True) if len(near) else []
    row = np.repeat(near, [len(found) for found in lists]).astype(np.int64)
    point = np.array([p for found in lists for p in found], np.int64)
    distance = np.linalg.norm(xyz[row] - tree.data[point], axis=1)
    return row, point, np.rad2deg(2.0 * np.arcsin(np.minimum(distance / 2.0, 1.0))) * 3600.0


class CrossMatcher:
    """Known lists in one tree; writes the cross-match columns of catalogue rows.

    Parameters
    ----------
    lists : sequence of KnownList
    options : MatchOptions
    """

    def __init__(self, lists: Sequence[KnownList], options: MatchOptions | None = None) -> None:
        from scipy.spatial import cKDTree

        self.lists, self.options = list(lists), options or MatchOptions()
        self._kind = np.concatenate([np.full(len(k), KINDS.index(k.kind), np.int8) for k in self.lists])
        self._list = np.concatenate([np.full(len(k), i, np.int32) for i, k in enumerate(self.lists)])
        self._lo, self._hi, self._received = (
            np.concatenate([getattr(k, name) for k in self.lists])
            for name in ("jd_lo", "jd_hi", "jd_received")
        )
        self._names = pa.array([n for k in self.lists for n in k.names], pa.string())
        self._types = pa.array([t for k in self.lists for t in k.types], pa.string())
        self._labels = pa.array([f"{k.kind}:{k.label}" for k in self.lists], pa.string())
        objects = pa.array([n for k in self.lists for n in (k.objects or [None] * len(k))], pa.string())
        self._named = np.flatnonzero(objects.is_valid().to_numpy(zero_copy_only=False))
        self._objects = objects.take(pa.array(self._named))
        xyz = unit_vectors(*(np.concatenate([getattr(k, c) for k in self.lists]) for c in ("ra", "dec")))
        self._tree = cKDTree(xyz)
        ends = [k.until for k in self.lists if k.kind == "transient" and k.until is not None]
        self._until = min(ends, default=np.inf)
        self._has_transients = any(k.kind == "transient" for k in self.lists)
        starlike = pc.is_in(pc.utf8_lower(self._types), pa.array(_STAR_TYPES))
        self._starlike = pc.fill_null(starlike, False).to_numpy(zero_copy_only=False)

    @property
    def digest(self) -> str:
        """Digest of lists and options: part of the catalogue's identity."""
        return json_digest(self.describe())

    def describe(self) -> dict[str, Any]:
        """Lists, kinds and options, for ``catalog.json``."""
        return {
            "lists": [known.describe() for known in self.lists],
            "kinds_checked": [kind for kind in KINDS if any(k.kind == kind for k in self.lists)],
            "radius_arcsec": self.options.radius_arcsec,
            "window_days": list(self.options.window_days),
            "late_days": self.options.late_days,
        }

    def match(
        self,
        ra: np.ndarray,
        dec: np.ndarray,
        first: np.ndarray,
        last: np.ndarray | None = None,
        names: pa.Array | None = None,
    ) -> Matches:
        """Pairs of episodes and sources within the radius, or of one name where there is no position.

        Parameters
        ----------
        ra, dec : ndarray of float64, shape (n,)
            ICRS, degrees; NaN where unknown.
        first, last : ndarray of float64, shape (n,)
            JD of the first (t0) and the last detection; NaN where unknown.
        names : Array of string, length n, optional
            objectIds.
        """
        last = first if last is None else last
        placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        row, source, sep = pairs_within(
            self._tree, unit_vectors(ra[placed], dec[placed]), self.options.radius_arcsec
        )
        episode = placed[row]
        if names is not None and len(self._named):
            lost, named = self._by_name(names, np.setdiff1d(np.arange(len(ra)), placed))
            episode, source = np.concatenate([episode, lost]), np.concatenate([source, named])
            sep = np.concatenate([sep, np.full(len(lost), np.nan)])
        lo, hi = self._lo[source] - first[episode], self._hi[source] - first[episode]
        early, late = self.options.window_days
        undated = np.isnan(lo)
        is_transient, is_mover = self._kind[source] == 0, self._kind[source] == 1
        on_night = (hi >= -MOVER_SLACK_DAYS) & (lo <= last[episode] - first[episode] + MOVER_SLACK_DAYS)
        inside = np.where(is_mover, undated | on_night, undated | ((hi >= early) & (lo <= late)))
        inside |= ~(is_transient | is_mover)
        keep = is_transient | inside
        order = np.lexsort((source, sep, ~inside, ~is_transient, episode))
        order = order[keep[order]]
        dt = np.where(hi - lo > 1.0, np.nan, lo)
        return Matches(episode[order], source[order], sep[order], dt[order], inside[order])

    def _by_name(self, names: pa.Array, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (episode, source) of equal names."""
        ours = pa.table({"name": names.take(pa.array(episodes)), "episode": episodes})
        theirs = pa.table({"name": self._objects, "source": self._named})
        both = ours.join(theirs, "name", join_type="inner")
        return both.column("episode").to_numpy(), both.column("source").to_numpy()

    def annotate(self, table: pa.Table) -> pa.Table:
        """Rows with their cross-match columns; the table must hold whole objects in row order.

        The position and the dates of an episode are those of its last row, so all its rows agree.
        """
        return self.annotate_with_pairs(table)[0]

    def annotate_with_pairs(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The same, and every pair of an episode and a source that counts (schema ``crossmatches``)."""
        if not table.num_rows:
            return table, load_table("crossmatches").empty()
        ends = _episode_ends(table)
        episodes = table.take(pa.array(ends))
        ra, dec, t0, jd_first, jd_last = (
            pc.fill_null(episodes.column(name), float("nan")).to_numpy()
            for name in ("ra", "dec", "t0", "jd_first", "jd_last")
        )
        first = np.where(np.isnan(t0), jd_first, t0)
        names = episodes.column("objectId").combine_chunks().cast(pa.string())
        found = self.match(ra, dec, first, jd_last, names)
        columns = self._columns(episodes, found, first, np.isfinite(ra) & np.isfinite(dec))
        spread = pa.array(np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1)))
        schema = load_table("catalogue").arrow
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(
                at, schema.field(name), values.take(spread).cast(schema.field(name).type)
            )
        return table, self._pairs(episodes, found)

    def _pairs(self, episodes: pa.Table, found: Matches) -> pa.Table:
        source = pa.array(found.source)
        near = episodes.select(["hash64", "objectId", "episode"]).take(pa.array(found.episode))
        columns = {
            **{name: near.column(name) for name in near.column_names},
            "name": self._names.take(source),
            "type": self._types.take(source),
            "list": self._labels.take(pa.array(self._list).take(source)),
            "sep": pa.array(found.sep_arcsec, mask=np.isnan(found.sep_arcsec)),
            "dt": pa.array(found.dt_days, mask=np.isnan(found.dt_days)),
            "in_window": pa.array(found.in_window),
        }
        return load_table("crossmatches").conform(pa.table(columns))

    def _columns(
        self, episodes: pa.Table, found: Matches, first: np.ndarray, placed: np.ndarray
    ) -> dict[str, pa.Array]:
        n = len(first)
        best = np.full(n, -1)
        starts = np.flatnonzero(np.diff(found.episode, prepend=-1))
        best[found.episode[starts]] = starts
        hit = best >= 0
        pair = np.where(hit, best, 0)
        status = self._status(found, first, placed)
        if not len(found.episode):
            source, sep, dt = np.zeros(n, np.int64), np.full(n, np.nan), np.full(n, np.nan)
        else:
            source, sep, dt = found.source[pair], found.sep_arcsec[pair], found.dt_days[pair]
        index = pa.array(source, mask=~hit)
        in_list = pa.array(self._list[source] if len(self._list) else source, mask=~hit)
        return {
            "xm_tns_name": self._names.take(index),
            "xm_tns_type": self._types.take(index),
            "xm_tns_sep": pa.array(sep, mask=~hit | np.isnan(sep)),
            "xm_tns_dt": pa.array(dt, mask=~hit | np.isnan(dt)),
            "xm_n": pa.array(np.bincount(found.episode, minlength=n), mask=~(placed | hit)),
            "xm_list": self._labels.take(in_list),
            "known_status": pa.array(status.tolist(), pa.string()),
            "tns_eligible": self._eligible(episodes, found, status),
        }

    def _status(self, found: Matches, first: np.ndarray, placed: np.ndarray) -> np.ndarray:
        n = len(first)
        transient = self._kind[found.source] == 0
        live = transient & found.in_window
        with np.errstate(invalid="ignore"):
            after = self._received[found.source] > first[found.episode] + self.options.late_days

        def any_of(pairs: np.ndarray) -> np.ndarray:
            return np.bincount(found.episode[pairs], minlength=n) > 0

        searched = placed & np.isfinite(first) & self._has_transients
        with np.errstate(invalid="ignore"):
            searched &= first <= self._until
        conditions = [any_of(live & ~after), any_of(live), any_of(~transient), any_of(transient), searched]
        names = ["known", "late", "known", "out_of_window", "unreported"]
        return np.select(conditions, names, "unchecked")

    def _eligible(self, episodes: pa.Table, found: Matches, status: np.ndarray) -> pa.Array:
        """Unreported, in scope, and neither CV nor AGN nor a listed star; null if unchecked."""

        def same(column: str, values: Sequence[str]) -> np.ndarray:
            inside = pc.is_in(episodes.column(column), pa.array(values))
            return inside.to_numpy()

        star = np.bincount(found.episode[self._starlike[found.source]], minlength=len(status)) > 0
        may = (status == "unreported") & same("gate", ["in_scope"]) & ~star
        may &= (
            ~same("gate_reason", ["outburst_on_star"]) & episodes.column("class_top1").is_valid().to_numpy()
        )
        may &= ~same("class_top1", NOT_ELIGIBLE_CLASSES)
        return pa.array(may, mask=status == "unchecked")


def _episode_ends(table: pa.Table) -> np.ndarray:
    """Position of the last row of every episode, int64."""
    names, episode = table.column("objectId").combine_chunks(), table.column("episode").to_numpy()
    new = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False) | (episode[1:] != episode[:-1])
    return np.append(np.flatnonzero(new), table.num_rows - 1)
