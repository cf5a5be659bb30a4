"""From a trained set to its anomaly reference, a run with scores, and the evaluation, by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.read import read_catalog
from applecider_batch.cli.main import run
from applecider_batch.inference.anomaly_file import load_reference
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.schema import load_answers
from applecider_batch.training.anomaly_evaluate import auroc_interval, detection_measures
from applecider_batch.training.metrics import bootstrap, roc_auc

N, N_OTHER = 240, 30
SPLIT = ["--validation", "0.45", "--test", "0.2"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Fast faders (SN I), slow ones (SN II), and brightening ones of another type."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(5)
    rows, labels = [], {"objectId": [], "type": []}
    for i in range(N + N_OTHER):
        kind = "SLSN-I" if i >= N else ("SN Ia" if i % 2 else "SN II")
        slope = {"SLSN-I": -0.06, "SN Ia": 0.08, "SN II": 0.005}[kind]
        t = np.sort(rng.uniform(0, 60, 14))
        mag = 18 + slope * t + rng.normal(0, 0.03, 14)
        name = f"ZTF20aaaa{i:03d}"
        labels["objectId"].append(name)
        labels["type"].append(kind)
        for time, m in zip(t, mag, strict=True):
            rows.append((name, 59000 + 3 * i + time, "gr"[rng.integers(2)], m, 0.05))
    names = ("objectId", "mjd", "band", "mag", "mag_err")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), folder / "curves.parquet")
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    ingest([], str(folder / "archive"), photometry=[str(folder / "curves.parquet")])
    return str(folder / "archive"), str(folder / "labels.parquet")


@pytest.fixture(scope="module")
def trained(survey: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a network of a few epochs."""
    folder = tmp_path_factory.mktemp("trained")
    common = ["--archive", survey[0], "--labels", survey[1], "--models", str(folder / "set"), *SPLIT]
    train = ["train", "photometry", *common, "--out", str(folder / "out"), "--preset", "compact"]
    assert run([*train, "--epochs", "5", "--quiet"]) == 0
    return folder / "set"


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON answer of a command that succeeds."""
    capsys.readouterr()
    assert run([*arguments, "--format", "json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_fit_classify_build(
    survey: tuple[str, str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--archive", survey[0], "--models", str(trained)]
    fit = ["models", "fit-anomaly", *common, "--labels", survey[1], *SPLIT, "--horizons", "10,full"]
    made = ask(capsys, *fit)
    assert set(made) == set(load_answers()["models fit-anomaly"])
    assert ask(capsys, *fit) == made  # the same bytes, the same digests
    loaded = ModelSet.load(trained)
    assert loaded.anomaly_ref_id == made["anomaly_ref_id"]
    reference = load_reference(loaded)
    assert reference is not None
    # Half of 120 of each class validate; OTHER takes no part.
    assert len(reference.mask) == made["objects"] == 2 * round(0.45 * N / 2)
    assert reference.document["counts"]["validation"]["SN I"] == made["objects"] / 2
    assert {group["group"].split(", ")[2] for group in made["groups"]} == {"10 d", "full"}
    assert (made["trained_on_left_out"], made["training_known"]) == (0, True)
    # Another split: what trained the network stays out of the reference.
    other = ask(capsys, *fit, "--split-seed", "1")
    assert other["trained_on_left_out"] > 10
    assert other["trained_on_left_out"] + other["objects"] == made["objects"]
    assert ask(capsys, *fit) == made

    classify = ["classify", *common, "--executor", "serial", "--horizons", "10,full", "--quiet"]
    result = ask(capsys, *classify, "--run", str(tmp_path / "run"), "--objects-per-shard", "100")
    assert result["anomaly_ref_id"] == made["anomaly_ref_id"]
    built = ask(capsys, "catalog", "build", str(tmp_path / "run"), "--out", str(tmp_path / "catalog"))
    assert set(built["anomaly_tests"]) <= {"10", "full"}
    assert ask(capsys, "catalog", "verify", str(tmp_path / "catalog"))["ok"]
    rows = read_catalog(str(tmp_path / "catalog"), horizon="full").to_dicts()
    assert {row["anomaly_ref_id"] for row in rows} == {made["anomaly_ref_id"]}
    p = {row["objectId"]: row["anomaly_pvalue"] for row in rows}
    for i in range(N + N_OTHER):
        assert 0 < p[f"ZTF20aaaa{i:03d}"] <= 1
    known, other = (
        np.median([p[f"ZTF20aaaa{i:03d}"] for i in span]) for span in (range(N), range(N, N + N_OTHER))
    )
    assert other < known  # curves that rise, where all known ones fade
    # Without the reference the columns are null, and the command says so.
    update_files(trained, calibration={**ModelSet.load(trained).calibration, "note": "changed"})
    assert ModelSet.load(trained).anomaly_ref_id is None
    assert run([*classify, "--run", str(tmp_path / "bare")]) == 0
    assert "no anomaly reference" in capsys.readouterr().err
    assert run(["catalog", "build", str(tmp_path / "bare"), "--out", str(tmp_path / "bare_catalog")]) == 0
    bare = read_catalog(str(tmp_path / "bare_catalog"))
    assert bare["anomaly_pvalue"].null_count() == bare["anomaly_energy"].null_count() == len(bare)
    assert bare["anomaly_ref_id"].null_count() == len(bare)


def test_evaluate(
    survey: tuple[str, str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--archive", survey[0], "--models", str(trained), "--labels", survey[1], *SPLIT]
    ask(capsys, "models", "fit-anomaly", *common)
    evaluate = ["evaluate", "anomaly", *common, "--out", str(tmp_path), "--leave-out", "OTHER", "--quiet"]
    found = ask(capsys, *evaluate, "--seeds", "1", "--epochs", "3")
    assert set(found) == set(load_answers()["evaluate anomaly"])
    assert found == json.loads((tmp_path / "anomaly.json").read_text())
    full = found["left_out"]["OTHER"]["full"]
    n_test = 2 * round(0.2 * N / 2)
    assert (full["anomalies"], full["crowd"]) == (N_OTHER, n_test)
    for measures in full["methods"].values():
        low, high = measures["auroc"]["interval"]
        assert 0 <= low <= measures["auroc"]["mean"] <= high <= 1
        assert measures["recall@100"]["mean"] == 1.0  # fewer than 100 in all
    for rates in (found["set_flags"], found["flags"][0]):
        level = rates["full"]["levels"][0]
        assert level["n"] == n_test
        assert level["low"] <= level["rate"] <= level["high"]
        assert sum(part["n"] for part in rates["full"]["by_detections"].values()) == n_test
    assert run([*evaluate, "--leave-out", "SN III"]) != 0
    assert "SN III" in capsys.readouterr().err


def test_detection_measures_of_a_small_ranking() -> None:
    anomaly = np.zeros(1000, bool)
    anomaly[[0, 1, 500]] = True
    score = -np.arange(1000.0)
    score[1] = score[2]  # a tie: the crowd first
    found = detection_measures(anomaly, score)
    assert found["recall@40"] == pytest.approx(2 / 3)
    assert found["recall@2000"] == 1.0
    # 1 % of the 997: ten of the crowd lie above the threshold, the first ten after the anomalies
    assert found["recall@1%"] == pytest.approx(2 / 3)
    from sklearn.metrics import average_precision_score, roc_auc_score

    assert found["auroc"] == pytest.approx(roc_auc_score(anomaly, score))
    assert found["auprc"] == pytest.approx(average_precision_score(anomaly, score))


def test_interval_of_the_mean_auroc_is_that_of_resampled_objects() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(300) < 0.2
    shared = rng.normal(size=300) + positive
    scores = [np.round(shared + rng.normal(size=300), 1) for _ in range(3)]  # with ties

    def mean_auroc(rows: np.ndarray) -> dict[str, float]:
        return {"auroc": float(np.mean([roc_auc(positive[rows], s[rows]) for s in scores]))}

    wanted = bootstrap(np.arange(300), mean_auroc, draws=1000)["auroc"]
    assert auroc_interval(positive, scores) == pytest.approx(wanted, abs=0.015)
