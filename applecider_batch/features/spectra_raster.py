"""Line plots of spectra as pixels, without a plotting library (Appendix A of arXiv:2507.16088).

A spectrum becomes three 288 x 288 line plots: raw, LOESS 0.05, LOESS 0.1, each scaled from its own minimum
(bottom) to its own maximum (top), no axes, no margins. A picture is what matplotlib's Agg draws at 100 dpi
into a figure of 2.88 x 2.88 inches, with axes over all of it and a line of 1.0 pt = 1.389 px, as ink: 255
minus the grey level.

The grid is uniform, so a curve is one number per sample. Two coverages are computed, and the larger holds:

- the *union*: what a round pen of that width covers. A vertical cut through the trace of a continuous curve
  is one interval, whose ends are the curve's grey dilation and erosion by a disc; four cuts are made per
  pixel.
- the *overlap*: Agg adds the areas of all strokes in a pixel and clips the sum at 1, so where a noisy curve
  goes up and down within a pixel it blackens edges that the union leaves grey. Here a stroke is a box as
  wide as the pen.

Both are written as events, where coverage begins and ends in a pixel column, and a cumulative sum over the
inked rows of each column makes ink of them: the cost follows the number of samples and of inked pixels.

On real spectra the difference from matplotlib's pictures is 0.1 to 0.2 % of the pixels' range on average
and about 1.2 % root mean square, most of it matplotlib's own simplification of the path (0.7 %);
`benchmarks/spectra_raster.py` measures it. Where a line swings over the whole picture every few pixels it
is about 6 %.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.loess import loess

PICTURE_SIZE = 288
LINE_WIDTH_PT = 1.0
DPI = 100.0
LINE_WIDTH_PX = LINE_WIDTH_PT * DPI / 72
LOESS_SPANS = (0.05, 0.1)

_CUTS = 4  # vertical cuts per pixel
_TIP = 0.15  # px: a spike's round tip, spread over its width, as a longer spike
_PAIR = 2  # samples that share the x of their strokes
_STROKES = 7  # a pixel at least, for strokes to be thin against it
_CHUNK = 16  # curves at a time: the working set stays in the cache
_SHIFT = 12  # ink is counted in 1/4096 of a grey level: whole numbers add up to exactly nothing again
_FULL = 255 << _SHIFT


@dataclass(frozen=True)
class _Geometry:
    """Everything about a picture that does not depend on the curve: tables over samples, cuts and columns."""

    size: int
    edge_left: np.ndarray  # (cuts + 1,) sample to the left of each cut's edge
    edge_weight: np.ndarray  # (cuts + 1,) of the sample to the right
    inside: tuple[np.ndarray, ...]  # each (cuts,): the first, second … sample in each cut
    disc: tuple[float, ...]  # half-heights of the pen at 0, 1, 2 … cuts from its centre
    vertex: np.ndarray  # (v,) samples at which a pair of strokes ends and another begins
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
    start = np.arange(0, n_samples - 1, _PAIR)
    middle = (x[start] + x[np.minimum(start + _PAIR, n_samples - 1)]) / 2
    columns = np.floor(middle - radius).astype(np.int64) + np.arange(int(np.ceil(width)) + 1)[:, None]
    covered = np.minimum(middle + radius, columns + 1) - np.maximum(middle - radius, columns)
    covered = np.where((columns < 0) | (columns >= size), 0.0, np.clip(covered, 0.0, 1.0))  # (w, pairs)
    covered = np.rint(covered * _FULL).astype(np.int64)
    # Where nothing is covered the column must still be one whose rows the stroke can be in.
    columns = np.where(covered > 0, columns, columns[covered.argmax(0), np.arange(len(middle))])
    of_stroke = np.arange(n_samples - 1) // _PAIR
    return _Geometry(
        size=size,
        edge_left=left,
        edge_weight=weight,
        inside=tuple(np.minimum(first + i, last) for i in range(int((last - first).max()) + 1)),
        disc=tuple(float(np.sqrt(radius**2 - (d / _CUTS) ** 2)) for d in range(int(np.ceil(radius * _CUTS)))),
        vertex=np.append(start, n_samples - 1),
        moves=_moves(columns, covered),
        stroke_column=columns[:, of_stroke],
        stroke_weight=covered[:, of_stroke].astype(np.int32) * 2,
    )


def _moves(columns: np.ndarray, covered: np.ndarray) -> tuple[_Move, ...]:
    """Differences of width between a pair of strokes and the next, as lists with each vertex at most once.

    At a vertex the strokes before it end and those after it begin; where both go up, a column sees only the
    difference of their widths in it. Few columns differ; the lists in which nearly every vertex occurs are
    filled up.
    """
    n_pairs = columns.shape[1]
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
        full = len(entries) > n_pairs // 2
        vertices = range(n_pairs + 1) if full else sorted(entries)
        pairs = [entries.get(v, (int(columns[0, min(v, n_pairs - 1)]), 0)) for v in vertices]
        column, width = np.array([c for c, _ in pairs]), np.array([w for _, w in pairs], np.int32)
        moves.append(_Move(None if full else np.array(vertices), column, width))
    return tuple(moves)


class _Scratch:
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


def _ink(
    curves: np.ndarray, origin: np.ndarray, g: _Geometry, scratch: _Scratch, *, overlap: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where curves (m, n) leave ink, as flat indices where pictures begin at ``origin`` (m,); how much."""
    m, size = len(curves), g.size
    low, high = _cut_extremes(curves, g)
    bottom, top = _dilate(low, high, g)
    first, last = _by_column(np.minimum, bottom), _by_column(np.maximum, top)
    if overlap:  # strokes of the neighbouring columns reach into this one
        lowest, highest = _by_column(np.minimum, low) - _TIP, _by_column(np.maximum, high) + _TIP
        for ours, theirs in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            np.minimum(first[:, ours], lowest[:, theirs], out=first[:, ours])
            np.maximum(last[:, ours], highest[:, theirs], out=last[:, ours])
    row0 = np.maximum(first, 0).astype(np.int64)  # (m, size)
    row1 = np.minimum(np.ceil(last), size).astype(np.int64)
    # A slot per inked row, column after column. What begins and ends in a column sums to 0 before the next
    # one begins, so one cumulative sum serves all.
    count = row1 - row0
    offset = np.cumsum(count).reshape(m, size) - count
    total = int(offset[-1, -1] + count[-1, -1])
    base = offset - row0
    ink = _union(bottom, top, base, scratch.get("union", total + 2, np.int32))
    if overlap:
        np.maximum(ink, _overlap(curves, g, base, scratch.get("overlap", total + 2, np.int32)), out=ink)
    np.minimum(ink, _FULL, out=ink)
    ink += 1 << (_SHIFT - 1)
    ink >>= _SHIFT
    # From slot to slot one row up, and from the end of a column to the first inked row of the next one.
    corner = origin[:, None] + (size - 1) * size + np.arange(size)
    first_slot = corner - row0 * size
    where = scratch.get("where", total, np.int64)
    where.fill(-size)
    jump = first_slot.ravel().copy()
    jump[1:] -= (first_slot - (count - 1) * size).ravel()[:-1]
    where[offset.ravel()] = jump
    return np.cumsum(where, out=where), ink[:total]


def _by_column(extreme: np.ufunc, cuts: np.ndarray) -> np.ndarray:
    """Extreme over the cuts of every column, (m, cuts) to (m, size)."""
    found = extreme(cuts[:, ::_CUTS], cuts[:, 1::_CUTS])
    for i in range(2, _CUTS):
        extreme(found, cuts[:, i::_CUTS], out=found)
    return found


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


def _union(bottom: np.ndarray, top: np.ndarray, base: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Ink of every slot by the pen's trace: an interval per cut."""
    ink.fill(0)
    shape = (*base.shape, _CUTS)
    for ends, share in ((bottom, _FULL // _CUTS), (top, -_FULL // _CUTS)):
        row = ends.astype(np.int32)
        upper = ends - row.astype(np.float32)
        upper *= share
        _put(ink, row.reshape(shape) + base[:, :, None], upper.astype(np.int32), share)
    return np.cumsum(ink, out=ink)


def _overlap(curves: np.ndarray, g: _Geometry, base: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Ink of every slot summed over strokes; a stroke is a box as wide as the pen."""
    ink.fill(0)
    n = curves.shape[1]
    rising = curves[:, 1:] >= curves[:, :-1]
    # The line moves on: the strokes' direction is that after the vertex (at the end: before it).
    value = curves.take(g.vertex, 1)
    row = value.astype(np.int32)
    part = value - row.astype(np.float32)
    after = rising.take(g.vertex, 1, mode="clip").astype(np.int32)
    after *= 2
    after -= 1
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


def _scale(curves: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves (m, n) as float32, from 0 at their minimum to ``size``; and which can be drawn (m,)."""
    low, high = curves.min(1, keepdims=True), curves.max(1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        span = high - low
        usable = np.isfinite(span)
        scaled = ((curves - low) * (size / np.where(usable & (span > 0), span, 1))).astype(np.float32)
    if not (span > 0).all():
        scaled[(span == 0)[:, 0]] = size / 2
        scaled[~usable[:, 0]] = 0
    return scaled, usable[:, 0]


def _finer(curves: np.ndarray, strokes: int) -> np.ndarray:
    """Cut the strokes of curves (m, n) into equal pieces until there are at least so many."""
    n = curves.shape[1] - 1
    pieces = -(-strokes // n)
    if pieces == 1:
        return curves
    part = np.arange(pieces, dtype=np.float32) / pieces
    fine = curves[:, :-1, None] + np.diff(curves)[:, :, None] * part  # (m, n - 1, pieces)
    return np.concatenate([fine.reshape(len(curves), -1), curves[:, -1:]], axis=1)


def _draw(
    out: np.ndarray,
    origin: np.ndarray,
    curves: np.ndarray,
    size: int,
    width: float,
    scratch: _Scratch,
    overlap: bool,
) -> None:
    """Draw scaled curves (m, n) into flat ``out``, the pictures of which begin at ``origin`` (m,)."""
    cuts = size * _CUTS
    if curves.shape[1] != cuts + 1 or overlap:
        curves = _finer(curves, (_STROKES if overlap else _CUTS) * size)
    where, ink = _ink(curves, origin, _geometry(curves.shape[1], size, width), scratch, overlap=overlap)
    out[where] = ink.astype(np.uint8)


def rasterise(
    curves: np.ndarray,
    *,
    size: int = PICTURE_SIZE,
    line_width_px: float = LINE_WIDTH_PX,
    overlap: bool = True,
) -> np.ndarray:
    """Line plots of curves on a uniform grid.

    Parameters
    ----------
    curves : ndarray, float, shape (n, N)
        One curve a row, N >= 2 samples from the left to the right edge; scaled from its minimum (bottom) to
        its maximum (top), a constant one lies in the middle. A curve with a NaN or an infinity gets no ink.
    size : int
        Pixels a side.
    line_width_px : float
        Width of the line in pixels (linewidth * dpi / 72).
    overlap : bool
        Whether strokes that meet in a pixel add up, as Agg's do. Smooth curves do without.

    Returns
    -------
    ndarray, uint8, shape (n, size, size)
        Ink: 0 none, 255 full; row 0 is the top.

    Raises
    ------
    UserError
        If the shape is not (n, N >= 2) or the line has no width.
    """
    curves = _checked(curves)
    if not 0 < line_width_px < size:
        raise UserError(f"The line's width must be between 0 and {size} pixels; given {line_width_px}.")
    pictures = np.zeros((len(curves), size, size), np.uint8)
    scratch = _Scratch()
    for start in range(0, len(curves), _CHUNK):
        scaled, usable = _scale(curves[start : start + _CHUNK], size)
        origin = (start + np.flatnonzero(usable)) * size * size
        if len(origin):
            _draw(pictures.reshape(-1), origin, scaled[usable], size, float(line_width_px), scratch, overlap)
    return pictures


def render_spectra(
    flux: np.ndarray, *, size: int = PICTURE_SIZE, line_width_px: float = LINE_WIDTH_PX
) -> np.ndarray:
    """Pictures for the rendered-spectrum network: raw, LOESS 0.05, LOESS 0.1 as channels.

    Parameters
    ----------
    flux : ndarray, float, shape (n, N)
        Spectra on a uniform grid, N >= 80. One with a NaN or an infinity gives a blank picture.
    size, line_width_px
        As `rasterise`.

    Returns
    -------
    ndarray, uint8, shape (n, 3, size, size)
        Ink: 0 none, 255 full. In another batch a smoothed channel may differ by one level here and there,
        because matrix products round differently.

    Raises
    ------
    UserError
        If the shape is not (n, N) or N is too small for LOESS 0.05.
    """
    flux = _checked(flux)
    channels = 1 + len(LOESS_SPANS)
    pictures = np.zeros((len(flux), channels, size, size), np.uint8)
    flat, area, width = pictures.reshape(-1), size * size, float(line_width_px)
    scratch = _Scratch()
    for start in range(0, len(flux), _CHUNK):
        scaled, usable = _scale(flux[start : start + _CHUNK], size)
        scaled = scaled[usable]
        first = (start + np.flatnonzero(usable)) * channels * area
        if not len(first):
            continue
        _draw(flat, first, scaled, size, width, scratch, True)
        for channel, span in enumerate(LOESS_SPANS, start=1):
            smooth, _ = _scale(loess(scaled, span, points=size * _CUTS + 1), size)
            _draw(flat, first + channel * area, smooth, size, width, scratch, False)
    return pictures


def _checked(curves: np.ndarray) -> np.ndarray:
    curves = np.asarray(curves)
    if curves.ndim != 2 or curves.shape[1] < 2:
        raise UserError(f"Curves must have the shape (n, N) with N of at least 2; given {curves.shape}.")
    return curves
