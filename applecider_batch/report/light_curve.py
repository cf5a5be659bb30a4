"""A light curve as inline SVG: signed flux, so that negatives are negative; bands differ by marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ZERO_POINT_UJY = 23.9
WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 54, 52, 14, 36
BANDS = {1: "g", 2: "r", 3: "i"}
#: Days before t0 and after the last horizon that are drawn.
BEFORE_DAYS = 60.0
_FIXED = 1


@dataclass(frozen=True)
class LightCurve:
    """Points of one object.

    Attributes
    ----------
    jd, flux, flux_err : ndarray, float64, shape (n,)
        Signed flux, µJy.
    fid : ndarray, int64, shape (n,)
    forced : ndarray, bool, shape (n,)
    limit_jd, limit_flux, limit_fid : ndarray, shape (m,)
        5-sigma upper limits, µJy.
    """

    jd: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    fid: np.ndarray
    forced: np.ndarray
    limit_jd: np.ndarray
    limit_flux: np.ndarray
    limit_fid: np.ndarray

    def __len__(self) -> int:
        return len(self.jd)


def light_curve_svg(
    curve: LightCurve, t0: float, horizons: Sequence[float], title: str, zero: str = "t0"
) -> str:
    """Inline SVG of a light curve.

    Parameters
    ----------
    curve : LightCurve
    t0 : float
        JD of day 0.
    horizons : sequence of float
        Days at which a dotted line stands.
    title : str
        Read by screen readers.
    zero : str
        What day 0 is.
    """
    after = max([*horizons, 30.0]) + 10.0
    days, limit_days = curve.jd - t0, curve.limit_jd - t0
    shown = (days >= -BEFORE_DAYS) & np.isfinite(curve.flux) & np.isfinite(curve.flux_err)
    shown_limits = (limit_days >= -BEFORE_DAYS) & np.isfinite(curve.limit_flux)
    all_days = np.concatenate([days[shown], limit_days[shown_limits], [0.0]])
    x_range = (float(min(all_days.min(), -3.0)) - 1.0, float(max(all_days.max() * 1.03, min(after, 15.0))))
    y_range = _y_range(curve, shown, shown_limits)
    frame = _Frame(x_range, y_range, zero)
    parts = [
        f'<svg class="lc" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_escape(title)}">',
        frame.axes(),
        *(frame.horizon(h) for h in (0.0, *horizons) if x_range[0] < h < x_range[1]),
        frame.limits(limit_days[shown_limits], curve.limit_flux[shown_limits], curve.limit_fid[shown_limits]),
    ]
    for forced in (True, False):
        chosen = shown & (curve.forced == forced)
        parts.append(
            frame.points(days[chosen], curve.flux[chosen], curve.flux_err[chosen], curve.fid[chosen], forced)
        )
    parts.append("</svg>")
    return "".join(parts)


def _y_range(curve: LightCurve, shown: np.ndarray, shown_limits: np.ndarray) -> tuple[float, float]:
    flux, error = curve.flux[shown], np.minimum(curve.flux_err[shown], np.abs(curve.flux[shown]) + 1.0)
    if flux.size:
        low, high = float((flux - error).min()), float((flux + error).max())
    elif shown_limits.any():
        low, high = 0.0, float(curve.limit_flux[shown_limits].max())
    else:
        low, high = 0.0, 1.0
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.08 * ((high - low) or 1.0)
    return low - pad, high + pad


class _Frame:
    """The axes, and drawing in them."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], zero: str) -> None:
        self.x_range, self.y_range, self.zero = x_range, y_range, zero

    def x(self, days: np.ndarray) -> np.ndarray:
        low, high = self.x_range
        return LEFT + (days - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, flux: np.ndarray) -> np.ndarray:
        low, high = self.y_range
        inside = np.clip(flux, low, high)
        return HEIGHT - BOTTOM - (inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> str:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}"/>']
        marks, grid = [], []
        for tick in ticks(*self.x_range, 7):
            at = _n(self.x(np.array(tick)))
            marks.append(f"M{at} {bottom}v4")
            parts.append(f'<text class="tx" x="{at}" y="{bottom + 15}">{_number(tick)}</text>')
        for tick in ticks(*self.y_range, 5):
            at = _n(self.y(np.array(tick)))
            if tick == 0:
                parts.append(f'<path class="zero" d="M{LEFT} {at}H{right}"/>')
            else:
                grid.append(f"M{LEFT} {at}H{right}")
            parts.append(f'<text class="ty" x="{LEFT - 5}" y="{at}">{_number(tick)}</text>')
        for mag, at in self._magnitudes():
            marks.append(f"M{right} {at}h4")
            parts.append(f'<text class="tm" x="{right + 7}" y="{at}">{mag:g}</text>')
        parts.append(f'<path class="tick" d="{"".join(marks)}"/>')
        parts.insert(1, f'<path class="grid" d="{"".join(grid)}"/>')
        middle = (TOP + bottom) / 2
        parts.append(
            f'<text class="tx" x="{(LEFT + right) / 2}" y="{HEIGHT - 4}">days since {self.zero}</text>'
            f'<text class="tl" transform="translate(11 {middle}) rotate(-90)">flux (µJy)</text>'
            f'<text class="tl" transform="translate({WIDTH - 4} {middle}) rotate(-90)">AB mag</text>'
        )
        return "".join(parts)

    def _magnitudes(self) -> list[tuple[float, str]]:
        """Magnitudes for the right-hand axis, at least 13 units apart."""
        if self.y_range[1] <= 0:
            return []
        brightest = ZERO_POINT_UJY - 2.5 * np.log10(self.y_range[1])
        found: list[tuple[float, str]] = []
        last = -np.inf
        for mag in np.arange(np.ceil(brightest * 2) / 2, brightest + 4.0, 0.5):
            at = float(self.y(np.array(10 ** (-0.4 * (mag - ZERO_POINT_UJY)))))
            if at - last >= 13.0:
                found.append((float(mag), _n(at)))
                last = at
        return found

    def horizon(self, days: float) -> str:
        at = _n(self.x(np.array(days)))
        label = self.zero if days == 0 else f"{days:g} d"
        return (
            f'<path class="hz" d="M{at} {TOP}V{HEIGHT - BOTTOM}"/>'
            f'<text class="th" x="{at}" y="{TOP + 9}">{label}</text>'
        )

    def limits(self, days: np.ndarray, flux: np.ndarray, fid: np.ndarray) -> str:
        """Upper limits: an open arrow head pointing down."""
        parts = []
        for number, band in BANDS.items():
            chosen = fid == number
            if chosen.any():
                steps = "".join(
                    f"M{_n(x - 3)} {_n(y)}h6l-3 5z"
                    for x, y in zip(self.x(days[chosen]), self.y(flux[chosen]), strict=True)
                )
                parts.append(f'<path class="lim {band}" d="{steps}"/>')
        return "".join(parts)

    def points(
        self, days: np.ndarray, flux: np.ndarray, error: np.ndarray, fid: np.ndarray, forced: bool
    ) -> str:
        """Error bars and markers: full for positive, hollow for negative flux, small for forced points."""
        size = 2.0 if forced else 4.0
        kind = " fp" if forced else ""
        parts = []
        for number, band in BANDS.items():
            mine = fid == number
            if not mine.any():
                continue
            xs = self.x(days[mine])
            low, high = self.y((flux - error)[mine]), self.y((flux + error)[mine])
            bars = "".join(
                f"M{_n(x)} {_n(a)}V{_n(b)}"
                for x, a, b in zip(xs, low, high, strict=True)
                if abs(a - b) > size
            )
            if bars:
                parts.append(f'<path class="err{kind} {band}" d="{bars}"/>')
            for negative in (False, True):
                chosen = mine & ((flux < 0) == negative)
                if chosen.any():
                    places = zip(self.x(days[chosen]), self.y(flux[chosen]), strict=True)
                    shape = "".join(marker(band, float(x), float(y), size) for x, y in places)
                    parts.append(f'<path class="pt{kind} {band}{" neg" if negative else ""}" d="{shape}"/>')
        return "".join(parts)


def marker(band: str, x: float, y: float, size: float) -> str:
    """SVG path of a band's marker: circle for g, square for r, triangle for i."""
    if band == "g":
        r = f"{size:g}"
        return f"M{_n(x - size)} {_n(y)}a{r} {r} 0 1 0 {2 * size:g} 0a{r} {r} 0 1 0 {-2 * size:g} 0"
    if band == "r":
        side = 1.8 * size
        return f"M{_n(x - side / 2)} {_n(y - side / 2)}h{_n(side)}v{_n(side)}h{_n(-side)}z"
    return f"M{_n(x)} {_n(y - 1.2 * size)}l{_n(1.2 * size)} {_n(2.1 * size)}h{_n(-2.4 * size)}z"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((m for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough), default=10.0)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(i * step, 10) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _n(value: float | np.ndarray) -> str:
    text = f"{float(value):.{_FIXED}f}"
    return text.removesuffix(".0")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
