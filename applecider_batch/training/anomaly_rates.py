"""How often the anomaly flags fire on objects of known classes, and whether that is what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np

from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.recovery import wilson
from applecider_batch.inference.anomaly_reference import FLAG_LEVELS, AnomalyReference
from applecider_batch.training.anomaly import ScoredObjects
from applecider_batch.training.evaluate import horizon_name

DETECTIONS: tuple[tuple[str, float, float], ...] = (
    ("2-4", 0, 5), ("5-9", 5, 10), ("10-19", 10, 20), ("20-49", 20, 50), ("50+", 50, np.inf),
)  # fmt: skip
MAGNITUDES: tuple[tuple[str, float, float], ...] = (
    ("< 17", -np.inf, 17), ("17-18", 17, 18), ("18-19", 18, 19), ("> 19", 19, np.inf),
)  # fmt: skip


def flag_rates(scored: ScoredObjects, reference: AnomalyReference, members: np.ndarray) -> dict[str, Any]:
    """Share of objects flagged, by horizon, and there by detections, magnitude and predicted class.

    Parameters
    ----------
    scored : ScoredObjects
    reference : AnomalyReference
    members : ndarray of int64
        Objects of known class that neither trained nor calibrated.

    Returns
    -------
    dict
        Horizon -> ``levels`` (per level: ``nominal``, ``flagged``, ``n``, ``rate``, ``low``, ``high`` and
        ``can_fire``, the rows whose reference is large enough) and, at the 1 % level alone,
        ``by_detections``, ``by_magnitude``, ``by_class``.
    """
    shape = scored.in_scope.shape
    found = scored.judge(reference)
    p = found.pvalue.reshape(shape)
    n_ref = found.n_ref.reshape(shape)
    predicted = scored.answers.predicted.reshape(shape)
    rows = scored.dataset.prepared.rows
    n_det = floats(rows, "n_det")[scored.dataset.row]
    peak = np.fmin(floats(rows, "mag_peak_g"), floats(rows, "mag_peak_r"))[scored.dataset.row]
    out: dict[str, Any] = {}
    for column, horizon in enumerate(scored.dataset.horizons):
        here = members[np.isfinite(p[members, column])]
        value, floor = p[here, column], 1.0 / (n_ref[here, column] + 1.0)
        one = value <= FLAG_LEVELS[0]

        def split(by: np.ndarray, bins: Any, fired: np.ndarray = one) -> dict[str, Any]:
            return {name: _rate(fired[(by >= low) & (by < high)]) for name, low, high in bins}

        classes = [(name, i, i + 1) for i, name in enumerate(scored.dataset.classes)]
        out[horizon_name(horizon)] = {
            "levels": [
                {"nominal": level, **_rate(value <= level), "can_fire": int((floor <= level).sum())}
                for level in FLAG_LEVELS
            ],
            "by_detections": split(n_det[here, column], DETECTIONS),
            "by_magnitude": split(peak[here, column], MAGNITUDES),
            "by_class": split(predicted[here, column], classes),
        }
    return out


def _rate(fired: np.ndarray) -> dict[str, Any]:
    k, n = int(fired.sum()), len(fired)
    low, high = wilson(k, n)
    return {"flagged": k, "n": n, "rate": k / n if n else None, "low": low, "high": high}
