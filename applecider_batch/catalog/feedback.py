"""``candidates label``: labels come back, and the list is ranked again.

A logistic combiner of the scores, fitted to the labelled episodes (features standardised over all candidates,
a missing one at its mean), with a Gaussian prior on the weights::

    p(yes) = 1 / (1 + exp(-(b + w . x)))        loss = -log likelihood + |w - w0|^2 / 2

The prior's mean w0 is 1 for the logarithm of the ranking's own score and 0 for the rest: a handful of labels
bends the ranking of docs/candidates.md, and does not throw it away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.candidate_files import write_candidates
from applecider_batch.catalog.candidates import FindOptions, Key, Search
from applecider_batch.catalog.columns import floats
from applecider_batch.catalog.ranking import score_rows
from applecider_batch.catalog.table_files import check_ending, read_csv_text
from applecider_batch.errors import UserError

YES = ("yes", "y", "true", "1")
NO = ("no", "n", "false", "0")
UNSURE = ("unsure", "?", "")
_COLUMNS = (
    "prob_sni", "prob_snii", "prob_cv", "prob_agn", "prob_tde", "entropy", "modality_jsd", "anomaly_energy",
    "anomaly_mcif", "anomaly_iforest", "anomaly_knn", "anomaly_consensus", "drb_median", "rb_max",
    "sgscore1", "distpsnr1", "frac_ss",
)  # fmt: skip
#: Names of the features, in order.
FEATURES = ("log_score", *_COLUMNS, "log_n_det", "abs_galactic_b")
_READ = (*_COLUMNS, "galactic_b")
_STEPS = 100


def read_labels(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[Key, str]:
    """Labels by (objectId, episode): ``yes``, ``no`` or ``unsure``.

    Parameters
    ----------
    url : str
        CSV with the columns ``objectId``, ``label`` and, where an object has several, ``episode`` (else 1);
        other columns are not read.

    Raises
    ------
    UserError
        If a column is missing, a label is none of the words, or an episode has two different labels.
    """
    table = read_csv_text(url, storage_options)
    if missing := [name for name in ("objectId", "label") if name not in table.column_names]:
        raise UserError(
            f"The labels '{url}' lack the column {' and '.join(missing)}; they have "
            f"{', '.join(table.column_names)}.",
            hint="Needed are objectId, label and, for objects with several, episode.",
        )
    names, words = table.column("objectId").to_pylist(), table.column("label").to_pylist()
    episodes = table.column("episode").to_pylist() if "episode" in table.column_names else [None] * len(names)
    labels: dict[Key, str] = {}
    for line, (name, episode, word) in enumerate(zip(names, episodes, words, strict=True), 2):
        text = (word or "").strip().lower()
        said = next((w for w, words in (("yes", YES), ("no", NO), ("unsure", UNSURE)) if text in words), None)
        if said is None or not name or not (episode or "1").isdigit():
            raise UserError(
                f"Line {line} of the labels '{url}' says objectId '{name}', episode '{episode}', label "
                f"'{word}'; a label is yes, no or unsure, an episode a number."
            )
        key = (name, int(episode or 1))
        if labels.get(key, said) != said:
            raise UserError(
                f"The labels '{url}' call {name}, episode {key[1]}, both {labels[key]} and {said}."
            )
        labels[key] = said
    return labels


def features(table: pa.Table) -> np.ndarray:
    """The combiner's inputs before standardising, float64, shape (n, len(FEATURES)); NaN where null."""
    log_score = np.log(np.maximum(score_rows(table).total, 1e-6))
    with np.errstate(invalid="ignore"):
        n_det = np.log(np.maximum(floats(table, "n_det"), 1.0))
    columns = [log_score, *(floats(table, name) for name in _COLUMNS), n_det]
    return np.stack([*columns, np.abs(floats(table, "galactic_b"))], axis=1)


def fit_logistic(x: np.ndarray, y: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and intercept that minimise the loss of this module, by Newton's method.

    Parameters
    ----------
    x : ndarray of float64, shape (n, d)
        Standardised.
    y : ndarray of bool, shape (n,)
        Holds both values.
    prior : ndarray of float64, shape (d,)
        Mean of the weights' prior; their variance is 1, the intercept is free.
    """
    design = np.column_stack([x, np.ones(len(x))])
    mean = np.append(prior, 0.0)
    penalty = np.append(np.ones(len(prior)), 0.0)

    def loss(w: np.ndarray) -> float:
        z = design @ w
        return float(np.logaddexp(0.0, np.where(y, -z, z)).sum() + (penalty * (w - mean) ** 2).sum() / 2)

    w = mean.copy()
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ w, -500, 500)))
        gradient = design.T @ (p - y) + penalty * (w - mean)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + np.diag(penalty + 1e-9)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(w - size * step) > loss(w) and size > 1e-6:
            size /= 2
        w = w - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return w[:-1], float(w[-1])


def label_candidates(
    catalog_url: str,
    labels_url: str,
    out: str,
    options: FindOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Rank the candidates of a catalogue again, by what labels say about some of them.

    Parameters
    ----------
    catalog_url, out, options
        As :func:`applecider_batch.catalog.candidates.find_candidates`.
    labels_url : str
        As :func:`read_labels`.

    Returns
    -------
    dict
        Keys as ``candidates label`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If the labels cannot be read, none is of a candidate, or all are yes or all no.
    """
    check_ending(out)
    search = Search(catalog_url, options or FindOptions(), storage_options)
    labels = read_labels(labels_url, storage_options)
    x, y, mean, spread, unmatched = _training(search, labels)
    counts = Counter(labels.values())
    used = {"yes": int(y.sum()), "no": int((~y).sum())}
    if not used["yes"] or not used["no"]:
        only = "there is none" if not len(y) else f"all {len(y)} are {'yes' if used['yes'] else 'no'}"
        raise UserError(
            f"To rank again, labels of both kinds are needed on candidates of '{catalog_url}', and {only}.",
            hint="Label some more and run the command again.",
        )
    prior = np.zeros(len(FEATURES))
    prior[0] = 1.0
    weights, intercept = fit_logistic(_standard(x, mean, spread), y, prior)

    def learned(rows: pa.Table) -> np.ndarray:
        z = _standard(features(rows), mean, spread) @ weights + intercept
        return 1.0 / (1.0 + np.exp(-np.clip(z, -500, 500)))

    table, found = search.run(learned, _READ)
    said = [
        {"yes": "yes", "no": "no"}.get(labels.get(key, ""))
        for key in zip(table.column("objectId").to_pylist(), table.column("episode").to_pylist(), strict=True)
    ]
    at = table.schema.get_field_index("label")
    table = table.set_column(at, table.schema.field(at), pa.array(said, pa.string()))
    answer = {
        **found,
        "labels": len(labels),
        "labels_used": used,
        "labels_unsure": counts["unsure"],
        "labels_unmatched": unmatched,
        "weights": {name: round(float(w), 4) for name, w in zip(FEATURES, weights, strict=True)},
    }
    write_candidates(table, out, answer, storage_options)
    return {"out": out, **answer}


def _training(
    search: Search, labels: Mapping[Key, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Features and answers of the labelled candidates; mean and spread over all; labels of no candidate."""
    count, total, square = (np.zeros(len(FEATURES)) for _ in range(3))
    x: list[np.ndarray] = []
    y: list[bool] = []
    seen = 0
    for rows in search.episodes(_READ):
        rows = rows.filter(pa.array(search.wanted(rows)[0]))
        values = features(rows)
        known = np.isfinite(values)
        count += known.sum(axis=0)
        total += np.where(known, values, 0.0).sum(axis=0)
        square += (np.where(known, values, 0.0) ** 2).sum(axis=0)
        keys = zip(rows.column("objectId").to_pylist(), rows.column("episode").to_pylist(), strict=True)
        for row, key in enumerate(keys):
            said = labels.get(key)
            seen += said is not None
            if said in ("yes", "no"):
                x.append(values[row])
                y.append(said == "yes")
    mean = total / np.maximum(count, 1.0)
    spread = np.sqrt(np.maximum(square / np.maximum(count, 1.0) - mean**2, 0.0))
    stacked = np.stack(x) if x else np.empty((0, len(FEATURES)))
    return stacked, np.array(y, bool), mean, np.where(spread > 1e-9, spread, np.inf), len(labels) - seen


def _standard(values: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Standardised features; one that is missing, or the same everywhere, is 0."""
    return np.nan_to_num((values - mean) / spread)
