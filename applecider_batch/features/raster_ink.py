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
_step = numba.njit(error_model="numpy")  # once a curve, where a call costs nothing


@_step
def _range(curve: np.ndarray) -> tuple[bool, float, float]:
    """Whether all values and their range are finite, the lowest, the range."""
    finite = 0
    for value in curve:
        finite += np.isfinite(value)
    if finite < len(curve):
        return False, 0.0, 0.0
    # Four at once, as each comparison waits for the last of its kind.
    low = high = low1 = high1 = low2 = high2 = low3 = high3 = curve[0]
    for i in range(len(curve) % 4, len(curve), 4):
        low, high = min(low, curve[i]), max(high, curve[i])
        low1, high1 = min(low1, curve[i + 1]), max(high1, curve[i + 1])
        low2, high2 = min(low2, curve[i + 2]), max(high2, curve[i + 2])
        low3, high3 = min(low3, curve[i + 3]), max(high3, curve[i + 3])
    for value in curve[: len(curve) % 4]:
        low, high = min(low, value), max(high, value)
    low, high = min(low, low1, low2, low3), max(high, high1, high2, high3)
    return np.isfinite(high - low), low, high - low


@functools.partial(compiled, error_model="numpy")
def scale(curves: np.ndarray) -> None:
    """Bring curves (m, N), float64, in place to 0 to 1; all 0 where constant, NaN where not finite."""
    for curve in curves:
        finite, low, span = _range(curve)
        factor = 1 / span
        if not finite:
            curve[:] = np.nan
        elif np.isfinite(factor):
            for i in range(len(curve)):
                curve[i] = (curve[i] - low) * factor
        else:
            curve[:] = 0.0


@_part
def _add(x: np.ndarray, y: np.ndarray, count: int, new_x: float, new_y: float) -> int:
    """Add a vertex unless it is the last one; samples differ in x."""
    x[count], y[count] = new_x, new_y
    return count + (new_x != x[count - 1])


@_step
def _simplify(curve: np.ndarray, size: int, low: float, span: float, x: np.ndarray, y: np.ndarray) -> int:
    """Vertices of the line plot of a curve in px from the top left, written to x and y, and their number.

    A sample is left out if it lies within the tolerance of the straight line that its predecessors began;
    of these the farthest forward, the farthest backward and the last are kept.
    """
    n = len(curve)
    step, factor, top, high = size / (n - 1), size / span, 0.0, low + span
    if not np.isfinite(factor):  # a constant lies in the middle
        factor, top = 0.0, size / 2
    if n < _FEWEST_SIMPLIFIED:
        for i in range(n):
            x[i], y[i] = i * step, top + (high - curve[i]) * factor
        return n
    x[0], y[0] = 0.0, top + (high - curve[0]) * factor
    count = 1
    start_x, start_y = last_x, last_y = 0.0, y[0]
    along_x = along_y = norm = 0.0  # direction of the line
    front_x = front_y = front = back_x = back_y = back = 0.0
    at_front = True
    for i in range(1, n):
        now_x, now_y = i * step, top + (high - curve[i]) * factor
        if norm > 0:
            dx, dy = now_x - start_x, now_y - start_y
            across = along_x * dy - along_y * dx
            forward = along_x * dx + along_y * dy
            if across * across < _TOLERANCE * _TOLERANCE * norm:
                at_front = False
                far = forward * forward
                if forward > 0:
                    if far > front:
                        at_front, front, front_x, front_y = True, far, now_x, now_y
                elif far > back:
                    back, back_x, back_y = far, now_x, now_y
                last_x, last_y = now_x, now_y
                continue
            if back > 0 and at_front:
                count = _add(x, y, count, back_x, back_y)
            count = _add(x, y, count, front_x, front_y)
            if back > 0 and not at_front:
                count = _add(x, y, count, back_x, back_y)
            count = _add(x, y, count, last_x, last_y)
            start_x, start_y = last_x, last_y
        along_x, along_y = now_x - last_x, now_y - last_y
        norm = along_x * along_x + along_y * along_y
        front, back = norm * norm, 0.0
        at_front = True
        last_x, last_y = front_x, front_y = now_x, now_y
    count = _add(x, y, count, front_x, front_y)
    if back > 0:
        count = _add(x, y, count, back_x, back_y)
    return _add(x, y, count, last_x, last_y)


@_part
def _put(points: np.ndarray, at: int, x: float, y: float) -> None:
    points[at, 0], points[at, 1] = np.int32(x * _ONE + 0.5), np.int32(y * _ONE + 0.5)


@_part
def _arc_cosine(x: float) -> float:
    """For x in [0, 1], within 7e-5 (Abramowitz and Stegun 1964, 4.4.45)."""
    return math.sqrt(1 - x) * (1.5707288 - x * (0.2121144 - x * (0.0742610 - x * 0.0187293)))


@_part
def _sine_and_cosine(x: float) -> tuple[float, float]:
    """For x from -pi/2 to pi/2, within 3e-5."""
    q = x * x
    sine = x * (1 - q * (1 / 6) * (1 - q * (1 / 20) * (1 - q * (1 / 42) * (1 - q * (1 / 72)))))
    return sine, 1 - q * (1 / 2) * (1 - q * (1 / 12) * (1 - q * (1 / 30) * (1 - q * (1 / 56))))


@_part
def _arc(half: float) -> float:
    """Longest piece of a round join, rad."""
    return 2 * math.acos(half / (half + _ARC))


@_step
def _joints(
    x: np.ndarray, y: np.ndarray, count: int, half: float, strokes: np.ndarray, joints: np.ndarray
) -> None:
    """Of every stroke the normal to the left and the length, of every vertex between two how they are joined.

    A joint is: whether it turns to the left, the mitre's corner from the vertex (of half-width 1), whether
    the inside and the outside have it, pieces of the arc outside and the sine and cosine of one. Without
    branches, so that several are worked out at once.
    """
    nx, ny, length = strokes[0], strokes[1], strokes[2]
    for i in range(count - 1):
        dx, dy = x[i + 1] - x[i], y[i + 1] - y[i]
        length[i] = math.sqrt(dx * dx + dy * dy)
        nx[i], ny[i] = dy / length[i], -dx / length[i]
    arcs = 1 / _arc(half)
    left, corner_x, corner_y = joints[0], joints[1], joints[2]
    inside, pieces, sine, cosine = joints[3], joints[4], joints[5], joints[6]
    for i in range(1, count - 1):
        before_x, before_y, x_, y_ = nx[i - 1], ny[i - 1], nx[i], ny[i]
        turn = before_x * y_ - before_y * x_
        bend = math.sqrt(max(1 + before_x * x_ + before_y * y_, 0.0) * 0.5)  # cos of half the angle
        scale = 0.5 / (bend * bend)
        corner_x[i], corner_y[i] = (before_x + x_) * scale, (before_y + y_) * scale
        left[i] = 1.0 if turn < 0 else 0.0
        room = max(min(length[i - 1], length[i]), _MITRE * half)
        inside[i] = 1.0 if half <= room * bend else 0.0
        angle = 2 * _arc_cosine(bend)
        whole = 1.0 + np.int32(angle * arcs)
        pieces[i] = 0.0 if 1 - bend < _FLAT else whole
        sine[i], cosine[i] = _sine_and_cosine(math.copysign(angle / whole, turn))


@_step
def _outline(
    x: np.ndarray,
    y: np.ndarray,
    count: int,
    half: float,
    margin: int,
    strokes: np.ndarray,
    joints: np.ndarray,
    points: np.ndarray,
) -> tuple[int, int]:
    """The stroke's polygon, closed, in 1/256 px from the margin's corner; its first and last place in points.

    The left side is written upwards from the middle of ``points``, the right side downwards.
    """
    nx, ny = strokes[0], strokes[1]
    right = len(points) // 2
    left = right + 1
    ax, ay, mx, my = x[0] + margin, y[0] + margin, half * nx[0], half * ny[0]
    _put(points, left, ax + (mx + my), ay + (my - mx))
    _put(points, right, ax - (mx - my), ay - (my + mx))
    left, right = left + 1, right - 1
    for i in range(1, count - 1):
        ax, ay = x[i] + margin, y[i] + margin
        to_left = joints[0, i] > 0  # the inside is the left side
        pen = half if to_left else -half
        step = 1 if to_left else -1
        corner_x, corner_y = joints[1, i], joints[2, i]
        # Inside: the mitre's corner, or the ends of both strokes.
        at = left if to_left else right
        mitred = joints[3, i] > 0
        _put(points, at + step, ax + pen * nx[i], ay + pen * ny[i])
        ox, oy = corner_x if mitred else nx[i - 1], corner_y if mitred else ny[i - 1]
        _put(points, at, ax + pen * ox, ay + pen * oy)
        inner = at + (step if mitred else 2 * step)
        # Outside: the corner, or an arc from the end of one stroke to the other's.
        at = right if to_left else left
        pieces = int(joints[4, i])
        ox, oy = nx[i - 1] if pieces else corner_x, ny[i - 1] if pieces else corner_y
        _put(points, at, ax - pen * ox, ay - pen * oy)
        at -= step
        for _ in range(1, pieces):
            ox, oy = ox * joints[6, i] - oy * joints[5, i], ox * joints[5, i] + oy * joints[6, i]
            _put(points, at, ax - pen * ox, ay - pen * oy)
            at -= step
        _put(points, at, ax - pen * nx[i], ay - pen * ny[i])
        at -= step if pieces else 0
        left, right = inner if to_left else at, at if to_left else inner
    end = count - 1
    ax, ay, mx, my = x[end] + margin, y[end] + margin, half * nx[end - 1], half * ny[end - 1]
    _put(points, left, ax + (mx - my), ay + (my + mx))
    _put(points, right, ax - (mx + my), ay - (my - mx))
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


@_step
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
    x0, y0 = int(points[first, 0]), int(points[first, 1])
    column = (x0 >> 8) - margin
    rows = len(edges) // len(low)
    slope = 0.0
    for i in range(first + 1, last + 1):
        x1, y1 = int(points[i, 0]), int(points[i, 1])
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
def _grey(area: float) -> np.int32:
    """Sums of halves and quarters end a hair below the whole numbers that they mean."""
    return np.int32(min(abs(area) + 1e-6, 255.0))


@_step
def _fill(
    edges: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    margin: int,
    picture: np.ndarray,
) -> None:
    """Make ink of what was noted, and forget it: four columns at once, as each sum waits for its last."""
    size = len(picture)
    rows = len(edges) // len(low)
    for c in range(0, size, 4):
        c1, c2, c3 = min(c + 1, size - 1), min(c + 2, size - 1), min(c + 3, size - 1)
        s0 = s1 = s2 = s3 = a0 = a1 = a2 = a3 = 0.0
        first = min(low[c], low[c + 1], low[c + 2], low[c + 3])
        last = max(high[c], high[c + 1], high[c + 2], high[c + 3])
        for row in range(first, last):
            at = np.uint64(c * rows + row)
            at1 = at + np.uint64(rows)
            at2 = at1 + np.uint64(rows)
            at3 = at2 + np.uint64(rows)
            s0, s1, s2, s3 = s0 + edges[at], s1 + edges[at1], s2 + edges[at2], s3 + edges[at3]
            a0, a1, a2, a3 = a0 + s0, a1 + s1, a2 + s2, a3 + s3
            edges[at] = edges[at1] = edges[at2] = edges[at3] = 0.0
            if margin <= row < margin + size:
                y = row - margin
                # Right to left: where a picture ends within the four, its last column is written last.
                picture[y, c3], picture[y, c2] = _grey(a3), _grey(a2)
                picture[y, c1], picture[y, c] = _grey(a1), _grey(a0)
        low[c : c + 4], high[c : c + 4] = rows, 0


@functools.partial(compiled, error_model="numpy")
def draw(
    curves: np.ndarray,
    width: float,
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
    pictures : ndarray, uint8, shape (m, channels, size, size)
        Written where there is ink; row 0 is the top.
    channel : int
    """
    size = pictures.shape[2]
    half = width / 2
    margin = math.ceil(width) + 1
    samples = curves.shape[1]
    x, y = np.empty(3 * samples + 3), np.empty(3 * samples + 3)
    strokes, joints = np.empty((3, len(x))), np.empty((7, len(x)))
    points = np.empty((2 * len(x) * (int(math.pi / _arc(half)) + 2), 2), np.int32)
    rows = size + 2 * margin + 3
    columns = (size + 3) // 4 * 4  # they are filled four at once
    edges = np.zeros(columns * rows)
    low, high = np.full(columns, rows), np.zeros(columns, np.int64)
    for i in range(len(curves)):
        finite, lowest, span = _range(curves[i])
        pictures[i, channel] = 0
        if finite:
            count = _simplify(curves[i], size, lowest, span, x, y)
            _joints(x, y, count, half, strokes, joints)
            first, last = _outline(x, y, count, half, margin, strokes, joints, points)
            _mark_polygon(points, first, last, margin, edges, low, high)
            _fill(edges, low, high, margin, pictures[i, channel])
