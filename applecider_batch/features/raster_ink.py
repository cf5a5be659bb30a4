"""Ink of line plots: what Agg, the renderer of matplotlib, draws of a curve, as compiled code.

A curve goes through matplotlib's steps, so that its picture is the same within a few grey levels:

1. *Simplification*: samples that lie within a ninth of a pixel of a straight line are left out (matplotlib's
   ``path.simplify`` with its default threshold; curves of fewer than 128 samples keep all).
2. *Outline*: the stroke of the line's width as one closed polygon, with round joins outside, mitred joins
   inside and projecting ends, in whole 1/256 pixels. Where it overlaps itself, areas add up.
3. *Coverage*: the signed area of the polygon in every pixel, cut off at 1 (Levien's and Agg's method, here
   column by column). Within a column an edge of the polygon is a ramp, and what a ramp adds to the pixels of
   the column has a second difference that is zero except at its ends. So an edge is written as three numbers
   at each of its ends, whatever its length, and two cumulative sums over a column give its pixels.

Numba compiles this on the first call (seconds) and keeps the result beside this file, or in the user's cache
where that folder cannot be written, or not at all. Joins' angles come from polynomials of our own and pixels'
values from the four basic operations and square roots, which are the same on every processor.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np

from applecider_batch.compiled import compiled

_FEWEST_SIMPLIFIED = 128  # samples
_TOLERANCE = 1 / 9  # px
_MITRE = 1.01  # half-widths that an inner corner may lie away from its vertex, however short its strokes
_FLAT = 1 / 1024  # of the half-width: the gap between a round join and one point that is not seen
_ARC = 0.125  # px between an arc and its chords
_ONE = 256  # units in a pixel


# A part of a function that is compiled: written into it, as a call would cost more than the part does.
_part = numba.njit(forceinline=True, error_model="numpy")


def grey_levels() -> np.ndarray:
    """Ink of every coverage in 1/255, (256,) uint8: Agg blends black over opaque white in whole numbers."""
    coverage = np.arange(256)
    return (255 - (255 * 255 * (256 - coverage)) // (255 * 256 + coverage)).astype(np.uint8)


@_part
def _scale(curve: np.ndarray, size: int, scaled: np.ndarray) -> bool:
    """Values (n,) in px from the top, the largest at 0, the smallest at ``size``; False if not finite."""
    low = high = curve[0]
    finite = True
    for value in curve:
        finite &= np.isfinite(value)
        low, high = min(low, value), max(high, value)
    span = high - low
    if not (finite and np.isfinite(span)):
        return False
    factor = size / span
    for i in range(len(curve)):
        scaled[i] = (high - curve[i]) * factor if np.isfinite(factor) else size / 2
    return True


@_part
def _simplify(curve: np.ndarray, size: int, x: np.ndarray, y: np.ndarray) -> int:
    """Vertices of the line plot of a curve in px, written to x and y, and their number.

    A sample is left out if it lies within the tolerance of the straight line that its predecessors began;
    of these the farthest forward, the farthest backward and the last are kept.
    """
    n = len(curve)
    step = size / (n - 1)
    if n < _FEWEST_SIMPLIFIED:
        for i in range(n):
            x[i], y[i] = i * step, curve[i]
        return n
    x[0], y[0] = 0.0, curve[0]
    count = 1
    start_x, start_y = last_x, last_y = 0.0, curve[0]
    along_x = along_y = norm = 0.0  # direction of the line
    front_x = front_y = front = back_x = back_y = back = 0.0
    at_front, at_back = True, False
    for i in range(1, n):
        now_x, now_y = i * step, curve[i]
        if norm > 0:
            dx, dy = now_x - start_x, now_y - start_y
            across = along_x * dy - along_y * dx
            forward = along_x * dx + along_y * dy
            if across * across < _TOLERANCE * _TOLERANCE * norm:
                at_front = at_back = False
                far = forward * forward
                if forward > 0:
                    if far > front:
                        at_front, front, front_x, front_y = True, far, now_x, now_y
                elif far > back:
                    at_back, back, back_x, back_y = True, far, now_x, now_y
                last_x, last_y = now_x, now_y
                continue
            if back > 0 and at_front:
                x[count], y[count] = back_x, back_y
                count += 1
            x[count], y[count] = front_x, front_y
            count += 1
            if back > 0 and not at_front:
                x[count], y[count] = back_x, back_y
                count += 1
            if not at_front and not at_back:
                x[count], y[count] = last_x, last_y
                count += 1
            start_x, start_y = x[count - 1], y[count - 1]
        along_x, along_y = now_x - last_x, now_y - last_y
        norm = along_x * along_x + along_y * along_y
        front, back = norm * norm, 0.0
        at_front, at_back = True, False
        last_x, last_y = front_x, front_y = now_x, now_y
    x[count], y[count] = front_x, front_y
    count += 1
    if back > 0:
        x[count], y[count] = back_x, back_y
        count += 1
    x[count], y[count] = last_x, last_y
    return count + 1


@_part
def _put(points: np.ndarray, at: int, x: float, y: float) -> None:
    points[at, 0], points[at, 1] = int(x * _ONE + 0.5), int(y * _ONE + 0.5)


@_part
def _arc_cosine(x: float) -> float:
    """For x in [0, 1], within 7e-5 (Abramowitz and Stegun 1964, 4.4.45)."""
    return math.sqrt(1 - x) * (1.5707288 - x * (0.2121144 - x * (0.0742610 - x * 0.0187293)))


@_part
def _sine_and_cosine(x: float) -> tuple[float, float]:
    """For x from -pi/2 to pi/2, within 3e-5."""
    q = x * x
    sine = x * (1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72))))
    return sine, 1 - q / 2 * (1 - q / 12 * (1 - q / 30 * (1 - q / 56)))


@_part
def _outline(
    x: np.ndarray, y: np.ndarray, count: int, half: float, margin: int, points: np.ndarray
) -> tuple[int, int]:
    """The stroke's polygon, closed, in 1/256 px from the margin's corner; its first and last place in points.

    The left side is written upwards from the middle of ``points``, the right side downwards.
    """
    arc = 2 * math.acos(half / (half + _ARC))
    right = len(points) // 2
    left = right + 1
    x0, y0 = x[0] + margin, y[0] + margin
    nx = ny = before = 0.0  # normal to the left and length of the last stroke
    for i in range(1, count):
        x1, y1 = x[i] + margin, y[i] + margin
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        if length == 0:
            continue
        mx, my = (y1 - y0) / length, (x0 - x1) / length
        if before == 0:
            _put(points, left, x0 + half * (mx + my), y0 + half * (my - mx))
            _put(points, right, x0 - half * (mx - my), y0 - half * (my + mx))
            left, right = left + 1, right - 1
        else:
            cos, turn = nx * mx + ny * my, nx * my - ny * mx
            bend = math.sqrt(max(1 + cos, 0.0) / 2)  # cos of half the angle between the strokes
            for side in range(2):
                inner = (side == 0) == (turn < 0)
                if inner:
                    mitred = half <= max(min(before, length), _MITRE * half) * bend
                else:
                    mitred = 1 - bend < _FLAT
                pen = half if side == 0 else -half
                pieces, sin = 0 if mitred else 1, 0.0
                if pieces and not inner:
                    angle = 2 * _arc_cosine(bend)
                    pieces += int(angle / arc)
                    sin, cos = _sine_and_cosine(math.copysign(angle / pieces, turn))
                ox, oy = nx, ny
                if mitred:
                    ox, oy = (nx + mx) / (2 * bend * bend), (ny + my) / (2 * bend * bend)
                for piece in range(pieces + 1):
                    if piece > 0 and piece == pieces:
                        ox, oy = mx, my
                    elif piece > 0:
                        ox, oy = ox * cos - oy * sin, ox * sin + oy * cos
                    _put(points, left if side == 0 else right, x0 + pen * ox, y0 + pen * oy)
                    left, right = (left + 1, right) if side == 0 else (left, right - 1)
        x0, y0, nx, ny, before = x1, y1, mx, my, length
    _put(points, left, x0 + half * (nx - ny), y0 + half * (ny + nx))
    _put(points, right, x0 - half * (nx + ny), y0 - half * (ny - nx))
    left, right = left + 1, right - 1
    points[left, 0], points[left, 1] = points[right + 1, 0], points[right + 1, 1]
    return right + 1, left


@_part
def _mark(
    edges: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    rows: int,
    column: int,
    y: float,
    slope: float,
    jump: float,
) -> None:
    """Note in a column that at y (px) an edge's ramp gets steeper by ``slope``, or that it jumps."""
    if 0 <= column < len(low):
        row = int(y)
        part = y - row
        rest = 1.0 - part
        first = rest * (0.5 * slope * rest + jump)
        third = part * (0.5 * slope * part - jump)
        at = np.uint64(column * rows + row)  # unsigned: not tested for being counted from the end
        edges[at] += first
        edges[at + np.uint64(1)] += slope - first - third
        edges[at + np.uint64(2)] += third
        low[column] = min(low[column], row)
        high[column] = max(high[column], row + 3)


@_part
def _mark_polygon(
    points: np.ndarray,
    first: int,
    last: int,
    margin: int,
    edges: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Note all edges of a polygon, cut where they go from column to column."""
    x0, y0 = points[first, 0], points[first, 1]
    column = (x0 >> 8) - margin
    rows = len(edges) // len(low)
    slope = 0.0
    for i in range(first + 1, last + 1):
        x1, y1 = points[i, 0], points[i, 1]
        dx, dy = x1 - x0, y1 - y0
        before, slope = slope, dx * 256.0 / dy if dy != 0 else 0.0
        if slope != before:
            _mark(edges, low, high, rows, column, y0 / 256, slope - before, 0.0)
        target = (x1 >> 8) - margin
        x = x0
        if column != target:
            forward = 1 if column < target else -1
            tilt = dy / dx
            border = (column + margin + (1 if forward > 0 else 0)) << 8
            while column != target:
                y = (y0 + (border - x0) * tilt) / 256
                _mark(edges, low, high, rows, column, y, -slope, 0.0 if dy != 0 else float(border - x))
                column += forward
                _mark(edges, low, high, rows, column, y, slope, 0.0)
                x = border
                border += 256 * forward
        if dy == 0 and dx != 0:
            _mark(edges, low, high, rows, column, y1 / 256, 0.0, float(x1 - x))
        x0, y0 = x1, y1
    _mark(edges, low, high, rows, column, y0 / 256, -slope, 0.0)


@_part
def _fill(
    edges: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    margin: int,
    grey: np.ndarray,
    picture: np.ndarray,
) -> None:
    """Make ink of what was noted, and forget it."""
    size = len(low)
    rows = len(edges) // size
    for column in range(size):
        slope = area = 0.0
        for row in range(low[column], high[column]):
            at = column * rows + row
            slope += edges[at]
            area += slope
            edges[at] = 0.0
            if margin <= row < margin + size:
                # Sums of halves and quarters end a hair below the whole numbers that they mean.
                picture[row - margin, column] = grey[min(int(abs(area) + 1e-6), 255)]
        low[column], high[column] = rows, 0


@functools.partial(compiled, error_model="numpy")
def draw(
    curves: np.ndarray,
    width: float,
    grey: np.ndarray,
    pictures: np.ndarray,
    channel: int,
) -> None:
    """Draw line plots of curves, each from its minimum (bottom) to its maximum (top).

    Parameters
    ----------
    curves : ndarray, float64, shape (m, N)
        Samples from the left to the right edge. A curve with a number that is not finite is not drawn, a
        constant one is drawn in the middle.
    width : float
        Of the line, px.
    grey : ndarray, uint8, shape (256,)
        From `grey_levels`.
    pictures : ndarray, uint8, shape (m, channels, size, size)
        Written where there is ink; row 0 is the top.
    channel : int
    """
    size = pictures.shape[2]
    half = width / 2
    margin = math.ceil(width) + 1
    arc = 2 * math.acos(half / (half + _ARC))
    samples = curves.shape[1]
    curve = np.empty(samples)
    x, y = np.empty(3 * samples + 3), np.empty(3 * samples + 3)
    points = np.empty((2 * len(x) * (int(math.pi / arc) + 2), 2), np.int64)
    rows = size + 2 * margin + 3
    edges = np.zeros(size * rows)
    low, high = np.full(size, rows), np.zeros(size, np.int64)
    for i in range(len(curves)):
        if _scale(curves[i], size, curve):
            count = _simplify(curve, size, x, y)
            first, last = _outline(x, y, count, half, margin, points)
            _mark_polygon(points, first, last, margin, edges, low, high)
            _fill(edges, low, high, margin, grey, pictures[i, channel])
