"""Images: examples are what inference draws, turning changes no meaning, killed and resumed is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.features.cutouts import make_cutouts, radial_distance
from applecider_batch.features.prepared import ImageInputs
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.models.card import ModelCard
from applecider_batch.models.model_set import ModelSet
from applecider_batch.models.set_checks import verify_model_set
from applecider_batch.schema import load_answers
from applecider_batch.storage import Store
from applecider_batch.training import image, stamp_cache
from applecider_batch.training.dataset import Dataset
from applecider_batch.training.image_task import (
    OWN_HISTORY_DAYS,
    ImageAugmentation,
    ImageExamples,
    ImageTask,
    draw,
    image_batch,
    load_report,
    metadata_statistics,
    turned,
)
from applecider_batch.training.labels import read_labels
from applecider_batch.training.losses import expert_focal_loss
from applecider_batch.training.setup import TrainingRequest
from applecider_batch.training.splits import SplitRule
from tests.engine.conftest import SMALL
from tests.training.conftest import Survey, kill_in_training

RULE = SplitRule(validation=0.3, test=0.2)


@pytest.fixture(scope="module")
def loaded(
    survey: Survey, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Archive, Dataset, ImageExamples]:
    """With files of 7 stamps, so that there are several."""
    archive, labels = Archive.open(survey.archive), read_labels(survey.labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stamp_cache, "SHARD", 7)
        store = Store(tmp_path_factory.mktemp("cache"))
        dataset, examples = image.load_images(archive, labels, RULE, store, 100.0)
    return archive, dataset, examples


def test_examples_are_what_inference_draws(loaded: tuple[Archive, Dataset, ImageExamples]) -> None:
    archive, dataset, examples = loaded
    items, prepared = dataset.items("image"), dataset.prepared.image
    seen = 0
    for i in np.flatnonzero(dataset.part < 2):
        mine = np.flatnonzero(examples.object_id == dataset.object_id[i])
        assert set(examples.part[mine].tolist()) <= {int(dataset.part[i])}
        for h in (3.0, 10.0, 30.0):
            item = items[i, dataset.column(h)]
            if item < 0:
                continue
            known = mine[examples.days[mine] <= h]
            last = known[np.argmax(examples.days[known])]
            assert examples.candid[last] == prepared.candid[item]
            assert np.array_equal(examples.metadata[last], prepared.metadata[item])
            seen += 1
    assert seen > 30
    # A packet whose stamps cannot be decoded is no example; every other eligible one is, once.
    assert len(set(examples.candid.tolist())) == len(examples.candid) > seen
    rows = np.array([len(examples.candid) - 1, 0, 8, 7])
    table = archive.read_stamps(0, 1 << 64, examples.candid[rows].tolist())
    made = make_cutouts(table, get_profile("paper"))
    by_candid = dict(zip(table.column("candid").to_pylist(), made, strict=True))
    for row, cutout in zip(rows, examples.stamps.take(rows), strict=True):
        assert np.array_equal(by_candid[examples.candid[row]], cutout)


def test_an_interrupted_cache_is_finished(
    loaded: tuple[Archive, Dataset, ImageExamples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, dataset, _ = loaded
    monkeypatch.setattr(stamp_cache, "SHARD", 7)
    source, profile = dataset.prepared.image, get_profile("paper")
    part = ImageInputs(source.candid[:20], source.hash64[:20], source.metadata[:20], source.row_index)
    whole = stamp_cache.build_cache(tmp_path, archive, part, profile).take(np.arange(20))
    (own,) = tmp_path.iterdir()
    kept = (own / "000000.npy").stat().st_ino
    (own / "usable.npy").unlink()
    (own / "000001.npy").unlink()
    again = stamp_cache.build_cache(tmp_path, archive, part, profile)
    assert np.array_equal(again.take(np.arange(20)), whole)
    assert (own / "000000.npy").stat().st_ino == kept
    assert again.usable.all()


def test_an_epoch_takes_a_few_of_each_object(loaded: tuple[Archive, Dataset, ImageExamples]) -> None:
    examples = loaded[2]
    a = ImageAugmentation(per_object=3, repeat=2)
    rows = draw(examples, a, np.random.default_rng(1))
    assert set(rows.tolist()) <= set(examples.members("train").tolist())
    for name in np.unique(examples.object_id[rows].astype(str)):
        own = rows[examples.object_id[rows] == name]
        have = (examples.object_id[examples.members("train")] == name).sum()
        assert len(own) in (min(have, 3), 2 * min(have, 3))
    assert (draw(examples, a, np.random.default_rng(2)) != rows).any()


def test_places_are_exchanged_and_ages_cut(loaded: tuple[Archive, Dataset, ImageExamples]) -> None:
    """A batch keeps every packet's other metadata, and its places belong to the batch."""
    _, _, examples = loaded
    rows = examples.members("train")
    days = np.linspace(5.0, 90.0, len(examples.candid)).astype(np.float32)
    names = examples.feature_names
    ra, dec, age = (names.index(name) for name in ("ra", "dec", "age"))
    aged = examples.metadata.copy()
    aged[:, age] = days
    examples = replace(examples, metadata=aged)
    card = ModelCard("", "paper", "", "image", feature_names=names)
    a = ImageAugmentation(turn=False, hide=0.0, cut=0.5)
    given, true = image_batch(examples, card, a, rows, np.random.default_rng(0))["metadata"], aged[rows]
    others = [i for i in range(len(names)) if i not in (ra, dec, age)]
    plain = card.standardise_metadata(true)
    assert np.array_equal(given[:, others], plain[:, others])
    places = given[:, [ra, dec]]
    assert not np.array_equal(places, plain[:, [ra, dec]])
    assert sorted(map(tuple, places.tolist())) == sorted(map(tuple, plain[:, [ra, dec]].tolist()))
    young = true[:, age] < OWN_HISTORY_DAYS[0]
    assert np.array_equal(given[young, age], plain[young, age])
    old = given[true[:, age] > OWN_HISTORY_DAYS[1], age]
    assert 0.2 < (old <= OWN_HISTORY_DAYS[1]).mean() < 0.8


def test_turning_keeps_the_radial_channel_and_makes_eight_positions() -> None:
    radius = radial_distance(49)
    stamp = np.random.default_rng(0).normal(size=(49, 49)).astype(np.float32)
    eight = turned(np.repeat(np.stack([stamp, radius])[None], 8, axis=0), np.arange(8))
    assert all(np.array_equal(image[1], radius) for image in eight)
    assert len({image[0].tobytes() for image in eight}) == 8
    assert np.array_equal(eight[0, 0], stamp)


def test_the_loss_is_equation_3_and_its_load_is_reported(
    loaded: tuple[Archive, Dataset, ImageExamples],
) -> None:
    examples = loaded[2]
    statistics = metadata_statistics(examples)
    angles = [examples.feature_names.index(n) for n in ("ra", "dec")]
    assert [i for i, mean in enumerate(statistics.mean) if mean is None] == angles
    card = ModelCard(
        "", "paper", "", "image", feature_names=examples.feature_names, normalisation={"metadata": statistics}
    )
    torch.manual_seed(0)
    network = build_network("paper", "astrominn", **SMALL["astrominn"]).eval()
    task = ImageTask(examples, card)
    batch = next(iter(task.batches(np.random.default_rng(0), 6)))
    shown = {tuple(row) for row in batch["metadata"][:, angles].tolist()}
    assert shown <= {tuple(row) for row in examples.metadata[:, angles].tolist()}  # degrees, never hidden
    tensors = {k: torch.as_tensor(v) for k, v in batch.items()}
    with torch.inference_mode():
        latent = network.embed(tensors["image"], tensors["metadata"])
        want = expert_focal_loss(
            network(tensors["image"], tensors["metadata"]),
            tensors["label"],
            network.router_weights(latent)[0],
            gamma=task.gamma,
            alpha=task._alpha,
        )
        found = task.loss(network, tensors)
    assert float(found) == pytest.approx(float(want), rel=1e-5)
    even = load_report(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2, 0]))
    assert (even["expert_evenness"], even["expert_as_meant"]) == (pytest.approx(1.0), 0.5)
    uneven = load_report(np.array([[1.0, 0.0]]), np.array([4]))
    assert uneven["expert_evenness"] == pytest.approx(0.0, abs=1e-9)


def _train(folder: str, archive: str, labels: str) -> dict[str, object]:
    image.PRESETS["tiny"] = replace(image.PRESETS["compact"], network="astrominn", config=SMALL["astrominn"])
    request = TrainingRequest(
        archive=archive,
        labels=labels,
        models=f"{folder}/set",
        out=f"{folder}/out",
        preset="tiny",
        split=RULE,
        epochs=4,
    )
    return image.train_image(request)


def test_killed_and_resumed_gives_the_same_weights(survey: Survey, tmp_path: Path) -> None:
    whole = _train(str(tmp_path / "whole"), *survey)
    checkpoint = tmp_path / "cut/out/checkpoint-train.pt"
    kill_in_training(
        f"_train({str(tmp_path / 'cut')!r}, *{tuple(survey)!r})",
        "from tests.training.test_image import _train",
        checkpoint,
    )
    assert not (tmp_path / "cut/set").exists()
    cut = _train(str(tmp_path / "cut"), *survey)
    assert set(cut) == set(load_answers()["train"])
    assert cut["weights_sha256"] == whole["weights_sha256"]
    assert cut["model_set_digest"] == whole["model_set_digest"]
    assert verify_model_set(tmp_path / "cut/set")["verified"]
    record = json.loads((tmp_path / "cut/out/metrics-train.jsonl").read_text().splitlines()[-1])
    assert {"expert_0", "expert_evenness", "macro_auprc"} <= set(record)
    split = pq.read_table(tmp_path / "cut/out/split.parquet").to_pydict()
    trained_on = {o for o, p in zip(split["objectId"], split["part"], strict=True) if p == "train"}
    assert ModelSet.load(tmp_path / "cut/set").training_ids() == (frozenset(trained_on), True)
