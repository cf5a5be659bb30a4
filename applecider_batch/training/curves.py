"""Figures of training and evaluation as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_DPI = 110


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    # No time and no version in the file: equal numbers give equal bytes.
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def training_curves(history: Sequence[Mapping[str, Any]], score: str) -> bytes:
    """Loss, and the score that decides, by epoch."""
    figure, (left, right) = _figure(8, 3.2, 2)
    epochs = [r["epoch"] for r in history]
    left.plot(epochs, [r["loss"] for r in history], color="#30638e", marker=".", label="training")
    left.set(xlabel="epoch", ylabel="loss")
    values = [r[score] for r in history]
    right.plot(epochs, values, color="#d1495b", marker=".")
    best = int(np.nanargmax(values)) if np.isfinite(values).any() else 0
    right.axvline(epochs[best], color="0.6", linewidth=0.8)
    right.set(xlabel="epoch", ylabel=f"validation {score.replace('_', ' ')}")
    return _png(figure)


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """Confusion matrix, rows normalised, with counts."""
    figure, (axes,) = _figure(1.6 + 0.75 * len(classes), 1.4 + 0.65 * len(classes))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    for i, j in np.ndindex(matrix.shape):
        axes.text(
            j,
            i,
            f"{share[i, j]:.2f}\n{matrix[i, j]}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if share[i, j] > 0.5 else "black",
        )
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    return _png(figure)


def reliability_figure(bins: Mapping[str, Sequence[float]], title: str) -> bytes:
    """Accuracy against confidence."""
    figure, (axes,) = _figure(3.8, 3.6)
    count, confidence, accuracy = (np.array(bins[k]) for k in ("count", "confidence", "accuracy"))
    used = count > 0
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.plot(confidence[used], accuracy[used], color="#30638e", marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=title)
    return _png(figure)


def sweep_figure(series: Mapping[str, Sequence[tuple[float, float, float, float]]], ylabel: str) -> bytes:
    """A measure by horizon; ``series``: name -> (horizon, value, low, high) each, full as 1000."""
    figure, (axes,) = _figure(5.2, 3.6)
    for name, points in series.items():
        x, y, low, high = (np.array(v, float) for v in zip(*points, strict=True))
        axes.errorbar(
            x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], marker="o", capsize=2, label=name
        )
    axes.set_xscale("log")
    axes.set(xlabel="horizon / d (1000: full)", ylabel=ylabel)
    axes.legend(fontsize=8)
    return _png(figure)
