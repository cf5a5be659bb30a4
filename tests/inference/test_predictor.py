from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from applecider_batch.errors import UserError
from applecider_batch.inference.predictor import Predictor
from applecider_batch.models.card import ModelCard, Statistics
from applecider_batch.models.model_set import ModelSet, init_model_set


class Linear(nn.Module):
    """The metadata through one layer; optionally refuses batches above a size as a full GPU does."""

    def __init__(self, classes: int, room: int | None, error: type[Exception]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(2, classes)
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def forward_with_latent(
        self, images: torch.Tensor, metadata: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.room is not None and len(metadata) > self.room:
            raise self.error("not enough memory: you tried to allocate a lot")
        self.sizes.append(len(metadata))
        return self.layer(metadata), metadata


class Entry:
    modality = "image"

    def __init__(
        self,
        classes: tuple[str, ...] | None = None,
        room: int | None = None,
        error: type[Exception] = MemoryError,
        statistics: Statistics | None = None,
    ) -> None:
        more = {"class_order": classes} if classes else {}
        self.card = ModelCard(
            "n", "p", "net", "image", feature_names=("a", "b"), normalisation={"metadata": statistics}, **more
        )
        self.module = Linear(len(self.card.class_order), room, error)

    def build(self) -> nn.Module:
        return self.module


def batch(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "image": np.zeros((size, 1, 2, 2), np.float32),
        "metadata": rng.normal(size=(size, 2)).astype(np.float32),
    }


def test_a_nan_answer_stays_with_its_item() -> None:
    entry = Entry()
    given = batch(6)
    clean = Predictor(entry).run(given)["logits"]
    given["metadata"][2] = np.inf  # inf - inf in the layer
    spoiled = Predictor(entry).run(given)["logits"]
    assert np.isnan(spoiled[2]).all()
    np.testing.assert_array_equal(np.delete(spoiled, 2, axis=0), np.delete(clean, 2, axis=0))


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, torch.OutOfMemoryError])
def test_a_batch_that_does_not_fit_is_halved_and_marked(error: type[Exception]) -> None:
    entry = Entry(room=3, error=error)
    answer = Predictor(entry).run(batch(10))
    assert answer["degraded"]
    assert entry.module.sizes == [2, 3, 2, 3]
    whole = Predictor(Entry()).run(batch(10))
    assert not whole["degraded"]
    np.testing.assert_allclose(answer["logits"], whole["logits"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(answer["latent"], whole["latent"])
    np.testing.assert_allclose(answer["energy"], -np.log(np.exp(whole["logits"]).sum(1)), rtol=1e-5)


def test_a_device_with_memory_of_its_own_is_not_asked_twice_for_too_much() -> None:
    entry = Entry(room=40, error=torch.OutOfMemoryError)
    predictor = Predictor(entry)
    predictor._learns_room = True  # as on a GPU
    first, second = predictor.run(batch(100)), predictor.run(batch(100))
    whole = Predictor(Entry()).run(batch(100))
    assert (first["degraded"], second["degraded"]) == (True, False)
    # 128, 50, 50 and 25 four times; then at once what fits, filled up to whole rows.
    assert entry.module.sizes == [25] * 4 + [32] * 4
    for name in ("logits", "latent", "energy"):
        np.testing.assert_allclose(second[name], whole[name], rtol=1e-6, atol=1e-6)


def test_what_goes_to_a_gpu_is_pinned_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(Entry())
    predictor.device = torch.device("cuda")
    done: list[object] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        done.append("pinned")
        return self

    def to(self: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        done.append((device.type, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert predictor._tensor(given).tolist() == given.tolist()
    assert done == ["pinned", ("cuda", True)]


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryError):
        Predictor(Entry(room=0)).run(batch(4))


def test_another_runtime_error_is_not_taken_for_lack_of_memory() -> None:
    entry = Entry()
    given = batch(4)
    given["metadata"] = given["metadata"][:, :1]
    with pytest.raises(RuntimeError, match="shapes"):
        Predictor(entry).run(given)


def test_finer_classes_are_summed_into_the_five() -> None:
    entry = Entry(("AGN", "CV", "SN Ia", "SN Ib", "SN IIP", "TDE"))
    given = batch(5)
    own = torch.softmax(entry.module.layer(torch.tensor(given["metadata"])), 1).detach().numpy()
    five = np.exp(Predictor(entry).run(given)["logits"])
    np.testing.assert_allclose(five[:, 0], own[:, 2] + own[:, 3], rtol=1e-5)
    np.testing.assert_allclose(five[:, 3], own[:, 0], rtol=1e-5)
    np.testing.assert_allclose(five.sum(1), 1, rtol=1e-5)


def test_metadata_are_standardised_by_the_card() -> None:
    statistics = Statistics((1.0, None), (2.0, None))
    given = batch(4)
    by_card = Predictor(Entry(statistics=statistics)).run(given)["latent"]
    np.testing.assert_allclose(by_card[:, 0], (given["metadata"][:, 0] - 1) / 2, rtol=1e-6)
    np.testing.assert_array_equal(by_card[:, 1], given["metadata"][:, 1])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dtype": "float8"}, "allowed are float32"), ({"device": "tpu"}, "allowed are cpu, cuda")],
)
def test_unknown_options_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Predictor(Entry(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        Predictor(Entry(), device="cuda")


def test_the_threads_are_the_plans() -> None:
    before = torch.get_num_threads()
    try:
        Predictor(Entry(), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    """Networks wide enough for blocked kernels; image and spectra smaller than in use."""
    folder = str(tmp_path_factory.mktemp("set"))
    configs = {
        "astrominn": {"depths": [1, 1], "dims": [96, 192]},
        "spectranet": {"widths": [16] * 5, "hidden": [64, 32], "kernels": [[3, 5, 7]] * 5},
    }
    init_model_set(folder, seed=3, configs=configs)
    return ModelSet.load(folder)


@pytest.mark.parametrize("modality", ["photometry", "image", "spectra"])
def test_a_row_has_the_same_bits_whatever_comes_with_it(networks: ModelSet, modality: str) -> None:
    rng = np.random.default_rng(4)
    entry = networks.defaults[modality]

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(32, *shape)).astype(np.float32)

    given = {
        "photometry": {"x": normal(32, 7), "mask": np.arange(32) < rng.integers(9, 33, 32)[:, None]},
        "image": {"image": normal(4, 63, 63), "metadata": normal(len(entry.card.feature_names))},
        "spectra": {"x": normal(1, 4096)},
    }[modality]
    predictor = Predictor(entry)
    together = predictor.run(given)
    for rows in (slice(0, 1), slice(29, 32), slice(5, 22)):
        alone = predictor.run({name: values[rows] for name, values in given.items()})
        for name in ("logits", "latent", "energy"):
            np.testing.assert_array_equal(alone[name], together[name][rows])
