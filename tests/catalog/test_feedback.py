"""Labels come back: the solver against scikit-learn, the new order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.feedback import fit_logistic, label_candidates, read_labels
from applecider_batch.errors import UserError
from applecider_batch.schema import load_answers
from tests.catalog.synthetic import object_names, write_run

OPTIONS = FindOptions(include_unchecked=True)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("feedback")
    run = write_run(folder / "run", object_names(150))
    build_catalog(str(run), str(folder / "cat"))
    return str(folder / "cat")


def _rows(catalogue: str, folder: Path) -> list[dict[str, Any]]:
    find_candidates(catalogue, str(folder / "found.parquet"), OPTIONS)
    return read_candidates(str(folder / "found.parquet"))[0].to_pylist()


def test_solver_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(size=60) > 0.3
    weights, intercept = fit_logistic(x, y, np.zeros(4))
    fitted = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)
    assert weights == pytest.approx(fitted.coef_[0], abs=1e-5)
    assert intercept == pytest.approx(fitted.intercept_[0], abs=1e-5)


def test_the_solver_ends_on_separable_labels_and_at_its_prior() -> None:
    x = np.array([[-1.0], [1.0]])
    weights, intercept = fit_logistic(x, np.array([False, True]), np.array([3.0]))
    assert 3.0 < weights[0] < 4.0
    assert abs(intercept) < 1e-6


def test_what_was_liked_goes_up(catalogue: str, tmp_path: Path) -> None:
    rows = _rows(catalogue, tmp_path)
    picked = rows[::3]
    liked = {(r["objectId"], r["episode"]): "yes" if r["class_top1"] == "AGN" else "no" for r in picked}
    lines = ["rank,objectId,episode,label,comment"]
    lines += [f"1,{name},{episode},{word}," for (name, episode), word in liked.items()]
    lines += [f"2,{rows[1]['objectId']},{rows[1]['episode']},unsure,what?", "3,nobody,1,yes,"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    out = str(tmp_path / "again.parquet")
    answer = label_candidates(catalogue, str(tmp_path / "labels.csv"), out, OPTIONS)
    again = read_candidates(out)[0].to_pylist()
    assert set(answer) == set(load_answers()["candidates label"])
    assert sum(answer["labels_used"].values()) == len(liked)
    assert (answer["labels_unsure"], answer["labels_unmatched"]) == (1, 1)
    assert {r["objectId"] for r in again} == {r["objectId"] for r in rows}
    assert {(r["objectId"], r["episode"]): r["label"] for r in again if r["label"]} == liked

    def mean_rank(listed: list[dict[str, Any]]) -> float:
        fresh = [r for r in listed if (r["objectId"], r["episode"]) not in liked]
        return float(np.mean([i for i, r in enumerate(fresh) if r["class_top1"] == "AGN"])) / len(fresh)

    assert mean_rank(rows) > 0.55
    assert mean_rank(again) < 0.35
    probabilities = [r["prob_interesting"] for r in again]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {r["objectId"]: r["score"] for r in rows} == {r["objectId"]: r["score"] for r in again}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objectId,label\n{0},yes\n{1},yes\n", "all 2 are yes"),
        ("objectId,label\n{0},unsure\n", "there is none"),
        ("objectId,label\n{0},maybe\n", "'maybe'; a label is yes, no or unsure"),
        ("objectId,label\n{0},yes\n{0},no\n", "both yes and no"),
        ("object,label\n{0},yes\n", "lack the column objectId"),
        ("objectId,episode,label\n{0},first,yes\n", "an episode a number"),
    ],
)
def test_labels_that_are_refused(catalogue: str, tmp_path: Path, text: str, words: str) -> None:
    names = [r["objectId"] for r in _rows(catalogue, tmp_path)[:2]]
    (tmp_path / "labels.csv").write_text(text.format(*names))
    with pytest.raises(UserError, match=words):
        label_candidates(catalogue, str(tmp_path / "labels.csv"), str(tmp_path / "c.csv"), OPTIONS)


def test_words_of_labels(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("objectId,label\na,Yes\nb,0\nc,\nd,?\n")
    assert list(read_labels(str(tmp_path / "l.csv")).values()) == ["yes", "no", "unsure", "unsure"]
