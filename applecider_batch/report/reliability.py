"""A reliability diagram as inline SVG: does a probability of 0.8 mean right in 8 of 10 cases?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from applecider_batch.catalog.recovery import wilson

WIDTH, HEIGHT = 330, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 40
#: Bins of the probability.
BINS = 10


def reliability_svg(bins: Mapping[str, Sequence[float]], title: str) -> str:
    """Share of right answers against the top probability, bin by bin, with 95 % intervals and counts.

    Parameters
    ----------
    bins : mapping
        ``count, confidence, accuracy`` per bin, as :func:`training.metrics.calibration_bins` gives them.
    title : str
        Read by screen readers.
    """
    parts = [
        f'<svg class="lc reliability" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}"/>',
        f'<path class="hz" d="M{_x(0):.1f} {_y(0):.1f}L{_x(1):.1f} {_y(1):.1f}"/>',
    ]
    for tick in np.linspace(0.0, 1.0, 6):
        x, y = _x(tick), _y(tick)
        parts.append(f'<text class="tx" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}">{tick:.1f}</text>')
        parts.append(f'<text class="ty" x="{LEFT - 6}" y="{y:.1f}">{tick:.1f}</text>')
    for count, confidence, accuracy in zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True):
        if not count:
            continue
        x, y = _x(confidence), _y(accuracy)
        low, high = wilson(round(accuracy * count), int(count))
        parts.append(f'<path class="err bar" d="M{x:.1f} {_y(low):.1f}V{_y(high):.1f}"/>')
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{int(count):,} of them: '
            f"probability {confidence:.2f}, right {accuracy:.2f}</title></circle>"
        )
        parts.append(
            f'<text class="count" transform="translate({x + 3:.1f} {HEIGHT - BOTTOM - 4}) rotate(-90)">'
            f"{int(count):,}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tx" x="{middle:.0f}" y="{HEIGHT - 6}">fused probability of the class said</text>'
    )
    parts.append(
        f'<text class="tx" transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">'
        "share that was right</text></svg>"
    )
    return "".join(parts)


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)
