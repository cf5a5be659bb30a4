"""Counts of a catalogue: rows, gates, classes, modalities, and the funnel (`catalog.funnel`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.funnel import Funnel
from applecider_batch.taxonomy import CLASSES, GATES

FULL = "full"
_NUMBERS = ("rows", "objects", "episodes", "rows_in_error", "_without_position", "_untrained", "_simulated")


def horizon_label(days: float | None) -> str:
    """``"3"``, ``"0.5"`` or ``"full"``."""
    return FULL if days is None else f"{days:g}"


class Summary:
    """Counts over catalogue rows, fed in tables that hold whole objects in row order.

    An episode is counted once, by its last row: ``full`` where the run has it, else its longest horizon.

    Parameters
    ----------
    own_cuts : mapping, optional
        The run's own cut presets.
    """

    def __init__(self, own_cuts: Mapping[str, Any] | None = None) -> None:
        self.rows = 0
        self.objects = 0
        self.episodes = 0
        self.rows_in_error = 0
        self._without_position = 0
        self._untrained = 0
        self._simulated = 0
        self._by_horizon: dict[str, Counter[str]] = {}
        self._gates: Counter[str] = Counter()
        self._modalities: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._funnel = Funnel(own_cuts)

    def update(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        names = table.column("objectId").combine_chunks()
        last_of_object = run_ends(names)
        last = last_of_object | run_ends(table.column("episode").combine_chunks())
        self.objects += int(last_of_object.sum())
        self.episodes += int(last.sum())
        self.rows_in_error += table.num_rows - table.column("error_code").null_count
        self._without_position += table.column("_healpix_29").null_count
        self._untrained += pc.sum(pc.invert(table.column("trained"))).as_py()
        self._simulated += pc.sum(pc.fill_null(table.column("simulated"), False)).as_py()
        self._errors.update(_counts(table.column("error_code")))
        for horizon in pc.unique(table.column("horizon_days")).to_pylist():
            column = table.column("horizon_days")
            chosen = pc.is_null(column) if horizon is None else pc.fill_null(pc.equal(column, horizon), False)
            classes = _counts(table.column("class_top1").filter(chosen))
            counter = self._by_horizon.setdefault(horizon_label(horizon), Counter())
            counter.update(classes)
            counter["rows"] += pc.sum(chosen).as_py()
        episodes = table.filter(pa.array(last))
        self._gates.update(_counts(episodes.column("gate"), missing="failed"))
        self._modalities.update(_counts(episodes.column("modality_mask")))
        self._known.update(_counts(episodes.column("known_status")))
        self._funnel.update(episodes)

    def add(self, other: Summary) -> None:
        """Count what another one, of other objects, has counted."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for horizon, counter in other._by_horizon.items():
            self._by_horizon.setdefault(horizon, Counter()).update(counter)
        for name in ("_gates", "_modalities", "_errors", "_known"):
            getattr(self, name).update(getattr(other, name))
        self._funnel.add(other._funnel)

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any], own_cuts: Mapping[str, Any] | None = None) -> Summary:
        """The inverse of :meth:`as_dict`, to go on from."""
        made = cls(own_cuts)
        made.rows, made.objects, made.episodes = (counts[name] for name in ("rows", "objects", "episodes"))
        made.rows_in_error = counts["rows_in_error"]
        made._without_position, made._simulated = counts["rows_without_position"], counts["simulated_rows"]
        made._untrained = 0 if counts["trained"] else counts["rows"]  # all rows are of one model set
        made._by_horizon = {horizon: Counter(values) for horizon, values in counts["classes"].items()}
        made._gates, made._errors = Counter(counts["gates"]), Counter(counts["errors"])
        made._modalities, made._known = Counter(counts["modality_masks"]), Counter(counts["known_status"])
        made._funnel = Funnel.from_dict(counts, own_cuts)
        return made

    def remove(self, other: Summary) -> None:
        """Take out what another summary counts."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) - getattr(other, name))
        for name in ("_gates", "_modalities", "_errors", "_known"):
            getattr(self, name).subtract(getattr(other, name))
        for horizon, counter in other._by_horizon.items():
            self._by_horizon[horizon].subtract(counter)
        self._funnel.remove(other._funnel)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain JSON values."""
        return {
            "rows": self.rows,
            "objects": self.objects,
            "episodes": self.episodes,
            "rows_in_error": self.rows_in_error,
            "rows_without_position": self._without_position,
            "trained": self.rows > 0 and self._untrained == 0,
            "simulated_rows": self._simulated,
            "gates": {name: self._gates[name] for name in (*GATES, "failed")},
            "classes": {
                horizon: {name: counter[name] for name in (*CLASSES, "rows")}
                for horizon, counter in sorted(self._by_horizon.items(), key=by_days)
                if counter["rows"]
            },
            "modality_masks": dict(sorted((+self._modalities).items())),
            "errors": dict(sorted((+self._errors).items())),
            "known_status": dict(sorted((+self._known).items())),
            **self._funnel.as_dict(),
        }


def by_days(item: tuple[str, Any]) -> float:
    """Sorting key of (horizon label, anything)."""
    return float("inf") if item[0] == FULL else float(item[0])


def run_ends(values: pa.Array) -> np.ndarray:
    """True where the next value differs, and at the end."""
    ends = np.ones(len(values), bool)
    ends[:-1] = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return ends


def _counts(values: pa.ChunkedArray, missing: str | None = None) -> dict[str, int]:
    """Occurrences of each value as text; nulls under ``missing``, or not at all."""
    pairs = ((entry["values"], entry["counts"]) for entry in pc.value_counts(values).to_pylist())
    named = ((missing if value is None else str(value), count) for value, count in pairs)
    return {name: count for name, count in named if name is not None}
