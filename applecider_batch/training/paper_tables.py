"""Our figures in the layout of the paper's tables 1, 3, 5 to 8 and figure 6, the paper's own beside them.

The paper (arXiv:2507.16088) was measured on other objects: 18,245 of them, 7,410 common to its modalities
with 31,065 alerts. Every document says so; a difference of two figures is first of all one of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from applecider_batch.inference.calibration import FUSED
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.probe import probe_sentences

PAPER_OBJECTS, PAPER_COMMON, PAPER_ALERTS = 18_245, 7_410, 31_065
#: Table 5: photometry, 30 d.
PAPER_PHOTOMETRY = {
    "accuracy": "0.88 ± 0.004", "macro_auc": "0.97", "auc SN I": "0.99", "auc SN II": "0.96",
    "auc CV": "0.97", "auc AGN": "0.99", "auc TDE": "0.95",
}  # fmt: skip
PAPER_INFORMER = {"accuracy": "0.59"}
#: Table 6: AstroMiNN, AGN and TDE as one class.
PAPER_IMAGE = {"auc SN I": "0.83", "auc SN II": "0.76", "auc CV": "0.99", "auc nuclear": "0.99"}
#: Table 7: SpectraNet, nine classes.
PAPER_SPECTRA = {"accuracy": "0.870 ± 0.005"}
PAPER_SPECTRA_AUC = "≥ 0.96"
#: Table 8: fused, test; TDE on validation 0.64.
PAPER_FUSED = {
    "recall SN I": "0.95", "recall SN II": "0.93", "recall CV": "0.90", "recall AGN": "0.98",
    "recall TDE": "0.31",
}  # fmt: skip
_ABSENT = "–"


class PaperTables:
    """Markdown of an evaluation.

    Parameters
    ----------
    document : mapping
        What `evaluate.evaluate_models` gives.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.results: Mapping[str, Any] = document["results"]

    def markdown(self) -> str:
        """All tables."""
        parts = [
            self._head(),
            self._data(),
            self._common(),
            self._photometry(),
            self._image(),
            self._spectra(),
            self._fused(),
            self._confusion(),
            self._rare(),
            self._caveats(),
        ]
        return "\n".join(part for part in parts if part)

    def _head(self) -> str:
        d = self.document
        state = [] if d["trained"] else ["The weights are untrained: no figure means anything."]
        if d["simulated_objects"]:
            state.append(f"{d['simulated_objects']} of the judged objects are simulated.")
        if d["left_out"]["in_training_set"]:
            state.append(f"{d['left_out']['in_training_set']} objects that trained a network are left out.")
        if not d["left_out"]["training_sets_known"]:
            state.append("Not every network says what trained it, so it may know some of these objects.")
        return (
            f"# Evaluation of {d['model_set_id']}, part: {d['part']}\n\n"
            f"Brackets: intervals of {d['interval']}. The paper's figures are those of arXiv:2507.16088, on "
            f"other data ({PAPER_OBJECTS:,} objects); ours are on the labelled objects of this archive: "
            f"side by side, not to be compared. {' '.join(state)}\n"
        )

    def _data(self) -> str:
        counts = self.document["objects"]
        rows = [[name, *(counts[part][name] for part in counts)] for name in CLASSES]
        rows.append(["all", *(sum(counts[part].values()) for part in counts)])
        return _table(f"Table 1: labelled objects (the paper: {PAPER_OBJECTS:,})", ["class", *counts], rows)

    def _common(self) -> str:
        name, found = self._at(FUSED, "10d")
        patterns = found.get("patterns", {})
        if not patterns and not found.get("rows"):
            return ""
        rows = [
            [pattern, *(p["counts"][c] for c in CLASSES), p["objects"]] for pattern, p in patterns.items()
        ]
        rows.append(["all", *(found["counts"][c] for c in CLASSES), found["objects"]])
        return _table(
            f"Table 3: judged objects by the modalities available, {name} (the paper's common set: "
            f"{PAPER_COMMON:,} objects, {PAPER_ALERTS:,} alerts)",
            ["available", *CLASSES, "objects"],
            rows,
        )

    def _photometry(self) -> str:
        name, found = self._at("photometry", "30d")
        if not found.get("rows"):
            return ""
        alerts, papers = self._alerts("photometry"), (PAPER_PHOTOMETRY, PAPER_INFORMER)
        rows = [
            [
                label,
                *(paper.get(key, _ABSENT) for paper in papers),
                *(_value(f, key) for f in (found, alerts)),
            ]
            for key, label in _measures(CLASSES)
        ]
        header = ["", "paper, 30 d", "paper, Informer", f"per object, {name}", self._alert_title()]
        return _table("Table 5: light curves", header, rows)

    def _image(self) -> str:
        found = self.document.get("nuclear", {})
        if not found.get("rows"):
            return ""
        alerts = self.document.get("per_alert", {}).get("nuclear", {})
        rows = [
            [label, PAPER_IMAGE.get(key, _ABSENT), _value(found, key), _value(alerts, key)]
            for key, label in _measures(list(found["counts"]))
        ]
        header = ["", "paper", "per object, last horizon", self._alert_title()]
        return _table("Table 6: stamps and metadata, AGN and TDE as one class", header, rows)

    def _spectra(self) -> str:
        found = self.document.get("subclasses", {})
        if not found.get("rows"):
            return ""
        paper = {f"auc {c}": PAPER_SPECTRA_AUC for c in found["classes"]} | PAPER_SPECTRA
        rows = [
            [
                label,
                paper.get(key, _ABSENT),
                _value(found, key),
                found["counts"].get(key[4:], ""),
            ]
            for key, label in _measures(found["classes"])
        ]
        title = "Table 7: spectra, sub-classes (the paper: nine, without a plain SN II)"
        return _table(title, ["", "paper", "ours, last horizon", "objects"], rows)

    def _fused(self) -> str:
        name, found = self._at(FUSED, "10d")
        if not found.get("rows"):
            return ""
        alerts = self._alerts(FUSED)
        rows = [
            [c, PAPER_FUSED[f"recall {c}"], _value(found, f"recall {c}"), _value(alerts, f"recall {c}")]
            for c in CLASSES
        ]
        rows += [
            [label, _ABSENT, _value(found, key), _value(alerts, key)]
            for key, label in (("accuracy", "all"), ("balanced_accuracy", "mean of classes"))
        ]
        header = ["share recovered", "paper, test, 10 d", f"per object, {name}", self._alert_title()]
        return _table("Table 8: fused (the paper's TDE on validation: 0.64)", header, rows)

    def _confusion(self) -> str:
        name, found = self._at(FUSED, "10d")
        if not found.get("rows"):
            return ""
        rows = [
            [c, *(f"{share:.2f} ({n})" for share, n in zip(shares, counts, strict=True))]
            for c, shares, counts in zip(
                CLASSES, found["confusion_normalised"], found["confusion"], strict=True
            )
        ]
        return _table(f"Figure 6: fused confusion, {name}; rows are true classes", ["", *CLASSES], rows)

    def _rare(self) -> str:
        keys = ("auc TDE", "auprc TDE", "recall TDE", "precision TDE")
        rows = [
            [what, horizon, found["objects"], *(_value(found, key) for key in keys)]
            for what, by_horizon in self.document["tde"].items()
            for horizon, found in by_horizon.items()
            if found["objects"]
        ]
        if not rows:
            return "## TDE alone\n\nNo TDE is among the judged objects.\n"
        return _table("TDE alone", ["", "horizon", "objects", "AUC", "AUPRC", "recall", "precision"], rows)

    def _caveats(self) -> str:
        lines = ["## What these figures may rest on\n"]
        lines += [f"- {sentence}" for sentence in probe_sentences(self.document["source_probe"])]
        for horizon, found in self.document["availability"].items():
            if found.get("rows"):
                lines.append(
                    f"- {horizon}: availability and instrument alone give macro-AUC "
                    f"{_value(found, 'macro_auc')}, balanced accuracy {_value(found, 'balanced_accuracy')}."
                )
        for what, by_horizon in self.document.get("sky_shuffled", {}).items():
            for horizon, found in by_horizon.items():
                if found.get("rows"):
                    before = _value(self.results[what][horizon], "macro_auc")
                    lines.append(
                        f"- {what}, {horizon}: macro-AUC {before}, with ra and dec exchanged among objects "
                        f"{_value(found, 'macro_auc')}."
                    )
        return "\n".join(lines) + "\n"

    def _at(self, what: str, horizon: str) -> tuple[str, Mapping[str, Any]]:
        """A result at a horizon, or at the last one where that was not asked for."""
        by_horizon = self.results.get(what, {})
        if not by_horizon:
            return horizon, {}
        name = horizon if horizon in by_horizon else list(by_horizon)[-1]
        return name, by_horizon[name]

    def _alerts(self, what: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document.get("per_alert", {}).get("results", {}).get(what, {})
        return found

    def _alert_title(self) -> str:
        alerts = self.document.get("per_alert", {})
        return f"per alert, up to {alerts['days']:g} d" if alerts.get("alerts") else "per alert"


def _measures(classes: Sequence[str]) -> list[tuple[str, str]]:
    own = [(f"auc {c}", f"AUC {c}") for c in classes]
    return [("accuracy", "accuracy"), ("macro_auc", "macro-AUC"), *own]


def _value(found: Mapping[str, Any], name: str) -> str:
    """A measure with its interval."""
    value = found.get("measures", {}).get(name)
    if value is None:
        return _ABSENT
    interval = found.get("intervals", {}).get(name)
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _table(title: str, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"## {title}\n", "| " + " | ".join(map(str, header)) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"
