"""Ink of curves in a picture: the coverage of every pixel by a pen that follows the curve.

Two coverages are computed, and the larger holds:

- the *union*: what a round pen of the line's width covers. A vertical cut through the trace of a continuous
  curve is one interval, whose ends are the curve's grey dilation and erosion by a disc; some cuts are made
  per pixel. A smooth curve is sampled once per cut, of a noisy one the extremes within the cut count.
- the *overlap*, for noisy curves: Agg adds the areas of all strokes in a pixel and clips the sum at 1, so
  where a curve goes up and down within a pixel it blackens edges that the union leaves grey. Here a stroke is
  a box as wide as the pen.

Both are written as events, where coverage begins and ends in a pixel column, and a cumulative sum over the
inked rows of each column makes ink of them: the cost follows the number of samples and of inked pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

SMOOTH_SAMPLES = 3  # of a smooth curve per pixel
_SMOOTH_CUTS = 2 * SMOOTH_SAMPLES  # per pixel; a cut is a quarter of the way from a sample to the next
_CUTS = 4  # of a noisy curve
_TIP = 0.15  # px: a spike's round tip, spread over its width, as a longer spike
_STROKES = 7  # a pixel at least, for strokes to be thin against it
_SHIFT = 12  # ink is counted in 1/4096 of a grey level: whole numbers add up to exactly nothing again
_FULL = 255 << _SHIFT


class Scratch:
    """Arrays by name that grow and are used again: fresh memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, type], np.ndarray] = {}

    def get(self, name: str, shape: int | tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
        """An array of that shape with any content; the same memory at every call with this name and type."""
        n = int(np.prod(shape))
        key = (name, dtype)
        array = self._arrays.get(key)
        if array is None or len(array) < n:
            array = self._arrays[key] = np.empty(n + n // 2, dtype)
        return array[:n].reshape(shape)


def draw_noisy(
    out: np.ndarray, origin: np.ndarray, curves: np.ndarray, size: int, width: float, scratch: Scratch
) -> None:
    """Draw curves into pictures, strokes that meet in a pixel adding up.

    Parameters
    ----------
    out : ndarray, uint8, flat
        Pictures, row by row from the top; written where there is ink.
    origin : ndarray, int64, shape (m,)
        Where the curves' pictures begin in it.
    curves : ndarray, float32, shape (m, n)
        Samples from the left to the right edge, in pixels from the bottom.
    size, width : int, float
        Side of a picture and width of the line, in pixels.
    scratch : Scratch
    """
    curves = _finer(curves, _STROKES * size)
    g = _geometry(curves.shape[1], size, width)
    low, high = _cut_extremes(curves, g)
    bottom, top = _dilate(low, high, g)
    first, last = _by_column(np.minimum, bottom), _by_column(np.maximum, top)
    # Strokes of the columns beside it reach into a column.
    lowest, highest = _by_column(np.minimum, low) - _TIP, _by_column(np.maximum, high) + _TIP
    for away in range(1, min(int(np.ceil(width / 2)), size - 1) + 1):
        for ours, theirs in (
            (slice(away, None), slice(None, -away)),
            (slice(None, -away), slice(away, None)),
        ):
            np.minimum(first[:, ours], lowest[:, theirs], out=first[:, ours])
            np.maximum(last[:, ours], highest[:, theirs], out=last[:, ours])
    slots = _Slots(np.maximum(first, 0), np.minimum(last, size))
    ink = _union(bottom, top, slots, scratch)
    np.maximum(
        ink, _overlap(curves, g, slots.base, scratch.get("overlap", slots.total + 2, np.int32)), out=ink
    )
    slots.write(out, origin, ink, scratch)


def draw_smooth(
    out: np.ndarray, origin: np.ndarray, curves: np.ndarray, size: int, width: float, scratch: Scratch
) -> None:
    """Draw smooth curves, given by their first point, the middles of equal parts and their last point.

    Parameters as of `draw_noisy`, but ``curves`` (m, SMOOTH_SAMPLES size + 2).
    """
    radius, n = width / 2, size * _SMOOTH_CUTS
    reach = int(radius * _SMOOTH_CUTS)  # cuts from the pen's centre to its edge
    line = _middles_of_cuts(curves, radius, reach, scratch)  # (m, reach + n + reach)
    centre = line[:, reach : reach + n]
    bottom, top = centre - np.float32(radius), centre + np.float32(radius)
    extreme = scratch.get("extreme", bottom.shape, np.float32)
    for d in range(1, reach + 1):
        height = np.float32(np.sqrt(radius**2 - (d / _SMOOTH_CUTS) ** 2))
        left, right = line[:, reach - d : reach - d + n], line[:, reach + d : reach + d + n]
        np.minimum(left, right, out=extreme)
        extreme -= height
        np.minimum(bottom, extreme, out=bottom)
        np.maximum(left, right, out=extreme)
        extreme += height
        np.maximum(top, extreme, out=top)
    np.maximum(bottom, 0, out=bottom)
    np.minimum(top, size, out=top)
    slots = _Slots(_by_column(np.minimum, bottom, _SMOOTH_CUTS), _by_column(np.maximum, top, _SMOOTH_CUTS))
    slots.write(out, origin, _union(bottom, top, slots, scratch), scratch)


def _middles_of_cuts(curves: np.ndarray, radius: float, reach: int, scratch: Scratch) -> np.ndarray:
    """Smooth curves in the middle of every cut, with ``reach`` more cuts at either end.

    There the line goes straight on for half its width.
    """
    first, last, inside = curves[:, :1], curves[:, -1:], curves[:, 1:-1]
    step = np.diff(inside, prepend=2 * first - inside[:, :1], append=2 * last - inside[:, -1:])
    step *= np.float32(0.25)
    line = scratch.get("line", (len(curves), 2 * (inside.shape[1] + reach)), np.float32)
    end = line.shape[1] - reach
    np.subtract(inside, step[:, :-1], out=line[:, reach:end:2])
    np.add(inside, step[:, 1:], out=line[:, reach + 1 : end : 2])
    away = (np.arange(reach, dtype=np.float32) + np.float32(0.5)) / _SMOOTH_CUTS  # px from the end
    for value, slope, beyond in (
        (first, -4 * SMOOTH_SAMPLES * step[:, :1], line[:, :reach][:, ::-1]),
        (last, 4 * SMOOTH_SAMPLES * step[:, -1:], line[:, end:]),
    ):
        beyond[:] = value + slope * np.minimum(away, np.float32(radius) / np.sqrt(1 + slope * slope))
    return line


class _Slots:
    """A slot per inked row, column after column, for curves whose columns reach from first to last (m, size).

    What begins and ends in a column sums to 0 before the next one begins, so one cumulative sum serves all.
    """

    def __init__(self, first: np.ndarray, last: np.ndarray) -> None:
        m, self.size = first.shape
        self._row = first.astype(np.int64)
        self._count = np.ceil(last).astype(np.int64) - self._row
        self._start = np.cumsum(self._count).reshape(m, self.size) - self._count
        self.total = int(self._start[-1, -1] + self._count[-1, -1])
        self.base = self._start - self._row  # slot of row 0, had the column one

    def write(self, out: np.ndarray, origin: np.ndarray, ink: np.ndarray, scratch: Scratch) -> None:
        """Write ink, in 1/4096 of a grey level, into pictures that begin at ``origin`` (m,) in ``out``."""
        size = self.size
        ink = np.minimum(ink[: self.total], _FULL, out=ink[: self.total])
        ink += 1 << (_SHIFT - 1)
        grey = np.right_shift(ink, _SHIFT, out=scratch.get("grey", self.total, np.uint8), casting="unsafe")
        # From slot to slot one row up, and from the end of a column to the first inked row of the next one.
        corner = origin[:, None] + (size - 1) * size + np.arange(size)
        first = corner - self._row * size
        where = scratch.get("where", self.total, np.int64)
        where.fill(-size)
        jump = first.ravel().copy()
        jump[1:] -= (first - (self._count - 1) * size).ravel()[:-1]
        where[self._start.ravel()] = jump
        out[np.cumsum(where, out=where)] = grey


def _union(bottom: np.ndarray, top: np.ndarray, slots: _Slots, scratch: Scratch) -> np.ndarray:
    """Ink of every slot by the pen's trace: an interval per cut."""
    ink = scratch.get("union", slots.total + 2, np.int32)
    ink.fill(0)
    cuts = bottom.shape[1] // slots.size
    shape = (*slots.base.shape, cuts)
    for ends, share in ((bottom, _FULL // cuts), (top, -_FULL // cuts)):
        row = ends.astype(np.int32)
        upper = ends - row.astype(np.float32)
        upper *= share
        _put(ink, row.reshape(shape) + slots.base[:, :, None], upper.astype(np.int32), share)
    return np.cumsum(ink, out=ink)


def _by_column(extreme: np.ufunc, cuts: np.ndarray, per_column: int = _CUTS) -> np.ndarray:
    """Extreme over the cuts of every column, (m, cuts) to (m, size)."""
    found = extreme(cuts[:, ::per_column], cuts[:, 1::per_column])
    for i in range(2, per_column):
        extreme(found, cuts[:, i::per_column], out=found)
    return found


def _finer(curves: np.ndarray, strokes: int) -> np.ndarray:
    """Cut the strokes of curves (m, n) into equal pieces until there are at least so many."""
    n = curves.shape[1] - 1
    pieces = -(-strokes // n)
    if pieces == 1:
        return curves
    part = np.arange(pieces, dtype=np.float32) / pieces
    fine = curves[:, :-1, None] + np.diff(curves)[:, :, None] * part  # (m, n - 1, pieces)
    return np.concatenate([fine.reshape(len(curves), -1), curves[:, -1:]], axis=1)


@dataclass(frozen=True)
class _Geometry:
    """Everything about a picture that does not depend on the curve: tables over samples, cuts and columns."""

    size: int
    edge_left: np.ndarray  # (cuts + 1,) sample to the left of each cut's edge
    edge_weight: np.ndarray  # (cuts + 1,) of the sample to the right
    inside: tuple[np.ndarray, ...]  # each (cuts,): the first, second … sample in each cut
    disc: tuple[float, ...]  # half-heights of the pen at 0, 1, 2 … cuts from its centre
    moves: tuple[_Move, ...]
    stroke_column: np.ndarray  # (w, n - 1) columns that a stroke reaches …
    stroke_weight: np.ndarray  # (w, n - 1) … and its width in them


@dataclass(frozen=True)
class _Move:
    """What a line that keeps its direction gains in width, at some of the vertices, each in one column."""

    which: np.ndarray | None  # (e,) of the vertices; None: all of them
    column: np.ndarray  # (e,)
    gain: np.ndarray  # (e,)


@functools.lru_cache(maxsize=16)
def _geometry(n_samples: int, size: int, width: float) -> _Geometry:
    x = np.linspace(0.0, size, n_samples)
    edges = np.arange(size * _CUTS + 1) / _CUTS
    left = np.clip(np.searchsorted(x, edges, side="right") - 1, 0, n_samples - 2)
    weight = ((edges - x[left]) / (x[left + 1] - x[left])).astype(np.float32)
    first, last = np.searchsorted(x, edges[:-1]), np.searchsorted(x, edges[1:], side="right") - 1
    radius = width / 2
    middle = (x[:-1] + x[1:]) / 2  # of the strokes
    columns = np.floor(middle - radius).astype(np.int64) + np.arange(int(np.ceil(width)) + 1)[:, None]
    covered = np.minimum(middle + radius, columns + 1) - np.maximum(middle - radius, columns)
    covered = np.where((columns < 0) | (columns >= size), 0.0, np.clip(covered, 0.0, 1.0))  # (w, strokes)
    covered = np.rint(covered * _FULL).astype(np.int64)
    # Where nothing is covered the column must still be one whose rows the stroke can be in.
    columns = np.where(covered > 0, columns, columns[covered.argmax(0), np.arange(len(middle))])
    return _Geometry(
        size=size,
        edge_left=left,
        edge_weight=weight,
        inside=tuple(np.minimum(first + i, last) for i in range(int((last - first).max()) + 1)),
        disc=_disc(radius),
        moves=_moves(columns, covered),
        stroke_column=columns,
        stroke_weight=covered.astype(np.int32) * 2,
    )


def _disc(radius: float) -> tuple[float, ...]:
    """Half-heights of the pen at 0, 1, 2 … cuts from its centre.

    The extreme of a cut lies in its middle on average where it is a spike, at its far edge where the curve
    slopes: in between, therefore.
    """
    away = (np.arange(1, int(np.ceil(radius * _CUTS)) + 1) + 0.25) / _CUTS
    return (radius, *np.sqrt(radius**2 - away[away < radius] ** 2).tolist())


def _moves(columns: np.ndarray, covered: np.ndarray) -> tuple[_Move, ...]:
    """Differences of width between a stroke and the next, as lists with each vertex at most once.

    At a vertex one stroke ends and another begins; where both go up, a column sees only the difference of
    their widths in it. Few columns differ; the lists in which nearly every vertex occurs are filled up.
    """
    n_strokes = columns.shape[1]
    gain: dict[tuple[int, int], int] = {}
    for reached, widths in zip(columns.tolist(), covered.tolist(), strict=True):
        for k, (column, width) in enumerate(zip(reached, widths, strict=True)):
            gain[k, column] = gain.get((k, column), 0) + width
            gain[k + 1, column] = gain.get((k + 1, column), 0) - width
    lists: list[dict[int, tuple[int, int]]] = []
    seen: dict[int, int] = {}
    for (vertex, column), width in sorted(gain.items()):
        if width:
            nth = seen[vertex] = seen.get(vertex, -1) + 1
            if nth == len(lists):
                lists.append({})
            lists[nth][vertex] = (column, width)
    moves = []
    for entries in lists:
        full = len(entries) > n_strokes // 2
        vertices = range(n_strokes + 1) if full else sorted(entries)
        found = [entries.get(v, (int(columns[0, min(v, n_strokes - 1)]), 0)) for v in vertices]
        column, width = np.array([c for c, _ in found]), np.array([w for _, w in found], np.int32)
        moves.append(_Move(None if full else np.array(vertices), column, width))
    return tuple(moves)


def _cut_extremes(curves: np.ndarray, g: _Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The curves' lowest and highest value in every cut, (m, cuts)."""
    edge = curves
    if curves.shape[1] != len(g.edge_left):  # else the samples are the edges
        edge = curves.take(g.edge_left, 1)
        step = curves.take(g.edge_left + 1, 1)
        step -= edge
        step *= g.edge_weight
        edge += step
    low, high = np.minimum(edge[:, :-1], edge[:, 1:]), np.maximum(edge[:, :-1], edge[:, 1:])
    if edge is not curves:
        for sample in g.inside:
            values = curves.take(sample, 1)
            np.minimum(low, values, out=low)
            np.maximum(high, values, out=high)
    return low, high


def _dilate(low: np.ndarray, high: np.ndarray, g: _Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The pen's lowest and highest point in every cut, within the picture, (m, cuts)."""
    bottom, top = low - g.disc[0], high + g.disc[0]
    for d, height in enumerate(g.disc[1:], start=1):
        lower, upper = low - height, high + height
        np.minimum(bottom[:, d:], lower[:, :-d], out=bottom[:, d:])
        np.minimum(bottom[:, :-d], lower[:, d:], out=bottom[:, :-d])
        np.maximum(top[:, d:], upper[:, :-d], out=top[:, d:])
        np.maximum(top[:, :-d], upper[:, d:], out=top[:, :-d])
    return np.maximum(bottom, 0, out=bottom), np.minimum(top, g.size, out=top)


def _overlap(curves: np.ndarray, g: _Geometry, base: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Ink of every slot summed over strokes; a stroke is a box as wide as the pen."""
    ink.fill(0)
    n = curves.shape[1]
    rising = curves[:, 1:] >= curves[:, :-1]
    # The line moves on: the strokes' direction is that after the vertex (at the end: before it).
    row = curves.astype(np.int32)
    part = curves - row.astype(np.float32)
    after = np.empty((len(curves), n), np.int32)
    np.multiply(rising, 2, out=after[:, :-1])
    after[:, :-1] -= 1
    after[:, -1] = after[:, -2]
    for move in g.moves:
        some = (row, part, after)
        if move.which is not None:
            some = (row.take(move.which, 1), part.take(move.which, 1), after.take(move.which, 1))
        gain = some[2] * move.gain
        _put(
            ink,
            some[0] + base.take(move.column, 1),
            (some[1] * gain.astype(np.float32)).astype(np.int32),
            gain,
        )
    # The line turns: the stroke that ends and the one that begins lie on the same side of the vertex.
    turning = np.flatnonzero(rising[:, 1:] != rising[:, :-1])
    p, k = np.divmod(turning, n - 2)
    came = turning + p  # position among the m (n - 1) strokes
    value = curves.ravel().take(came + p + 1)
    sign = 1 - 2 * rising.ravel().take(came).astype(np.int32)
    value -= np.float32(_TIP) * sign.astype(np.float32)
    np.clip(value, 0, g.size, out=value)
    row = value.astype(np.int32)
    part = value - row.astype(np.float32)
    base = base.ravel()
    p *= g.size
    for column, weight in zip(g.stroke_column, g.stroke_weight, strict=True):
        gain = weight.take(k) * sign
        slot = row + base.take(column.take(k) + p)
        _put(ink, slot, (part * gain.astype(np.float32)).astype(np.int32), gain)
    return np.cumsum(ink, out=ink)


def _put(ink: np.ndarray, slot: np.ndarray, upper: np.ndarray, whole: np.ndarray | int) -> None:
    """Add ``upper`` to the slot after each and the rest of ``whole`` to it."""
    slot = slot.ravel()
    np.add.at(ink, slot, np.subtract(whole, upper, dtype=np.int32).ravel())
    np.add.at(ink[1:], slot, upper.ravel())
