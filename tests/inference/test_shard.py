from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, StampCutouts, infer
from tests.engine import fakes

SIZES = {"photometry": 4, "image": 3, "spectra": 4}


class SlowPort:
    """Answers only when asked, and remembers how many batches were under way."""

    def __init__(self, predictor: Any) -> None:
        self.predictor, self.open, self.most = predictor, 0, 0

    def submit(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.open += 1
        self.most = max(self.most, self.open)
        return batch

    def result(self, handle: dict[str, np.ndarray]) -> dict[str, Any]:
        self.open -= 1
        answer: dict[str, Any] = self.predictor.run(handle)
        return answer


@pytest.fixture
def prepared() -> fakes.Prepared:
    return fakes.prepare(fakes.FakeShard(fakes.names(23)), fakes.HORIZONS, "fake", 0.0, set(), {}, {})


def ports(make: Callable[[Any], Any] = LocalPort) -> dict[str, Any]:
    defaults = fakes.load_models("tiny").defaults
    return {name: make(Predictor(entry)) for name, entry in defaults.items()}


def candid_cutouts(candids: np.ndarray) -> np.ndarray:
    return fakes.cutouts(pa.table({"candid": candids}), "fake")


def test_every_item_gets_what_it_gets_alone(prepared: fakes.Prepared) -> None:
    together = infer(prepared, candid_cutouts, ports(), batch_size=SIZES)
    alone = infer(prepared, candid_cutouts, ports(), batch_size=dict.fromkeys(SIZES, 1))
    for name in ("photometry", "image"):
        assert np.isfinite(together.logits[name]).all()
        np.testing.assert_allclose(together.logits[name], alone.logits[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together.latents[name], alone.latents[name], rtol=1e-5, atol=1e-6)
    assert together.batches["image"] == 8
    assert "spectra" not in together.logits


def test_no_more_than_two_batches_of_a_modality_are_under_way(prepared: fakes.Prepared) -> None:
    slow = ports(SlowPort)
    outputs = infer(prepared, candid_cutouts, slow, batch_size=SIZES)
    assert {name: port.most for name, port in slow.items()} == {"photometry": 2, "image": 2}
    direct = infer(prepared, candid_cutouts, ports(), batch_size=SIZES)
    for name in ("photometry", "image"):
        np.testing.assert_array_equal(outputs.logits[name], direct.logits[name])


def test_damaged_stamps_are_absent_not_failed(prepared: fakes.Prepared) -> None:
    lost = int(prepared.image.candid[4])

    def damaged(candids: np.ndarray) -> np.ndarray:
        made = candid_cutouts(candids)
        made[candids == lost] = np.nan
        return made

    outputs = infer(prepared, damaged, ports(), batch_size=SIZES)
    assert np.flatnonzero(outputs.absent["image"]).tolist() == [4]
    assert np.flatnonzero(np.isnan(outputs.logits["image"]).any(axis=1)).tolist() == [4]


def test_a_shard_without_items() -> None:
    empty = fakes.prepare(fakes.FakeShard([]), fakes.HORIZONS, "fake", 0.0, set(), {}, {})
    outputs = infer(empty, candid_cutouts, ports(), batch_size=SIZES)
    assert outputs.logits["photometry"].shape == (0, 5)
    assert outputs.latents["image"].shape == (0, 0)


def test_each_stamp_is_read_once() -> None:
    order = np.array([5, 5, 3, 9, 9, 1, 7, 2, 2], np.int64)
    reads: list[int] = []

    def read(candids: np.ndarray) -> pa.Table:
        reads.extend(candids.tolist())
        return pa.table({"candid": np.sort(candids)})

    reader = StampCutouts(read, lambda t: fakes.cutouts(t, ""), (3, fakes.SIZE, fakes.SIZE), order, piece=3)
    made = [reader(np.unique(order[start : start + 2])) for start in range(0, len(order), 2)]
    assert sorted(reads) == sorted(set(order.tolist()))
    np.testing.assert_array_equal(made[1], candid_cutouts(np.array([3, 9])))


def test_one_unreadable_stamp_leaves_its_neighbours() -> None:
    def cut(table: pa.Table) -> np.ndarray:
        if 3 in table.column("candid").to_pylist():
            raise ValueError("cannot cut")
        return fakes.cutouts(table, "")

    order = np.array([1, 3, 4], np.int64)
    shape = (3, fakes.SIZE, fakes.SIZE)
    reader = StampCutouts(lambda c: pa.table({"candid": c}), cut, shape, order)
    made = reader(order)
    assert np.isnan(made[1]).all()
    np.testing.assert_array_equal(made[[0, 2]], candid_cutouts(order[[0, 2]]))


def test_a_candid_without_stamps_is_nan() -> None:
    reader = StampCutouts(
        lambda c: pa.table({"candid": c[c != 4]}), lambda t: fakes.cutouts(t, ""), (3, 5, 5), np.array([4, 5])
    )
    made = reader(np.array([4, 5]))
    assert np.isnan(made[0]).all()
    assert np.isfinite(made[1]).all()
