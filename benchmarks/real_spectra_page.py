"""Scores and page of :mod:`benchmarks.real_spectra`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from applecider_batch.taxonomy import CLASS10_TO_CLASS5
from applecider_batch.training.metrics import bootstrap, confusion, measures

GIVEN = "redshift given"
LOW = "redshift given, R = 100"
ZERO = "redshift withheld, taken for 0"
MARGINAL = "redshift withheld, averaged"
WORST = "redshift withheld, averaged, R = 100"
HEAD = Path(__file__).with_name("real_spectra_head.md")
NOTES = Path(__file__).with_name("real_spectra_notes.md")
#: IIP within II, and Ib against Ic, are as much a matter of how long somebody looked as of the spectrum.
MERGED = {
    "SN Ia": "Ia",
    "SN Ib": "Ibc",
    "SN Ic": "Ibc",
    "SN II": "II",
    "SN IIP": "II",
    "SN IIn": "IIn",
    "SN IIb": "IIb",
}
TARGETS = {"seven accuracy": 0.82, "seven macro_auc": 0.96, "broad accuracy": 0.96}
_DRAWS = 100


def judge(label: np.ndarray, prob: np.ndarray, classes: Sequence[str], group: np.ndarray) -> dict[str, Any]:
    """Seven classes, the five of :data:`MERGED` and SN I against SN II; by spectrum and by object.

    Parameters
    ----------
    label : ndarray of int64, shape (n,)
        Below 7.
    prob : ndarray of float64, shape (n, C)
        Over all classes; renormalised over the seven.
    classes : sequence of str
    group : ndarray of str, shape (n,)
        The object; its answer is the normalised geometric mean of its spectra's.
    """
    seven = [c for c in classes if c in MERGED]
    own = prob[:, : len(seven)] / prob[:, : len(seven)].sum(1, keepdims=True).clip(1e-12)
    names, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    joint = np.zeros((len(names), len(seven)))
    np.add.at(joint, inverse, np.log(own.clip(1e-9)))
    joint = np.exp(joint / np.bincount(inverse)[:, None])
    joint /= joint.sum(1, keepdims=True)
    return {
        "by spectrum": _levels(label, own, seven, group),
        "by object": _levels(label[first], joint, seven, names),
    }


def _levels(label: np.ndarray, prob: np.ndarray, seven: Sequence[str], group: np.ndarray) -> dict[str, Any]:
    broad = [CLASS10_TO_CLASS5[c] for c in seven]
    out: dict[str, Any] = {"rows": len(label), "confusion": confusion(label, prob).tolist()}
    for level, of in (("seven", list(seven)), ("merged", [MERGED[c] for c in seven]), ("broad", broad)):
        names = list(dict.fromkeys(of))
        number = np.array([names.index(c) for c in of])
        summed = prob @ np.eye(len(names))[number]
        truth = number[label]

        def of_rows(i: np.ndarray) -> dict[str, float]:
            return measures(truth[i], summed[i], names)  # noqa: B023

        found = of_rows(np.arange(len(label)))
        interval = bootstrap(group, of_rows, draws=_DRAWS)
        out[level] = {
            "measures": {k: v for k, v in found.items() if np.isfinite(v)},
            "intervals": {k: list(v) for k, v in interval.items()},
        }
    return out


def _cell(found: dict[str, Any], level: str, measure: str, digits: int = 3) -> str:
    value = found[level]["measures"][measure]
    low, high = found[level]["intervals"][measure]
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


_COLUMNS = (
    ("accuracy, 7 classes", "seven", "accuracy"),
    ("macro-AUC, 7 classes", "seven", "macro_auc"),
    ("balanced accuracy", "seven", "balanced_accuracy"),
    ("accuracy, Ia/Ibc/II/IIn/IIb", "merged", "accuracy"),
    ("accuracy, SN I/SN II", "broad", "accuracy"),
)


def _table(results: dict[str, Any], condition: str, unit: str) -> list[str]:
    lines = ["| | " + " | ".join(name for name, _, _ in _COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for name, by_condition in results.items():
        if condition in by_condition:
            cells = [_cell(by_condition[condition][unit], level, m) for _, level, m in _COLUMNS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _confusion(found: dict[str, Any], seven: Sequence[str]) -> list[str]:
    lines = ["| true \\ called | " + " | ".join(seven) + " |", "|---" * (len(seven) + 1) + "|"]
    lines += [
        f"| {c} | " + " | ".join(map(str, row)) + " |"
        for c, row in zip(seven, found["confusion"], strict=True)
    ]
    return [*lines, ""]


def page(document: dict[str, Any]) -> str:
    """The page, from the document of ``spectra.json``."""
    results, networks = document["results"], document["networks"]
    seven = [c for c in document["classes"] if c in MERGED]
    best = next(iter(networks))
    counts = document["counts"]
    lines = [HEAD.read_text().rstrip(), "", "## Data", ""]
    lines += [
        "| | " + " | ".join(document["classes"]) + " | objects |",
        "|---" * (len(document["classes"]) + 2) + "|",
    ]
    for part in ("train", "test"):
        lines.append(
            f"| {part} | " + " | ".join(map(str, counts[part])) + f" | {document['objects'][part]} |"
        )
    lines += ["", "## By spectrum, redshift given (the headline)", "", *_table(results, GIVEN, "by spectrum")]
    found = results[best][GIVEN]["by spectrum"]
    met = []
    for name, target in TARGETS.items():
        level, measure = name.split(" ")
        value = found[level]["measures"][measure]
        verdict = "reached" if value >= target else f"short by {target - value:.4f}"
        met.append(f"{level} {measure.replace('_', ' ')} {value:.4f} (target {target}: {verdict})")
    lines += [f"{best} against the targets: " + "; ".join(met) + ".", ""]
    lines += ["## By object, redshift given", "", *_table(results, GIVEN, "by object")]
    for condition, title in (
        (LOW, "At the resolution of SEDM (R = 100)"),
        (ZERO, "Redshift withheld, spectra taken as if at z = 0"),
        (MARGINAL, "Redshift withheld, averaged over trial redshifts (what a run does)"),
        (WORST, "The same at R = 100"),
    ):
        lines += [f"## {title}", "", "By spectrum.", "", *_table(results, condition, "by spectrum")]
    lines += [f"## Confusion of {best}, by spectrum, redshift given", "", *_confusion(found, seven)]
    aucs = [f"{c} {found['seven']['measures'][f'auc {c}']:.3f}" for c in seven]
    lines += ["AUC against the rest: " + ", ".join(aucs) + ".", ""]
    lines += ["## TDE", "", *_tde(document["tde"])]
    lines += [
        "## Size and speed",
        "",
        "One core; training by the clock of a machine that was shared, spectra/s by CPU time.",
        "",
    ]
    lines += ["| | parameters | MB | epochs (kept) | training, s | spectra/s |", "|---" * 6 + "|"]
    for name, n in networks.items():
        lines.append(
            f"| {name} | {n['parameters']:,} | {n['bytes'] / 1e6:.1f} | {n['epochs']} ({n['best_epoch']}) |"
            f" {n['training_s']:.0f} | {n['spectra_per_s']:.0f} |"
        )
    lines += ["", "Validation by epoch, the score that training stops by (composite):", ""]
    lines += [f"- {name}: {', '.join(f'{v:.3f}' for v in n['curve'])}" for name, n in networks.items()]
    return "\n".join([*lines, "", NOTES.read_text().rstrip(), ""])


def _tde(found: dict[str, Any]) -> list[str]:
    some = next(iter(found.values()))
    lines = [
        f"The test part has {some['spectra']} spectra of {some['objects']} TDE with their continuum: too few"
        " for a score. Called TDE among all classes, falsely so, and the ranks of the true ones:",
        "",
        "| | called TDE | other spectra called TDE | ranks |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {n['called']} of {n['spectra']} | {n['false']} | {', '.join(map(str, n['ranks']))} |"
        for name, n in found.items()
    ]
    return [*lines, ""]
