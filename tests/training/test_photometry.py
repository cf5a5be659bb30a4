"""From an archive and labels to a trained set, its evaluation and its calibration, by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.cli.main import run
from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import SUMMARY_NAMES
from applecider_batch.inference.batches import pad_sequences
from applecider_batch.inference.predictor import Predictor
from applecider_batch.models.model_set import ModelSet
from applecider_batch.models.set_checks import verify_model_set
from applecider_batch.schema import load_answers
from applecider_batch.training.calibrate import fit_temperature
from applecider_batch.training.labels import label_table, read_labels
from applecider_batch.training.photometry import load_curves
from applecider_batch.training.splits import SplitRule
from applecider_batch.training.trainer import _Loop

N = 60


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Archive and label table of fast faders (SN I) and slow ones (SN II)."""
    folder = tmp_path_factory.mktemp("survey")
    rng = np.random.default_rng(5)
    rows = []
    for i in range(N):
        t = np.sort(rng.uniform(0, 60, 14))
        mag = 18 + (0.08 if i % 2 else 0.005) * t + rng.normal(0, 0.03, 14)
        for time, m in zip(t, mag, strict=True):
            rows.append((f"ZTF20aaaaa{i:02d}", 59000 + 3 * i + time, "gr"[rng.integers(2)], m, 0.05))
    names = ("objectId", "mjd", "band", "mag", "mag_err")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), folder / "curves.parquet")
    labels = {
        "objectId": [f"ZTF20aaaaa{i:02d}" for i in range(N)],
        "class5": ["SN I" if i % 2 else "SN II" for i in range(N)],
    }
    pq.write_table(pa.table(labels), folder / "labels.parquet")
    ingest([], str(folder / "archive"), photometry=[str(folder / "curves.parquet")])
    return str(folder / "archive"), str(folder / "labels.parquet")


def test_train_evaluate_calibrate(
    survey: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--archive", survey[0], "--labels", survey[1], "--models", str(tmp_path / "set")]
    train = ["train", "photometry", *common, "--out", str(tmp_path / "out"), "--preset", "compact"]
    assert run([*train, "--epochs", "12", "--pretrain-epochs", "1", "--quiet", "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert sum(sum(c.values()) for c in summary["data"]["counts"].values()) == N
    split = pq.read_table(tmp_path / "out/split.parquet").to_pydict()
    assert len(set(split["objectId"])) == N
    card = ModelSet.load(tmp_path / "set").defaults["photometry"].card
    assert card.trained
    assert card.metrics["data"]["split_digest"] == summary["data"]["split_digest"]
    assert verify_model_set(tmp_path / "set")["verified"]

    classify = ["classify", *common[:2], *common[4:], "--run", str(tmp_path / "run"), "--executor", "serial"]
    assert run([*classify, "--horizons", "full", "--quiet", "--format", "json"]) == 0
    capsys.readouterr()
    rows = [r for f in (tmp_path / "run/data").iterdir() for r in pq.read_table(f).to_pylist()]
    side = dict(zip(split["objectId"], split["part"], strict=True))
    assert {r["objectId"]: r["in_training_set"] for r in rows} == {o: p == "train" for o, p in side.items()}

    evaluate = ["evaluate", "models", *common, "--out", str(tmp_path / "judged"), "--draws", "20"]
    assert run([*evaluate, "--horizons", "5,full", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)["results"]["photometry"]
    full = result["full"]["measures"]["auc SN I/SN II"]
    assert full > 0.9  # the fading rate is all there is to learn
    low, high = result["full"]["intervals"]["auc SN I/SN II"]
    assert low <= full <= high
    assert (tmp_path / "judged/photometry-full-confusion.png").stat().st_size > 1000

    assert run(["calibrate", *common, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == set(load_answers()["calibrate"])
    assert not document["calibrated"]  # fewer than 50 of a class
    assert document["check"]["photometry"]["nll_after"] <= document["check"]["photometry"]["nll_before"]
    assert ModelSet.load(tmp_path / "set").calibration["temperature"] == document["temperature"]


def test_temperature_of_overconfident_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 5))
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = (prob.cumsum(1) > rng.random((20000, 1))).argmax(1)
    assert fit_temperature(3 * logits, label) == pytest.approx(3.0, rel=0.03)


def test_labels() -> None:
    table = pa.table(
        {
            "objectId": ["a", "b", "c", "d", "e"],
            "type": ["SN Ia", "SLSN-I", "II-pec", None, "QSO"],
            "object_key": ["k", "k", None, "x", "y"],
            "conflict_class5": [False, False, False, False, True],
        }
    )
    labels = label_table(table)
    assert labels.object_id.tolist() == ["a", "c"]
    assert [labels.classes[i] for i in labels.label] == ["SN I", "SN II"]
    assert labels.group.tolist() == ["k", "c"]
    assert labels.left_out == {"no class": 1, "other class": 1, "sources disagree": 1}
    with pytest.raises(UserError, match="two classes"):
        label_table(pa.table({"objectId": ["a", "a"], "class5": ["CV", "AGN"]}))


def test_the_network_with_summary_numbers_is_trained_resumed_and_used(
    survey: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ["--archive", survey[0], "--models", str(tmp_path / "set")]
    recipe = ["--labels", survey[1], "--network", "tabular_ensemble", "--preset", "compact"]

    def train(out: str) -> dict:
        asked = [*common, *recipe, "--out", str(tmp_path / out), "--epochs", "3"]
        assert run(["train", "photometry", *asked, "--quiet", "--format", "json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    whole = train("whole")
    # The process ends after two epochs, at its worst: their variants are in memory only.
    save, saved = _Loop._save, []

    def save_twice(loop: _Loop) -> None:
        save(loop)
        saved.append(loop.epoch)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "_save", save_twice)
        with pytest.raises(AssertionError):
            train("killed")
    capsys.readouterr()
    resumed = train("killed")
    assert resumed["weights_sha256"] == whole["weights_sha256"]

    card = ModelSet.load(tmp_path / "set").defaults["photometry"].card
    assert card.feature_names[7:] == SUMMARY_NAMES
    classify = ["classify", *common, "--run", str(tmp_path / "run"), "--horizons", "5,full", "-q"]
    assert run([*classify, "--executor", "serial", "--format", "json"]) == 0
    rows = pa.concat_tables([pq.read_table(p) for p in sorted((tmp_path / "run").rglob("*.parquet"))])
    assert rows.num_rows == 2 * N
    given = rows.select(["objectId", "horizon_days", "prob_phot_snii"]).to_pylist()

    # By hand: the same numbers into the same network.
    dataset, _ = load_curves(survey[0], read_labels(survey[1]), SplitRule(), summary=True)
    predictor = Predictor(ModelSet.load(tmp_path / "set").defaults["photometry"])
    photometry = dataset.prepared.photometry
    assert photometry.curve_summary is not None
    items, column = dataset.items("photometry"), dataset.column(None)
    for number, name in enumerate(dataset.object_id[:5]):
        item = items[number, column]
        first, last = photometry.offsets[item], photometry.offsets[item + 1]
        batch = pad_sequences(photometry.values, photometry.offsets, np.array([item]), int(last - first))
        batch["summary"] = photometry.curve_summary.values[[item]]
        logits = predictor.run(batch)["logits"][0]
        expected = np.exp(logits - np.logaddexp.reduce(logits))[1]
        found = [r["prob_phot_snii"] for r in given if r["objectId"] == name and r["horizon_days"] is None]
        assert found == [pytest.approx(expected, abs=1e-5)]
