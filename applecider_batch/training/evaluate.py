"""``evaluate models``: what the networks of a set are worth on labelled objects, by modality and fused.

The inputs and the networks are those of a classification: the same as-of walls, predictor, fusion and
calibration. Objects that trained a network in use are left out and counted. Files::

    OUT/evaluation.json                     all numbers
    OUT/tables.md                           in the layout of the paper's tables, its figures beside ours
    OUT/<what>-<horizon>-confusion.png      what: photometry, image, spectra, fused
    OUT/<what>-<horizon>-reliability.png
    OUT/sweep-<measure>.png                 by horizon, with intervals
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.inference.calibration import FUSED, Calibration, pattern_name
from applecider_batch.storage import Store
from applecider_batch.training.ablations import availability_figure, instruments, shuffled_sky
from applecider_batch.training.answers import Answers, Opened, ask, open_evaluation
from applecider_batch.training.curves import confusion_figure, reliability_figure, sweep_figure
from applecider_batch.training.dataset import HORIZONS, Dataset, load_alerts
from applecider_batch.training.metrics import report
from applecider_batch.training.paper_tables import PaperTables
from applecider_batch.training.probe import source_probe
from applecider_batch.training.setup import LabelledData
from applecider_batch.training.splits import PARTS
from applecider_batch.training.subclasses import nuclear_report, spectra_subclasses

SWEPT = ("macro_auprc", "macro_auc", "balanced_accuracy", "auc SN I/SN II")
RARE = "TDE"
ALERT_DAYS = 100.0
_FULL = 1000.0


def evaluate_models(
    data: LabelledData,
    out: str,
    *,
    part: str = "test",
    horizons: Sequence[float | None] = HORIZONS,
    alert_days: float = ALERT_DAYS,
    include_trained: bool = False,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a model set on a part of the labelled objects of an archive.

    Parameters
    ----------
    data : LabelledData
    out : str
        Folder to write.
    part : {"test", "validation", "train", "all"}
        ``all`` for objects that no network has seen.
    horizons : sequence of float or None
    alert_days : float
        Figures per alert are over alerts up to so many days after t0; 0: none.
    include_trained : bool
        Judge objects that trained a network, too.
    draws, seed : int
        Of the bootstrap over objects.

    Returns
    -------
    dict
        The document of ``evaluation.json``.
    """
    if part not in (*PARTS, "all"):
        raise UserError(f"Unknown part '{part}'; allowed are {', '.join((*PARTS, 'all'))}.")
    opened = open_evaluation(data, horizons)
    dataset, answers = opened.dataset, opened.answers
    asked = np.arange(len(dataset)) if part == "all" else dataset.members(part)
    members = asked if include_trained else asked[~opened.trained_on[asked]]
    if not len(members):
        raise UserError(
            f"The part '{part}' has no objects that can be judged: {dataset.counts()}, of which "
            f"{int(opened.trained_on[asked].sum())} of this part trained a network in use.",
            hint="Give another --part or --split, or --include-trained for figures on what was learned.",
        )
    calibration = Calibration.from_document(opened.model_set.calibration)
    judge = _Judge(draws, seed)
    store = Store(out)
    document: dict[str, Any] = {
        "model_set_id": opened.model_set.model_set_id,
        "calibration_id": opened.model_set.calibration_id,
        "trained": opened.model_set.trained,
        "calibrated": calibration.calibrated,
        "part": part,
        "split": data.split.record(),
        "objects": dataset.counts(),
        "left_out": {
            "in_training_set": len(asked) - len(members),
            "training_sets_known": opened.training_known,
        },
        "simulated_objects": _simulated(dataset, members),
        "interval": "95 %, bootstrap over objects",
        "results": judge.all(dataset, answers, calibration, members),
        "source_probe": source_probe(dataset),
        "availability": _availability(opened, members, judge),
    }
    results = document["results"]
    document[RARE.lower()] = {
        what: {h: _of_class(found, RARE) for h, found in by_horizon.items()}
        for what, by_horizon in results.items()
    }
    if alert_days > 0:
        document["per_alert"] = _per_alert(opened, data, members, calibration, judge, alert_days)
    if "image" in answers.logits:
        document["sky_shuffled"] = _sky_shuffled(opened, data, members, calibration, judge)
        document["nuclear"] = nuclear_report(
            dataset, answers.log_prob("image", calibration)[:, -1], members, draws=draws, seed=seed
        )
    if "spectra" in answers.logits:
        document["subclasses"] = spectra_subclasses(opened, data, members, draws=draws, seed=seed)
    _write(store, document, dataset.horizons)
    return document


class _Judge:
    """Reports with intervals."""

    def __init__(self, draws: int, seed: int) -> None:
        self.draws, self.seed = draws, seed

    def all(
        self, dataset: Dataset, answers: Answers, calibration: Calibration, members: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        """Every modality and ``fused`` at every horizon."""
        mask = answers.mask
        out = {}
        for what in (*answers.logits, FUSED):
            log_prob = answers.log_prob(what, calibration)
            out[what] = {
                horizon_name(h): self.one(dataset, log_prob[:, i], members, mask[:, i])
                for i, h in enumerate(dataset.horizons)
            }
        return out

    def one(
        self, dataset: Dataset, log_prob: np.ndarray, members: np.ndarray, mask: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Report of log probabilities (n, 5), in all and by availability pattern."""
        there = members[np.isfinite(log_prob[members]).all(1)]
        if not len(there):
            return {"rows": 0}
        prob = np.exp(log_prob)

        def of(rows: np.ndarray) -> dict[str, Any]:
            group = dataset.group[rows].astype(str)
            return report(
                dataset.label[rows], prob[rows], dataset.classes, group, draws=self.draws, seed=self.seed
            )

        out = of(there)
        if mask is not None and len(np.unique(mask[there])) > 1:
            found = {pattern_name(int(p)): of(there[mask[there] == p]) for p in np.unique(mask[there])}
            out["patterns"] = {
                name: {k: v for k, v in one.items() if k != "reliability"} for name, one in found.items()
            }
        return out


def horizon_name(horizon: float | None) -> str:
    """``10d`` or ``full``."""
    return "full" if horizon is None else f"{horizon:g}d"


def _of_class(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A class's own measures with their intervals."""
    measures, intervals = found.get("measures", {}), found.get("intervals", {})
    own = [f"{kind} {name}" for kind in ("auc", "auprc", "recall", "precision")]
    return {
        "objects": found.get("counts", {}).get(name, 0),
        "measures": {k: measures[k] for k in own if k in measures},
        "intervals": {k: intervals[k] for k in own if k in intervals},
    }


def _simulated(dataset: Dataset, members: np.ndarray) -> int:
    flags = dataset.prepared.rows.column("simulated").to_pylist()
    return sum(bool(flags[row]) for row in dataset.row[members, -1].tolist())


def _availability(opened: Opened, members: np.ndarray, judge: _Judge) -> dict[str, Any]:
    """What the availability pattern and the spectrum's instrument alone say, beside every horizon."""
    dataset, mask = opened.dataset, opened.answers.mask
    instrument = instruments(opened.archive, dataset)
    return {
        horizon_name(h): availability_figure(dataset, mask[:, i], instrument[:, i], members, judge.one)
        for i, h in enumerate(dataset.horizons)
    }


def _per_alert(
    opened: Opened,
    data: LabelledData,
    members: np.ndarray,
    calibration: Calibration,
    judge: _Judge,
    alert_days: float,
) -> dict[str, Any]:
    """Every eligible alert of the judged objects, as of its own packet."""
    alerts = load_alerts(
        opened.archive,
        opened.dataset.take(members),
        opened.profile,
        max_days=alert_days,
        modalities=opened.model_set.inputs,
    )
    if not len(alerts):
        return {"alerts": 0, "days": alert_days}
    where = {"device": data.device, "threads": data.threads}
    answers = ask(opened.model_set, alerts, opened.archive, **where)
    found = judge.all(alerts, answers, calibration, np.arange(len(alerts)))
    results = {what: by_horizon["full"] for what, by_horizon in found.items()}
    out = {"alerts": len(alerts), "days": alert_days, "results": results}
    if "image" in answers.logits:
        log_prob = answers.log_prob("image", calibration)[:, 0]
        rows = np.arange(len(alerts))
        out["nuclear"] = nuclear_report(alerts, log_prob, rows, draws=judge.draws, seed=judge.seed)
    return out


def _sky_shuffled(
    opened: Opened, data: LabelledData, members: np.ndarray, calibration: Calibration, judge: _Judge
) -> dict[str, Any]:
    """Image and fused reports with ra and dec exchanged among the objects."""
    other = ask(
        opened.model_set,
        shuffled_sky(opened.dataset, opened.profile.metadata_names, judge.seed),
        opened.archive,
        device=data.device,
        threads=data.threads,
        modalities=("image",),
    )
    answers = Answers(opened.answers.logits | other.logits)
    found = judge.all(opened.dataset, answers, calibration, members)
    return {what: found[what] for what in ("image", FUSED)}


def _write(store: Store, document: Mapping[str, Any], horizons: Sequence[float | None]) -> None:
    results = document["results"]
    for what, by_horizon in results.items():
        for horizon, found in by_horizon.items():
            _figures(store, what, horizon, found)
    for measure in SWEPT:
        series = sweep_series(results, horizons, measure)
        if series:
            name = measure.replace("/", "-").replace(" ", "_")
            store.write_atomic(f"sweep-{name}.png", sweep_figure(series, measure.replace("_", " ")))
    store.write_atomic("tables.md", PaperTables(document).markdown().encode())
    store.write_json_atomic("evaluation.json", document)


def _figures(store: Store, what: str, horizon: str, result: Mapping[str, Any]) -> None:
    if not result["rows"]:
        return
    title = f"{what}, {horizon}: {result['objects']} objects"
    name = f"{what}-{horizon}"
    matrix = np.array(result["confusion"])
    store.write_atomic(f"{name}-confusion.png", confusion_figure(matrix, list(result["counts"]), title))
    store.write_atomic(f"{name}-reliability.png", reliability_figure(result["reliability"], title))


def sweep_series(
    results: Mapping[str, Any], horizons: Sequence[float | None], measure: str
) -> dict[str, list[tuple[float, float, float, float]]]:
    """(horizon, value, low, high) of a measure for every series that has it."""
    out: dict[str, list[tuple[float, float, float, float]]] = {}
    for what, by_horizon in results.items():
        for h in horizons:
            found = by_horizon[horizon_name(h)]
            value = found.get("measures", {}).get(measure)
            if value is not None:
                low, high = found["intervals"].get(measure, (value, value))
                out.setdefault(what, []).append((_FULL if h is None else h, value, low, high))
    return out
