"""The selection function as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_PANELS = (
    ("peak_mag", "peak magnitude (AB)"),
    ("n_detections", "detections of 5 sigma"),
    ("year", "year of the first detection"),
    ("abs_galactic_b", "|galactic latitude| (deg)"),
)
_STAGES = (("alerts", "has an alert", "0.75", ":"), ("in_scope", "in scope", "#30638e", "--"))


def recovery_figure(table: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Recovered share with 95 % intervals by magnitude, detections, year and latitude, as PNG bytes.

    Parameters
    ----------
    table : sequence of mapping
        Rows of the schema ``recovery``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    for axes, (by, label) in zip(figure.subplots(2, 2).ravel(), _PANELS, strict=True):
        rows = [row for row in table if row["by"] == by]
        x = range(len(rows))
        for stage, words, color, style in _STAGES:
            shares = [row[stage] / row["injected"] for row in rows]
            axes.plot(x, shares, color=color, linestyle=style, label=words)
        share = [row["share"] for row in rows]
        bars = [
            [max(s - row["share_low"], 0.0) for s, row in zip(share, rows, strict=True)],
            [max(row["share_high"] - s, 0.0) for s, row in zip(share, rows, strict=True)],
        ]
        axes.errorbar(x, share, bars, color="#d1495b", marker="o", capsize=3, label="recovered")
        for at, row in enumerate(rows):
            axes.annotate(str(row["injected"]), (at, 1.02), ha="center", va="bottom", fontsize=7)
        axes.set_xticks(x, [row["bin"] for row in rows], rotation=45, ha="right", fontsize=8)
        axes.set(ylim=(0, 1.12), xlabel=label, ylabel="share of the injections")
    figure.axes[0].legend(fontsize=8, loc="lower left")
    figure.suptitle(title, fontsize=10)
    out = io.BytesIO()
    # No time and no version in the file: equal numbers give equal bytes.
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
