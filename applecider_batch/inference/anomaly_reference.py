"""The frozen reference of a model set: from scores to p-values, flags and reasons.

A reference holds what was fitted on training latents (`anomaly.LatentScorer`) and the scores of *other*
objects of known class at several horizons. A row is compared with the reference objects of its own predicted
class, its own modalities and its own horizon::

    p = (1 + number of reference objects with as high a score) / (n_ref + 1)

and never with the rows beside it. Where fewer than ``MIN_GROUP`` such objects exist the comparison backs off,
in this order: any class; then objects that have other modalities, too, which are left out of the comparison,
of its class, then of any; then fewer modalities (the row is judged as if it had only those), likewise. A
horizon that the reference does not have takes the nearest in log days. The row says with whom it was
compared.

The consensus is the mean of -log10 p over the scores that exist. It is calibrated by the same rule: the
reference objects' own consensus, each against the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any

import numpy as np

from applecider_batch.inference.anomaly import ITEM_SCORES, LatentScorer
from applecider_batch.inference.calibration import pattern_name
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS

SCORES: tuple[str, ...] = (*ITEM_SCORES, "jsd")
FLAG_LEVELS: tuple[float, ...] = (0.01, 0.001)
#: From here on the lowest p is below 1 %, so that the first flag can fire at all.
MIN_GROUP = 99
#: Below this there is no p-value.
MIN_ANY = 20
_MIN_SCALE = 10


class Reason(IntFlag):
    """Bits of ``anomaly_reason``."""

    ENERGY = 1 << 0
    MCIF = 1 << 1
    IFOREST = 1 << 2
    KNN = 1 << 3
    JSD = 1 << 4
    CONSENSUS = 1 << 5
    PHOTOMETRY = 1 << 8
    IMAGE = 1 << 9
    SPECTRA = 1 << 10


#: What each bit says, for the documentation and the report.
DESCRIPTIONS: dict[Reason, str] = {
    Reason.ENERGY: "energy beyond 1 % of the reference: no class claims it",
    Reason.MCIF: "anomalous to the isolation forest of every class",
    Reason.IFOREST: "anomalous to the isolation forest of all classes",
    Reason.KNN: "far from all training latents",
    Reason.JSD: "the modalities disagree more than in 99 % of the reference",
    Reason.CONSENSUS: "all scores together beyond 1 % of the reference",
    Reason.PHOTOMETRY: "a score that fired was largest in the light curve",
    Reason.IMAGE: "a score that fired was largest in the image",
    Reason.SPECTRA: "a score that fired was largest in the spectrum",
}


def describe(reason: int) -> list[str]:
    """The meaning of every bit that is set, lowest first."""
    return [text for bit, text in DESCRIPTIONS.items() if reason & bit]


@dataclass(frozen=True)
class Judgement:
    """Scores of rows and what they mean; NaN, -1 or None where there is nothing.

    Attributes
    ----------
    scores : ndarray, float32, shape (n, 4)
        `ITEM_SCORES` over all modalities of the row, in units of the reference's interquartile range above
        its median.
    pvalues : ndarray, float64, shape (n, 5)
        Of `SCORES`.
    consensus, pvalue : ndarray, float64, shape (n,)
    flag : ndarray, int16, shape (n,)
        Number of `FLAG_LEVELS` that ``pvalue`` is at or below; -1 without a p-value.
    reason : ndarray, int32, shape (n,)
    n_ref : ndarray, int32, shape (n,)
        0 without a comparison.
    group : list of str or None
    """

    scores: np.ndarray
    pvalues: np.ndarray
    consensus: np.ndarray
    pvalue: np.ndarray
    flag: np.ndarray
    reason: np.ndarray
    n_ref: np.ndarray
    group: list[str | None]


@dataclass(frozen=True)
class Group:
    """Reference objects of one comparison: ascending scores by name, ascending consensus."""

    name: str
    bits: int
    n: int
    scores: dict[int, np.ndarray]
    consensus: np.ndarray


@dataclass(frozen=True)
class AnomalyReference:
    """See the module.

    Attributes
    ----------
    scorers : dict of modality -> LatentScorer
        Modalities without enough training latents have none.
    horizons : tuple of float or None
    classes : tuple of str
        Meaning of ``predicted``.
    values : ndarray, float32, shape (n, H, M, 4)
        `ITEM_SCORES` of each reference object, horizon and modality; NaN where absent.
    divergence : ndarray, float32, shape (n, H)
    mask, predicted : ndarray, int16, shape (n, H)
        Modalities, and predicted class: -1 where the object takes no part at that horizon.
    document : dict
        What it was made of, JSON-ready.
    """

    scorers: dict[str, LatentScorer]
    horizons: tuple[float | None, ...]
    classes: tuple[str, ...]
    values: np.ndarray
    divergence: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    document: dict[str, Any] = field(default_factory=dict)
    _groups: dict[tuple[int, int, int], Group | None] = field(default_factory=dict, repr=False)
    _scales: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def judge(
        self,
        values: np.ndarray,
        divergence: np.ndarray,
        mask: np.ndarray,
        predicted: np.ndarray,
        horizon_days: np.ndarray,
        in_scope: np.ndarray,
    ) -> Judgement:
        """Compare rows with the reference.

        Parameters
        ----------
        values : ndarray, float32, shape (n, M, 4)
            `ITEM_SCORES` of each row and modality; NaN where absent.
        divergence : ndarray, float, shape (n,)
        mask, predicted : ndarray, int, shape (n,)
        horizon_days : ndarray, float, shape (n,)
            NaN: full.
        in_scope : ndarray, bool, shape (n,)
            Only these have p-values: the reference is of objects in scope.
        """
        n = len(mask)
        column = np.array([self._nearest(h) for h in horizon_days.tolist()], np.int64)
        out = Judgement(
            scores=np.full((n, len(ITEM_SCORES)), np.nan, np.float32),
            pvalues=np.full((n, len(SCORES)), np.nan),
            consensus=np.full(n, np.nan),
            pvalue=np.full(n, np.nan),
            flag=np.full(n, -1, np.int16),
            reason=np.zeros(n, np.int32),
            n_ref=np.zeros(n, np.int32),
            group=[None] * n,
        )
        for h, bits in np.unique(np.stack([column, mask], axis=1), axis=0).tolist():
            rows = np.flatnonzero((column == h) & (mask == bits))
            out.scores[rows] = self._combine(values[rows], h, bits)[0]
        chosen = in_scope & (predicted >= 0) & (mask > 0)
        key = np.stack([column, mask, predicted], axis=1)[chosen]
        for h, bits, cls in np.unique(key, axis=0).tolist():
            group = self.group(h, bits, cls)
            if group is not None:
                rows = np.flatnonzero(chosen & (column == h) & (mask == bits) & (predicted == cls))
                self._compare(out, rows, group, h, values[rows], divergence[rows])
        return out

    def _compare(
        self, out: Judgement, rows: np.ndarray, group: Group, h: int, values: np.ndarray, jsd: np.ndarray
    ) -> None:
        combined, where = self._combine(values, h, group.bits)
        combined = np.column_stack([combined, jsd.astype(np.float32)])
        for number, ascending in group.scores.items():
            out.pvalues[rows, number] = _pvalue(ascending, combined[:, number])
        p = out.pvalues[rows]
        consensus = _consensus(p)
        out.consensus[rows] = consensus
        total = _pvalue(group.consensus, consensus)
        out.pvalue[rows] = total
        known = np.isfinite(total)
        flag = sum((total <= level).astype(np.int16) for level in FLAG_LEVELS)
        out.flag[rows] = np.where(known, flag, -1)
        fired = p <= FLAG_LEVELS[0]
        reason = np.where(known & (total <= FLAG_LEVELS[0]), int(Reason.CONSENSUS), 0)
        for number in range(len(SCORES)):
            reason |= np.where(fired[:, number], 1 << number, 0)
        for number, modality in enumerate(MODALITIES):
            own = (fired[:, : len(ITEM_SCORES)] & (where == number)).any(axis=1)
            reason |= np.where(own, int(Reason[modality.upper()]), 0)
        out.reason[rows] = reason
        out.n_ref[rows] = group.n
        for row in rows.tolist():
            out.group[row] = group.name

    def _nearest(self, horizon: float | None) -> int:
        """Position of the reference's horizon nearest in log days; full goes with the last one."""
        if horizon is None or math.isnan(horizon):
            return len(self.horizons) - 1
        distance = [math.inf if h is None else abs(math.log(h / horizon)) for h in self.horizons]
        return int(np.argmin(distance))

    def _scale(self, h: int) -> np.ndarray:
        """Median and interquartile range of each modality and score at a horizon, float64 (2, M, 4)."""
        if h not in self._scales:
            part = self.values[self.predicted[:, h] >= 0, h].astype(np.float64)
            out = np.full((2, *part.shape[1:]), np.nan)
            for m, s in np.ndindex(*part.shape[1:]):
                known = part[np.isfinite(part[:, m, s]), m, s]
                if len(known) >= _MIN_SCALE:
                    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
                    out[:, m, s] = middle, (high - low) or np.nan
            self._scales[h] = out
        return self._scales[h]

    def _combine(self, values: np.ndarray, h: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Largest scaled score over some modalities, float32 (n, 4), and the modality it comes from."""
        middle, width = self._scale(h)
        used = np.array([bool(bits & MODALITY_BITS[m]) for m in MODALITIES])
        scaled = np.where(used[:, None], (values - middle) / width, np.nan)  # (n, M, 4)
        filled = np.where(np.isfinite(scaled), scaled, -np.inf)
        best = filled.max(axis=1)
        return np.where(np.isfinite(best), best, np.nan).astype(np.float32), filled.argmax(axis=1)

    def group(self, h: int, bits: int, cls: int) -> Group | None:
        """The reference objects for a row: the first rung of the ladder with enough, else the fullest."""
        key = (h, bits, cls)
        if key not in self._groups:
            fewer = sorted((b for b in range(1, bits) if b & bits == b), key=lambda b: (-b.bit_count(), b))
            patterns = [(bits, True), (bits, False), *((b, False) for b in fewer)]
            rungs = [(pattern, exact, wanted) for pattern, exact in patterns for wanted in (cls, None)]
            members = [self._members(h, *rung) for rung in rungs]
            size = np.array([len(m) for m in members])
            best = int(np.argmax(size >= MIN_GROUP if (size >= MIN_GROUP).any() else size))
            usable = size[best] >= MIN_ANY
            self._groups[key] = self._make(h, *rungs[best], members[best]) if usable else None
        return self._groups[key]

    def _members(self, h: int, bits: int, exact: bool, cls: int | None) -> np.ndarray:
        mask, predicted = self.mask[:, h].astype(np.int64), self.predicted[:, h]
        same = mask == bits if exact else mask & bits == bits
        return np.flatnonzero(same & (predicted >= 0 if cls is None else predicted == cls))

    def _make(self, h: int, bits: int, exact: bool, cls: int | None, members: np.ndarray) -> Group:
        combined = self._combine(self.values[members, h], h, bits)[0]
        # A divergence over other modalities than the row's own says nothing about the row's.
        jsd = self.divergence[members, h] if exact else np.full(len(members), np.nan, np.float32)
        table = np.column_stack([combined, jsd])
        scores = {s: np.sort(table[:, s]) for s in range(len(SCORES)) if np.isfinite(table[:, s]).all()}
        p = np.full(table.shape, np.nan)
        for s, ascending in scores.items():
            # Each against the others: itself is among those that are counted, and is the 1 of the formula.
            p[:, s] = (_pvalue(ascending, table[:, s]) * (len(members) + 1) - 1) / len(members)
        horizon = self.horizons[h]
        name = ", ".join(
            [
                "any class" if cls is None else self.classes[cls],
                pattern_name(bits) + ("" if exact else " at least"),
                "full" if horizon is None else f"{horizon:g} d",
            ]
        )
        return Group(name, bits, len(members), scores, np.sort(_consensus(p)))


def _pvalue(ascending: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(1 + number of reference scores >= score) / (n + 1), NaN for NaN; float64 (n,)."""
    at_least = len(ascending) - np.searchsorted(ascending, score, side="left")
    return np.where(np.isfinite(score), (1.0 + at_least) / (len(ascending) + 1.0), np.nan)


def _consensus(p: np.ndarray) -> np.ndarray:
    """Mean of -log10 p over the scores that exist, rounded to float32's digits; float64 (n,)."""
    known = np.isfinite(p)
    total = np.where(known, -np.log10(np.where(known, p, 1.0)), 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32).astype(np.float64)
