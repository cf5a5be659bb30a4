"""The funnel: how many episodes are left after each cut, by year of t0.  Cuts count, they remove no row.

Every episode is counted once, by its last row, and falls out at the first cut that it does not pass: at each
step those left and those removed add up to those before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import equals, floats
from applecider_batch.features.cuts import own_presets, packaged
from applecider_batch.taxonomy import GATES

CONFIDENT = 0.5
#: Step -> what those were that did not pass it; in the order of the cuts.
STEPS: dict[str, str] = {
    "episodes": "",
    "processed": "failed",
    **{f"not_{gate}": gate for gate in GATES[1:4]},
    "has_t0": "no eligible alert",
    "in_scope": "too_few_detections",
    "classified": "no usable modality",
    "confident": f"prob_top1 below {CONFIDENT}",
    "not_known": "known or late",
    "anomalous": "anomaly_flag 0 or none",
}
VERDICTS = ("passed", "failed", "not_applicable")


class Funnel:
    """Counts of episodes by step and year, and what the cut presets say of those in scope.

    Parameters
    ----------
    own_cuts : mapping
        The run's own presets, by name.
    """

    def __init__(self, own_cuts: Mapping[str, Any] | None = None) -> None:
        self._years: dict[str, Counter[str]] = {}
        self._own = [preset.name for preset in own_presets(own_cuts or {})]
        self._cuts: dict[str, Counter[str]] = {name: Counter() for name in (*packaged(), *self._own)}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any], own_cuts: Mapping[str, Any] | None = None) -> Funnel:
        """The inverse of :meth:`as_dict`."""
        made = cls(own_cuts)
        made._years = {year: Counter(values) for year, values in counts["funnel_by_year"].items()}
        made._cuts = {name: Counter(values) for name, values in counts["cuts"].items()}
        return made

    def remove(self, other: Funnel) -> None:
        """Take out what another funnel counts."""
        for mine, theirs in ((self._years, other._years), (self._cuts, other._cuts)):
            for name, counter in theirs.items():
                mine[name].subtract(counter)

    def update(self, episodes: pa.Table) -> None:
        """Count the last rows of episodes."""
        passed = _passed(episodes)
        left = np.logical_and.accumulate(np.stack([passed[step] for step in STEPS]))
        years = _years(episodes)
        for year in np.unique(years):
            counter = self._years.setdefault(str(year), Counter())
            for step, mask in zip(STEPS, left, strict=True):
                counter[step] += int((mask & (years == year)).sum())
        self._count_cuts(episodes.filter(pa.array(left[list(STEPS).index("in_scope")])))

    def add(self, other: Funnel) -> None:
        """Count what another one of the same presets has counted."""
        for counters, others in ((self._years, other._years), (self._cuts, other._cuts)):
            for name, counter in others.items():
                counters.setdefault(name, Counter()).update(counter)

    def _count_cuts(self, episodes: pa.Table) -> None:
        for name in packaged():
            self._add(name, *_verdict(episodes.column(f"cut_{name}")))
        bits, unknown = (
            pc.fill_null(episodes.column(name), 0).to_numpy() for name in ("cuts_own", "cuts_own_na")
        )
        for bit, name in enumerate(self._own):
            known = (unknown >> bit) & 1 == 0
            self._add(name, known & ((bits >> bit) & 1 == 1), known)

    def _add(self, name: str, passed: np.ndarray, known: np.ndarray) -> None:
        counts = (passed.sum(), (known & ~passed).sum(), (~known).sum())
        self._cuts[name].update({verdict: int(n) for verdict, n in zip(VERDICTS, counts, strict=True)})

    def as_dict(self) -> dict[str, Any]:
        """``funnel_by_year`` and ``cuts`` of ``catalog.json``."""
        return {
            "funnel_by_year": {
                year: {step: counter[step] for step in STEPS}
                for year, counter in sorted(self._years.items())
                if counter["episodes"]
            },
            "cuts": {
                name: {verdict: counter[verdict] for verdict in VERDICTS}
                for name, counter in self._cuts.items()
            },
        }


def _passed(episodes: pa.Table) -> dict[str, np.ndarray]:
    """Whether each episode passes each cut by itself, bool (n,)."""
    everyone = np.ones(episodes.num_rows, bool)
    return {
        "episodes": everyone,
        "processed": episodes.column("gate").is_valid().to_numpy(),
        **{f"not_{gate}": ~equals(episodes, "gate", gate) for gate in GATES[1:4]},
        "has_t0": episodes.column("t0").is_valid().to_numpy(),
        "in_scope": ~equals(episodes, "gate", GATES[4]),
        "classified": episodes.column("class_top1").is_valid().to_numpy(),
        "confident": np.nan_to_num(floats(episodes, "prob_top1")) >= CONFIDENT,
        "not_known": ~(equals(episodes, "known_status", "known") | equals(episodes, "known_status", "late")),
        "anomalous": np.nan_to_num(floats(episodes, "anomaly_flag")) > 0,
    }


def _verdict(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    return pc.fill_null(column, False).to_numpy(), column.is_valid().to_numpy()


def _years(episodes: pa.Table) -> np.ndarray:
    """UTC year of t0, else of the first detection, as text; ``unknown`` where neither is there."""
    jd = pc.coalesce(episodes.column("t0"), episodes.column("jd_first"))
    known = jd.is_valid().to_numpy()
    seconds = (pc.fill_null(jd, 2451544.5).to_numpy() - 2440587.5) * 86400.0
    years = seconds.astype("datetime64[s]").astype("datetime64[Y]").astype(str)
    return np.where(known, years, "unknown")


def totals(by_year: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Episodes left after each step, all years together."""
    return {step: sum(year[step] for year in by_year.values()) for step in STEPS}


def funnel_table(by_year: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The funnel as rows: step, episodes left, removed and why, and those left of each year."""
    total = totals(by_year)
    before: Sequence[int] = [total["episodes"], *total.values()][:-1]
    return [
        {"cut": step, "left": left, "removed": previous - left, "because": STEPS[step] or None}
        | {year: counts[step] for year, counts in by_year.items()}
        for (step, left), previous in zip(total.items(), before, strict=True)
    ]
