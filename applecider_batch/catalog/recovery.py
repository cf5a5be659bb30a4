"""Recovery of injected transients by magnitude, detections, year, galactic latitude and class.

Each share has a 95 % interval after Wilson (1927, doi:10.1080/01621459.1927.10502953).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

#: What an injection has reached at least, in order.
STAGES = ("injected", "alerts", "t0", "in_scope", "classified", "recovered")
_Z = 1.959963984540054
_BINS: dict[str, tuple[float, ...]] = {
    "peak_mag": tuple(np.arange(14.0, 22.5, 0.5).tolist()),
    "n_detections": (0, 1, 2, 3, 5, 10, 20, 50, 1000000),
    "abs_galactic_b": (0, 10, 20, 30, 45, 60, 91),
}


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953); (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    z2 = _Z**2
    centre = (successes + z2 / 2) / (trials + z2)
    half = _Z * np.sqrt(successes * (trials - successes) / trials + z2 / 4) / (trials + z2)
    low, high = max(float(centre - half), 0.0), min(float(centre + half), 1.0)
    return low if successes else 0.0, high if successes < trials else 1.0


def recovery_table(injections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the schema ``recovery``: by each quantity, one a bin that has an injection.

    Parameters
    ----------
    injections : sequence of dict
        Rows of the schema ``injections``.
    """
    rows = [_row("all", "all", None, None, injections)]
    for by, edges in _BINS.items():
        for left, right in pairwise(edges):
            inside = [i for i in injections if left <= i[by] < right]
            if inside:
                rows.append(_row(by, _words(by, left, right), float(left), float(right), inside))
    by_value: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
        ("year", lambda row: row["year"]), ("class", lambda row: row["class5"]),
    )  # fmt: skip
    for by, value in by_value:
        for name in sorted({value(i) for i in injections}):
            low = float(name) if by == "year" else None
            high = low if low is None else low + 1.0
            inside = [i for i in injections if value(i) == name]
            rows.append(_row(by, str(name), low, high, inside))
    return rows


def _words(by: str, left: float, right: float) -> str:
    if by != "n_detections":
        return f"{left:g} to {right:g}"
    if right == left + 1:
        return f"{left:g}"
    return f"{left:g} and more" if right == _BINS[by][-1] else f"{left:g} to {right - 1:g}"


def _row(
    by: str, label: str, low: float | None, high: float | None, inside: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    reached = [STAGES.index(i["stage"]) for i in inside]
    counts = {stage: sum(r >= number for r in reached) for number, stage in enumerate(STAGES)}
    recovered, total = counts["recovered"], counts["injected"]
    lower, upper = wilson(recovered, total)
    right = sum(i["stage"] == "recovered" and i["class_top1"] == i["class5"] for i in inside)
    return {
        "by": by, "bin": label, "low": low, "high": high, **counts,
        "share": recovered / total if total else None, "share_low": lower, "share_high": upper,
        "right_class": right,
    }  # fmt: skip
