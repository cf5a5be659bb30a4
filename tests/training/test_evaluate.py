"""Evaluation: what is judged, what is left out, and what the ablations change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from applecider_batch.archive.read import Archive
from applecider_batch.cli.main import run
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.fusion import log_softmax
from applecider_batch.models.importing import put_network
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.schema import load_answers
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES
from applecider_batch.training.ablations import availability_figure, shuffled_sky
from applecider_batch.training.answers import Answers
from applecider_batch.training.calibrate import calibration_document
from applecider_batch.training.dataset import load_dataset
from applecider_batch.training.labels import read_labels
from applecider_batch.training.metrics import report
from applecider_batch.training.probe import probe_sentences, source_probe
from applecider_batch.training.subclasses import NUCLEAR, nuclear_report
from tests.engine.conftest import SMALL
from tests.training.conftest import Survey


def test_what_is_judged_and_left_out(
    survey: Survey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out = str(tmp_path / "set"), tmp_path / "out"
    init_model_set(models, seed=1, configs=SMALL)
    truth = pq.read_table(survey.labels).to_pylist()
    known = [r["objectId"] for r in truth if r["class"]][:9]
    for entry in ModelSet.load(models).defaults.values():
        card = replace(entry.card, weights="", weights_sha256="")
        state, ids = entry.state_dict(), known if entry.modality == "image" else []
        put_network(Store(models), card, state, "paper", default=None, replace=True, training_ids=ids)
    where = ["--archive", survey.archive, "--labels", survey.labels, "--models", models, "--out", str(out)]
    options = ["--part", "all", "--horizons", "10,full", "--alert-days", "20", "--draws", "5"]
    assert run(["evaluate", "models", *where, *options, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == set(load_answers()["evaluate models"])

    alerts = Archive.open(survey.archive).read_alerts(0, 1 << 64, ["objectId", "jd", "rb", "isdiffpos"])
    t0 = {r["objectId"]: r["t0"] for r in truth if r["class"] and r["t0"] is not None}
    judged = set(t0) - set(known)
    assert document["left_out"] == {"in_training_set": len(known), "training_sets_known": True}
    assert document["results"]["fused"]["full"]["objects"] == len(judged)
    assert document["simulated_objects"] == len(judged)
    young = [r for r in alerts.to_pylist() if r["objectId"] in judged and r["jd"] <= t0[r["objectId"]] + 20]
    assert 0 < document["per_alert"]["alerts"] <= len(young)
    assert document["per_alert"]["results"]["fused"]["objects"] == len(judged)
    found = document["results"]["fused"]["10d"]
    assert sum(p["objects"] for p in found["patterns"].values()) == found["objects"]
    assert np.array(found["confusion_normalised"]).sum(1) == pytest.approx(1, abs=1e-9)
    # Untrained networks of random weights see the position as any other number: something must change.
    shuffled = document["sky_shuffled"]["image"]["full"]["measures"]["nll"]
    assert shuffled != document["results"]["image"]["full"]["measures"]["nll"]
    text = (out / "tables.md").read_text()
    assert "The weights are untrained" in text
    assert f"{found['measures']['accuracy']:.3f}" in text
    for figure in ("0.88 ± 0.004", "0.59", "| AUC nuclear | 0.99 |", "18,245", "7,410", "31,065"):
        assert figure in text
    assert (out / "fused-10d-reliability.png").exists()

    assert run(["evaluate", "models", *where, *options, "--include-trained", "--alert-days", "0"]) == 0
    again = json.loads((out / "evaluation.json").read_text())
    assert again["results"]["fused"]["full"]["objects"] == len(t0)
    assert "per_alert" not in again


def test_positions_are_exchanged_among_objects_and_nothing_else(survey: Survey) -> None:
    profile = get_profile("paper")
    dataset = load_dataset(
        Archive.open(survey.archive), read_labels(survey.labels), profile, modalities=("image",)
    )
    other = shuffled_sky(dataset, profile.metadata_names, 3)
    sky = [profile.metadata_names.index(n) for n in ("ra", "dec")]
    before, after = dataset.prepared.image.metadata, other.prepared.image.metadata
    rest = [i for i in range(before.shape[1]) if i not in sky]
    assert np.array_equal(before[:, rest], after[:, rest], equal_nan=True)
    items = dataset.items("image")
    places = [{tuple(after[i, sky].tolist()) for i in row[row >= 0]} for row in items]
    assert all(len(p) <= 1 for p in places)  # all packets of an object at one place
    given = {tuple(p) for p in before[:, sky].tolist()}
    assert set().union(*places) <= given
    assert len(set().union(*places)) == (items >= 0).any(1).sum()
    with_image = [(row[row >= 0][0], new) for row, new in zip(items, places, strict=True) if new]
    pairs = [(tuple(before[item, sky].tolist()), new) for item, new in with_image]
    moved = [old not in new for old, new in pairs]
    assert np.mean(moved) > 0.8


def _judge(dataset, log_prob, members):  # type: ignore[no-untyped-def]
    group = np.arange(len(members))
    return report(dataset.label[members], np.exp(log_prob[members]), CLASSES, group, draws=0)


def test_what_availability_and_instrument_give_away() -> None:
    label = np.tile(np.arange(5), 20)
    dataset = SimpleNamespace(
        label=label,
        classes=CLASSES,
        members=lambda part: np.arange(60),  # the first 60 train
    )
    judged = np.arange(60, 100)
    none = np.array([""] * 100, object)
    telling = np.array([f"spectrograph {c}" for c in label], object)
    given = availability_figure(dataset, np.full(100, 7), telling, judged, _judge)
    assert given["measures"]["macro_auc"] == 1.0
    assert (
        availability_figure(dataset, np.where(label == 4, 5, 1), none, judged, _judge)["measures"]["auc TDE"]
        == 1.0
    )
    blind = availability_figure(dataset, np.full(100, 1), none, judged, _judge)
    assert blind["measures"]["macro_auc"] == 0.5
    assert "why_not" in availability_figure(dataset, np.full(100, 1), none, np.arange(100), _judge)


def test_nuclear_is_agn_and_tde() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 300)
    log_prob = log_softmax(rng.normal(size=(300, 5)) + 2 * np.eye(5)[label])
    log_prob[7] = np.nan
    dataset = SimpleNamespace(label=label, group=np.arange(300))
    found = nuclear_report(dataset, log_prob, np.arange(300), draws=0, seed=0)
    kept = np.delete(np.arange(300), 7)
    want = roc_auc_score(label[kept] >= 3, np.exp(log_prob[kept, 3:]).sum(1))
    assert found["measures"]["auc nuclear"] == pytest.approx(want)
    assert list(found["counts"]) == list(NUCLEAR)
    assert found["rows"] == 299


def test_temperatures_by_pattern_with_back_off() -> None:
    """Light curves of objects with stamps are three times too sure, those of objects with spectra are not."""
    rng = np.random.default_rng(1)
    n = 6000
    logits = rng.normal(0, 2, (n, 5))
    prob = np.exp(log_softmax(logits))
    label = (prob.cumsum(1) > rng.random((n, 1))).argmax(1)
    stamps, spectra = np.arange(n) < n // 2, np.arange(n) >= n - 20
    logits[stamps] *= 3
    flat = rng.normal(0, 1e-3, (n, 5))
    answers = Answers(
        {
            "photometry": logits[:, None],
            "image": np.where(stamps[:, None], flat, np.nan)[:, None],
            "spectra": np.where(spectra[:, None], flat, np.nan)[:, None],
        }
    )
    dataset = SimpleNamespace(label=label, classes=CLASSES, horizons=(None,))
    document = calibration_document(dataset, answers, np.arange(n))
    found = document["temperature"]["photometry"]
    assert found["photometry+image"] == pytest.approx(3.0, rel=0.1)
    assert found["photometry"] == pytest.approx(1.0, rel=0.1)
    assert set(found) == {"default", "photometry", "photometry+image"}  # 20 objects are too few for their own
    assert document["calibrated"]
    few = np.concatenate([np.flatnonzero(label < 4), np.flatnonzero(label == 4)[:49]])
    assert not calibration_document(dataset, answers, few)["calibrated"]


def test_the_source_probe_voids_what_gives_its_source_away() -> None:
    """Class 0: two sources that differ in a number; class 1: two that do not; class 2: one; class 3: none."""
    rng = np.random.default_rng(4)
    label = np.repeat([0, 1, 2, 3], 60)
    source = np.where(np.arange(240) % 2, "one", "two").astype(object)
    source[label == 2], source[label == 3] = "one", ""
    metadata = rng.normal(size=(240, 4))
    metadata[(label == 0) & (source == "one"), 2] += 3
    items = {
        "image": np.arange(240)[:, None],
        "photometry": np.full((240, 1), -1),
        "spectra": np.full((240, 1), -1),
    }
    dataset = SimpleNamespace(
        label=label,
        source=source,
        classes=CLASSES,
        items=items.get,
        prepared=SimpleNamespace(image=SimpleNamespace(metadata=metadata)),
    )
    found = source_probe(dataset)
    assert list(found) == ["image"]
    assert found["image"]["SN I"]["void"]
    assert found["image"]["SN I"]["auc"] > 0.9
    assert not found["image"]["SN II"]["void"]
    assert [found["image"][c]["why_not"] for c in CLASSES[2:]] == [
        "60 of 60 from one source",
        "the label table names no source",
        "no objects",
    ]
    void, clean, unknown = probe_sentences(found)
    assert void.startswith("VOID: within SN I the image")
    assert "within SN II by image" in clean
    assert "CV (60 of 60 from one source); AGN (the label table names no source)" in unknown
