"""Anomaly columns of catalogue rows, and the q-values of a release.

Scores stand in every row that has a modality; p-values, flags and reasons only in scope, as the class does,
because the reference is of objects in scope.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import SHORT_NAMES, equals, float32, floats
from applecider_batch.catalog.summary import by_days, horizon_label
from applecider_batch.inference.anomaly import ITEM_SCORES, row_scores
from applecider_batch.inference.anomaly_reference import FLAG_LEVELS, SCORES
from applecider_batch.inference.answers import RowAnswers
from applecider_batch.inference.fusion import MODALITIES


def anomaly_columns(
    prepared: Any, outputs: Any, answers: RowAnswers, in_scope: np.ndarray
) -> dict[str, pa.Array]:
    """All ``anomaly_*`` columns of a shard but the q-values.

    Parameters
    ----------
    prepared, outputs
        As :func:`applecider_batch.catalog.rows.assemble_rows`; ``outputs.reference`` is not None.
    answers : RowAnswers
    in_scope : ndarray, bool, shape (n,)
    """
    reference = outputs.reference
    shape = (len(in_scope), len(ITEM_SCORES))
    values = np.stack(
        [
            row_scores(outputs, prepared, name, reference.scorers.get(name))
            if name in outputs.energies
            else np.full(shape, np.nan, np.float32)
            for name in MODALITIES
        ],
        axis=1,
    )  # (n, modalities, scores)
    values[~answers.available] = np.nan
    horizon = floats(prepared.rows, "horizon_days")
    found = reference.judge(values, answers.divergence, answers.mask, answers.predicted, horizon, in_scope)
    known = np.isfinite(found.pvalue)
    columns = {f"anomaly_{name}": float32(found.scores[:, i]) for i, name in enumerate(ITEM_SCORES)}
    for position, modality in enumerate(MODALITIES):
        columns[f"anomaly_energy_{SHORT_NAMES[modality]}"] = float32(values[:, position, 0])
    for i, name in enumerate(SCORES):
        columns[f"anomaly_pvalue_{name}"] = float32(found.pvalues[:, i])
    return columns | {
        "anomaly_consensus": float32(found.consensus),
        "anomaly_pvalue": float32(found.pvalue),
        "anomaly_flag": pa.array(found.flag, mask=~known),
        "anomaly_reason": pa.array(found.reason, mask=~known),
        "anomaly_n_ref": pa.array(found.n_ref, mask=~known),
        "anomaly_ref_group": pa.array(found.group, pa.string()),
    }


def contradictions(table: pa.Table) -> np.ndarray:
    """Rows whose anomaly columns contradict each other, bool (n,).

    A p-value stands in scope only, not below 1 / (n_ref + 1), with the flag that follows from it; without one
    there is no flag and no q-value.
    """
    p, flag, n_ref = (floats(table, f"anomaly_{name}") for name in ("pvalue", "flag", "n_ref"))
    known = np.isfinite(p)
    with np.errstate(invalid="ignore"):
        # float32 columns: a p-value on a level may lie on either side of it.
        least, most = (
            sum((p <= level * slack).astype(int) for level in FLAG_LEVELS) for slack in (1 - 1e-6, 1 + 1e-6)
        )
        wrong = (p > 1 + 1e-6) | (p * (n_ref + 1) < 1 - 1e-6) | (flag < least) | (flag > most)
    without = np.isfinite(flag) | np.isfinite(n_ref) | np.isfinite(floats(table, "anomaly_qvalue"))
    in_scope = equals(table, "gate", "in_scope")
    return np.where(known, wrong | ~np.isfinite(flag) | ~np.isfinite(n_ref) | ~in_scope, without)


class QValues:
    """q-values of a release, one family a horizon.

    After Benjamini & Hochberg (1995, doi:10.1111/j.2517-6161.1995.tb02031.x).  Fed with all rows once, then
    asked for each table's.  Memory grows with the number of distinct p-values, which the reference bounds,
    not with the rows.
    """

    COLUMNS = ("horizon_days", "anomaly_pvalue", "anomaly_n_ref")

    def __init__(self) -> None:
        self._counts: dict[str, dict[float, int]] = {}
        self._floor: dict[str, float] = {}
        self._q: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, table: pa.Table) -> None:
        """Count the p-values of a table with ``COLUMNS``."""
        for horizon, chosen in _by_horizon(table):
            part = table.filter(pa.array(chosen & _testable(table)))
            if not part.num_rows:
                continue
            values, counts = np.unique(part.column("anomaly_pvalue").to_numpy(), return_counts=True)
            seen = self._counts.setdefault(horizon, {})
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                seen[value] = seen.get(value, 0) + count
            floor = 1.0 / (1.0 + pc.max(part.column("anomaly_n_ref")).as_py())
            self._floor[horizon] = min(floor, self._floor.get(horizon, 1.0))

    def finish(self) -> dict[str, dict[str, Any]]:
        """Compute the q-values; returns by horizon what they rest on.

        Returns
        -------
        dict
            ``tests``, ``floor`` (lowest p that the reference can give), ``at_floor`` and
            ``expected_at_floor`` rows, ``smallest_q`` (null: no q below 1, so the horizon has none).
        """
        out = {}
        for horizon, seen in self._counts.items():
            p = np.array(sorted(seen))
            count = np.array([seen[value] for value in p.tolist()])
            tests = int(count.sum())
            q = np.minimum.accumulate((tests * p / np.cumsum(count))[::-1])[::-1]
            q = np.minimum(q, 1.0)
            if q[0] < 1.0:
                self._q[horizon] = p, q
            floor = self._floor[horizon]
            out[horizon] = {
                "tests": tests,
                "floor": floor,
                "at_floor": int(count[p <= np.float32(floor)].sum()),
                "expected_at_floor": round(tests * floor, 3),
                "smallest_q": float(q[0]) if q[0] < 1.0 else None,
            }
        return dict(sorted(out.items(), key=by_days))

    def annotate(self, table: pa.Table) -> pa.Table:
        """The same rows with ``anomaly_qvalue``."""
        out = np.full(table.num_rows, np.nan)
        testable = _testable(table)
        p = floats(table, "anomaly_pvalue")
        for horizon, chosen in _by_horizon(table):
            if horizon in self._q:
                ladder, q = self._q[horizon]
                rows = np.flatnonzero(chosen & testable)
                out[rows] = q[np.searchsorted(ladder, p[rows])]
        position = table.schema.get_field_index("anomaly_qvalue")
        return table.set_column(position, table.schema.field(position), float32(out))


def _testable(table: pa.Table) -> np.ndarray:
    """Rows with a p-value that could reach the first flag's level."""
    n_ref = pc.fill_null(table.column("anomaly_n_ref"), 0).to_numpy()
    return np.asarray(n_ref + 1 >= 1.0 / FLAG_LEVELS[0])


def _by_horizon(table: pa.Table) -> list[tuple[str, np.ndarray]]:
    column = table.column("horizon_days")
    days = floats(table, "horizon_days")
    return [
        (horizon_label(h), np.isnan(days) if h is None else days == h) for h in pc.unique(column).to_pylist()
    ]
