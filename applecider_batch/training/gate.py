"""``train gate``: the learned gate of a model set, from labelled objects of real and simulated archives.

Gradient-boosted trees (Friedman 2001, doi:10.1214/aos/1013203451) with one output per gate.  Every output
has the same weight, in_scope as much as the others together; inside an output real objects have 80 % where
both real and simulated ones exist; inside these every object has the same.  Rows of several horizons show
the trees what little is known early on.

The probability is calibrated (Platt scaling) and the threshold chosen on predictions of cross-validation,
in which an object is never predicted by trees that saw it: at equal cost, half of it for the share of each
kind in scope that is lost and half for the share of stars and artefacts let through; the median over
resampled objects, because the cost of few objects is a ragged curve.  So the probability refers to a sample
of which half is in scope, with its kinds (supernovae, CVs, AGN, TDEs) in equal shares.  Only objects that
the rule of known movers leaves over count there, and only real ones where real ones exist on both sides.

Real objects without a label that the rules call moving are labels too: a solar-system body was there.  What
the trees see of them says nothing of that match, so they learn what an unknown one looks like.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.read import Archive
from applecider_batch.digest import HASH64_END
from applecider_batch.errors import UserError
from applecider_batch.features.gate_model import IN_SCOPE, OUTPUTS, LearnedGate, prepared
from applecider_batch.features.inputs import prepare_gate
from applecider_batch.features.prepared import subset
from applecider_batch.features.trees import join_trees
from applecider_batch.models.manifest import refuse_packaged
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.training.gate_labels import KIND_GATES, counts, interval, read_gate_labels
from applecider_batch.training.splits import development_part, tie_siblings

HORIZONS: tuple[float | None, ...] = (3.0, 30.0, None)
REAL_SHARE = 0.8
FOLDS, REPEATS = 5, 2
TREES: dict[str, Any] = {
    "n_estimators": 120, "max_depth": 3, "learning_rate": 0.08, "subsample": 0.7, "min_samples_leaf": 8,
    "max_features": 0.3,
}  # fmt: skip
DRAWS = 500
_OBJECTS_AT_ONCE = 2000
_COLUMNS = ("objectId", "episode", "horizon_days", "gate", "ra", "dec", "simulated")


@dataclass(frozen=True)
class Examples:
    """Rows of labelled objects.

    Attributes
    ----------
    features : ndarray of float64, shape (n, F)
    kind, group : ndarray of object (str), shape (n,)
    simulated, moving, judged : ndarray of bool, shape (n,)
        Simulated packets; the rules call it moving; the one row per object that is counted (full history,
        first episode).
    """

    features: np.ndarray
    kind: np.ndarray
    group: np.ndarray
    simulated: np.ndarray
    moving: np.ndarray
    judged: np.ndarray

    def take(self, where: np.ndarray) -> Examples:
        """The rows chosen."""
        return Examples(**{name: values[where] for name, values in vars(self).items()})

    @property
    def output(self) -> np.ndarray:
        """Position in :data:`OUTPUTS` of each row's gate, int64 (n,)."""
        return np.array([OUTPUTS.index(KIND_GATES[kind]) for kind in self.kind], np.int64)


def train_gate(
    sources: Sequence[tuple[str, str]],
    models: str,
    *,
    hold_out: bool = False,
    seed: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a gate and put it into a model set, in place of one that is there.

    Parameters
    ----------
    sources : sequence of (archive URL, label table URL)
    models : str
        The model set.
    hold_out : bool
        Leave out the objects on the test side of the ``hash`` rule of splits, and measure on them.
    seed : int
    storage_options : mapping, optional

    Returns
    -------
    dict
        ``model_set``, ``model_set_digest``, ``gate_id`` and the gate's card: ``threshold``, ``objects``,
        ``cross_validation``, ``held_out``, …

    Raises
    ------
    UserError
        If a table cannot be used, or fewer than ten objects stand on either side.
    """
    refuse_packaged(models)
    ModelSet.load(models, storage_options=storage_options, check_weights=False)
    examples = read_examples(sources, storage_options)
    tested = np.array([hold_out and development_part(name) == 2 for name in examples.group], bool)
    gate = fit_gate(examples.take(~tested), seed, examples.take(tested) if hold_out else None)
    stored = update_files(models, gate=gate.to_bytes(), storage_options=storage_options)
    card = {key: value for key, value in gate.document.items() if key not in ("format", "features")}
    return {
        "model_set": models, "model_set_digest": stored.digest, "gate_id": gate.gate_id, **card
    }  # fmt: skip


def read_examples(
    sources: Sequence[tuple[str, str]], storage_options: Mapping[str, Any] | None = None
) -> Examples:
    """Rows of the labelled objects of archives, with what a gate sees of them."""
    parts = [_read_source(*source, storage_options) for source in sources]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names, of_row = tie_siblings(joined.pop("name"), joined.pop("ra"), joined.pop("dec"))
    return Examples(**joined, group=np.array(names, object)[of_row])


def _read_source(url: str, labels_url: str, storage_options: Any) -> dict[str, np.ndarray]:
    archive, labels = Archive.open(url, storage_options), read_gate_labels(labels_url, storage_options)
    jd_max = archive.snapshot.jd_max or 0.0
    found: list[tuple[pa.Table, np.ndarray]] = []
    for lo, hi in pairwise(_edges(archive)):
        data = archive.read_shard(lo, hi)
        with_alerts = set(data.alerts.column("objectId").to_pylist())
        shard = subset(data, [name for name in data.objects if name in with_alerts])
        rows, features = prepare_gate(shard, HORIZONS, snapshot_jd_max=jd_max)
        rows = rows.select(_COLUMNS)
        names, gates = rows.column("objectId").to_pylist(), rows.column("gate").to_pylist()
        use = [n in labels.kind or gate == "moving" for n, gate in zip(names, gates, strict=True)]
        use &= np.isfinite(features).any(axis=1)
        found.append((rows.filter(pa.array(use)), features[use]))
    rows = pa.concat_tables([rows for rows, _ in found])
    names = rows.column("objectId").to_pylist()
    if not names:
        raise UserError(f"No object of the archive '{url}' with alerts is labelled in '{labels_url}'.")

    def floats(name: str) -> np.ndarray:
        return rows.column(name).to_numpy(zero_copy_only=False).astype(np.float64)

    episode, horizon = floats("episode"), floats("horizon_days")
    return {
        "name": np.array([labels.group.get(name, name) for name in names], object),
        "ra": floats("ra"),
        "dec": floats("dec"),
        "features": np.concatenate([features for _, features in found]),
        "kind": np.array([labels.kind.get(name, "mover") for name in names], object),
        "simulated": np.array([bool(value) for value in rows.column("simulated").to_pylist()]),
        "moving": np.array([gate == "moving" for gate in rows.column("gate").to_pylist()]),
        "judged": np.isnan(horizon) & (episode <= 1),
    }


def _edges(archive: Archive) -> list[int]:
    """Hash ranges of about so many objects as a shard holds."""
    from applecider_batch.archive.objects import objects_table

    pieces = max(1, -(-objects_table(archive).num_rows // _OBJECTS_AT_ONCE))
    return [HASH64_END * k // pieces for k in range(pieces + 1)]


def fit_gate(examples: Examples, seed: int, held_out: Examples | None = None) -> LearnedGate:
    """Fit, calibrate and measure a gate.

    Parameters
    ----------
    examples : Examples
    seed : int
    held_out : Examples, optional
        Objects of no group in ``examples``, to measure the gate on.
    """
    judged = examples.judged & ~examples.moving
    inside = _inside(examples.kind)
    few = [int((judged & side).sum()) for side in (inside, ~inside)]
    if min(few) < 10:
        raise UserError(
            f"A gate needs at least 10 labelled objects in scope and 10 out of it; there are {few[0]} and "
            f"{few[1]}.",
            hint="Add a simulated survey: its archive with its truth.parquet.",
        )
    log_odds = _cross_validate(examples, seed)
    real = judged & ~examples.simulated
    basis = real if (real & inside).any() and (real & ~inside).any() else judged
    slope, intercept = _platt(log_odds[basis], examples.kind[basis])
    probability = 1.0 / (1.0 + np.exp(-(slope * log_odds + intercept)))
    threshold = _balanced_threshold(probability[basis], examples.kind[basis], seed)

    arrays, depth, outputs = _fit(examples, seed)
    arrays["calibration"] = np.array([slope, intercept])
    document: dict[str, Any] = {
        "outputs": outputs,
        "threshold": threshold,
        "depth": depth,
        "prior": "half of the objects in scope, their kinds in equal shares",
        "objects": {
            name: counts(examples.kind[examples.judged & where])
            for name, where in (("real", ~examples.simulated), ("simulated", examples.simulated))
        },
        "cross_validation": _measures(examples, probability, threshold, seed),
        "held_out": None,
        "seed": seed,
        "horizons": list(HORIZONS),
        "trees": TREES,
    }
    gate = LearnedGate.build(arrays, document)
    if held_out is not None:
        found, _ = gate.judge(held_out.features)
        document["held_out"] = _measures(held_out, found, threshold, seed)
        gate = LearnedGate.build(arrays, document)
    return gate


def _weights(examples: Examples) -> np.ndarray:
    """Weight of every row, as the module's head says; mean 1."""
    output = examples.output
    present = np.unique(output)
    weight = np.zeros(len(output))
    for number in present:
        mine = output == number
        total = float(len(present) - 1) if number == OUTPUTS.index(IN_SCOPE) else 1.0
        domains = [mine & examples.simulated, mine & ~examples.simulated]
        shares = (1.0 - REAL_SHARE, REAL_SHARE) if all(d.any() for d in domains) else (1.0, 1.0)
        for domain, share in zip(domains, shares, strict=True):
            if domain.any():
                _, of_row, rows = np.unique(examples.group[domain].astype(str), return_inverse=True,
                                            return_counts=True)  # fmt: skip
                each = 1.0 / rows[of_row]
                weight[domain] = total * share * each / each.sum()
    return weight * len(weight) / weight.sum()


def _boosted(examples: Examples, seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(**TREES, random_state=seed)
    return model.fit(prepared(examples.features), examples.output, sample_weight=_weights(examples))


def _fit(examples: Examples, seed: int) -> tuple[dict[str, np.ndarray], int, list[str]]:
    """Arrays of the trees, their depth, and the outputs in order."""
    model = _boosted(examples, seed)
    n_outputs = model.estimators_.shape[1]
    outputs = [OUTPUTS[number] for number in model.classes_]
    if n_outputs == 1:  # two outputs: one sequence of trees, for the second
        column, outputs_of = np.ones(len(model.estimators_), np.int8), len(outputs)
    else:
        column = np.tile(np.arange(n_outputs, dtype=np.int8), len(model.estimators_))
        outputs_of = n_outputs
    arrays, depth = join_trees(
        (estimator.tree_ for stage in model.estimators_ for estimator in stage),
        lambda tree, _: model.learning_rate * tree.value[:, 0, 0],
    )
    arrays["output"] = column
    arrays["base"] = np.zeros(outputs_of)
    sample = prepared(examples.features[:1])
    said = np.atleast_2d(model.decision_function(sample))
    trees = [[e.predict(sample)[0] for e in stage] for stage in model.estimators_]
    base = said.reshape(-1) - model.learning_rate * np.sum(trees, axis=0)
    arrays["base"][-len(base) :] = base
    return arrays, depth, outputs


def _cross_validate(examples: Examples, seed: int) -> np.ndarray:
    """Log odds of in_scope of every row by trees that saw nothing of its object, mean over repeats, (n,)."""
    from sklearn.model_selection import StratifiedGroupKFold

    _, group = np.unique(examples.group.astype(str), return_inverse=True)
    stratum = 2 * np.unique(examples.kind.astype(str), return_inverse=True)[1] + examples.simulated
    total = np.zeros(len(group))
    for repeat in range(REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            # A kind of fewer objects than folds is missing in some, which is as it must be.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            parts = list(folds.split(group, stratum, group))
        for train, test in parts:
            model = _boosted(examples.take(train), seed + repeat)
            p = model.predict_proba(prepared(examples.features[test]))
            own = int(np.flatnonzero(model.classes_ == OUTPUTS.index(IN_SCOPE))[0])
            total[test] += np.log(p[:, own]) - np.log(np.delete(p, own, axis=1).sum(axis=1))
    return total / REPEATS


def _sides(kind: np.ndarray) -> np.ndarray:
    """Weights that give both sides half, and inside a side every kind the same, (n,)."""
    _, number, size = np.unique(kind.astype(str), return_inverse=True, return_counts=True)
    inside = _inside(kind)
    weight = 1.0 / size[number]
    for side in (inside, ~inside):
        weight[side] *= 0.5 / max(weight[side].sum(), 1e-12)
    return weight


def _inside(kind: np.ndarray) -> np.ndarray:
    return np.array([KIND_GATES[k] == IN_SCOPE for k in kind], bool)


def _platt(log_odds: np.ndarray, kind: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the likeliest sigmoid(slope x + intercept), both sides weighing the same."""
    from sklearn.linear_model import LogisticRegression

    weight = _sides(kind) * len(kind)
    model = LogisticRegression(C=1e6).fit(log_odds[:, None], _inside(kind), sample_weight=weight)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _balanced_threshold(probability: np.ndarray, kind: np.ndarray, seed: int) -> float:
    """Threshold of the lowest cost (weights of :func:`_sides`), the median over resampled objects."""
    grid = np.round(np.arange(0.02, 0.981, 0.01), 2)
    inside, rng = _inside(kind), np.random.default_rng(seed)
    low = probability[:, None] < grid  # (n, thresholds)
    wrong = np.where(inside[:, None], low, ~low)
    best = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(kind), len(kind))
        if len(set(inside[drawn].tolist())) == 2:
            best.append(float(grid[np.argmin(_sides(kind[drawn]) @ wrong[drawn])]))
    return round(float(np.median(best)), 2)


def _measures(examples: Examples, probability: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    """AUC, calibration, and how many of each kind are let through; of real and of simulated objects."""
    return {
        name: _of_domain(examples.kind[use], probability[use], threshold, seed)
        for name, of_domain in (("real", ~examples.simulated), ("simulated", examples.simulated))
        if (use := of_domain & examples.judged & ~examples.moving).any()
    }


def _of_domain(kind: np.ndarray, probability: np.ndarray, threshold: float, seed: int) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    inside = _inside(kind)
    passed: dict[str, Any] = {}
    for name, n in counts(kind).items():
        k = int((probability[kind == name] >= threshold).sum())
        passed[name] = {"objects": n, "passed": k, "interval_95": [round(q, 3) for q in interval(k, n)]}
    out: dict[str, Any] = {"passed": passed}
    if inside.any() and not inside.all():
        rng = np.random.default_rng(seed)
        draws = [rng.integers(0, len(kind), len(kind)) for _ in range(DRAWS)]
        aucs = [roc_auc_score(inside[d], probability[d]) for d in draws if 0 < inside[d].sum() < len(d)]
        weight = _sides(kind)
        out |= {
            "auc": round(float(roc_auc_score(inside, probability)), 4),
            "auc_interval_95": [round(float(q), 4) for q in np.quantile(aucs, [0.025, 0.975])],
            "brier": round(float((weight * (probability - inside) ** 2).sum()), 4),
            "ece": round(_calibration_error(probability, inside, weight), 4),
        }
    return out


def _calibration_error(probability: np.ndarray, inside: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean distance between the probability of a tenth and the share in scope there."""
    tenth = np.minimum((probability * 10).astype(np.int64), 9)
    return float(np.abs(np.bincount(tenth, weight * (probability - inside))).sum())
