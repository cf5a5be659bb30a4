"""Anomaly columns of catalogue rows, and the q-values of a release.

Scores stand in every row that has a modality; p-values, flags and reasons only in scope, as the class does,
because the reference is of objects in scope.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import SHORT_NAMES, equals, float32, floats
from applecider_batch.catalog.summary import FULL, by_days, horizon_label
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


_COUNTED: dict[str, pa.DataType] = {
    "horizon_days": pa.float64(),
    "anomaly_pvalue": pa.float32(),
    "anomaly_n_ref": pa.int32(),
    "count": pa.int64(),
}


class QValues:
    """q-values of a release, one family a horizon.

    After Benjamini & Hochberg (1995, doi:10.1111/j.2517-6161.1995.tb02031.x).  Fed with all rows once, then
    asked for each table's.  Memory grows with the number of distinct p-values, which the reference bounds,
    not with the rows.
    """

    COLUMNS = ("horizon_days", "anomaly_pvalue", "anomaly_n_ref")

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[float, int]]] = {}  # of (p-value, n_ref), by horizon
        self._q: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, table: pa.Table) -> None:
        """Count the p-values of a table with ``COLUMNS``."""
        for horizon, counts in _tests(table):
            self._counts.setdefault(horizon, Counter()).update(counts)

    def remove(self, table: pa.Table) -> None:
        """Take the p-values of a table that was counted out again."""
        for horizon, counts in _tests(table):
            self._counts[horizon].subtract(counts)

    def to_table(self) -> pa.Table:
        """The counts, as columns ``horizon_days``, ``anomaly_pvalue``, ``anomaly_n_ref``, ``count``."""
        rows = [
            (None if horizon == FULL else float(horizon), p, n_ref, count)
            for horizon, counts in sorted(self._counts.items(), key=by_days)
            for (p, n_ref), count in sorted(counts.items())
            if count
        ]
        columns = zip(*rows, strict=True) if rows else ([],) * len(_COUNTED)
        return pa.table(
            {name: pa.array(list(c), _COUNTED[name]) for name, c in zip(_COUNTED, columns, strict=True)}
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> QValues:
        """The inverse of :meth:`to_table`."""
        made = cls()
        for days, p, n_ref, count in zip(*(table.column(name).to_pylist() for name in _COUNTED), strict=True):
            made._counts.setdefault(horizon_label(days), Counter())[(p, n_ref)] = count
        return made

    def ladder(self) -> pa.Table:
        """The q-value (``_q``) of every combination of ``COLUMNS`` that was counted; after :meth:`finish`."""
        table = self.to_table().drop_columns(["count"])
        asked = table.append_column("anomaly_qvalue", pa.nulls(table.num_rows, pa.float32()))
        return self.annotate(asked).rename_columns([*self.COLUMNS, "_q"])

    def finish(self) -> dict[str, dict[str, Any]]:
        """Compute the q-values; returns by horizon what they rest on.

        Returns
        -------
        dict
            ``tests``, ``floor`` (lowest p that the reference can give), ``at_floor`` and
            ``expected_at_floor`` rows, ``smallest_q`` (null: no q below 1, so the horizon has none).
        """
        out = {}
        for horizon, counts in self._counts.items():
            seen: Counter[float] = Counter()
            for (value, _), times in counts.items():
                seen[value] += times
            p = np.array(sorted(value for value, times in seen.items() if times))
            if not len(p):
                continue
            count = np.array([seen[value] for value in p.tolist()])
            tests = int(count.sum())
            q = np.minimum.accumulate((tests * p / np.cumsum(count))[::-1])[::-1]
            q = np.minimum(q, 1.0)
            if q[0] < 1.0:
                self._q[horizon] = p, q
            floor = 1.0 / (1.0 + max(n_ref for (_, n_ref), times in counts.items() if times))
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


def _tests(table: pa.Table) -> Iterator[tuple[str, dict[tuple[float, int], int]]]:
    """How often each (p-value, n_ref) stands in the testable rows, by horizon."""
    for horizon, chosen in _by_horizon(table):
        part = table.filter(pa.array(chosen & _testable(table)))
        if part.num_rows:
            grouped = part.group_by(["anomaly_pvalue", "anomaly_n_ref"]).aggregate([([], "count_all")])
            p, n_ref, count = (
                grouped.column(name).to_pylist() for name in (*QValues.COLUMNS[1:], "count_all")
            )
            yield horizon, dict(zip(zip(p, n_ref, strict=True), count, strict=True))


def _by_horizon(table: pa.Table) -> list[tuple[str, np.ndarray]]:
    column = table.column("horizon_days")
    days = floats(table, "horizon_days")
    return [
        (horizon_label(h), np.isnan(days) if h is None else days == h) for h in pc.unique(column).to_pylist()
    ]
