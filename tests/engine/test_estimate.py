"""The plan's estimate against what a run then read, wrote and did."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.engine import api, estimate
from applecider_batch.engine.estimate import FEWEST_OBJECTS, SAMPLE_OBJECTS, bytes_of, sample
from applecider_batch.engine.outcome import Outcome
from applecider_batch.engine.plan import Shard, read_cuts
from applecider_batch.engine.serial import SerialExecutor, ThreadPort
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.errors import UserError
from applecider_batch.storage import Store
from tests.engine.conftest import Inputs
from tests.engine.test_s3_faults import needed_bytes

OPTIONS: dict[str, Any] = {"horizons": (10.0, None), "objects_per_shard": 5, "device": "cpu"}


def test_a_calibrated_plan_says_what_the_run_then_reads_and_writes(inputs: Inputs, tmp_path: Path) -> None:
    planned = api.plan(inputs.archive, inputs.models, calibrated=True, **OPTIONS)
    done = api.classify(inputs.archive, inputs.models, str(tmp_path), progress=False, **OPTIONS)
    found = api.status(str(tmp_path))
    assert planned["bytes_read"] == pytest.approx(found["bytes_read"], rel=0.1)
    assert planned["bytes_written"] == pytest.approx(found["bytes_written"], rel=0.1)
    assert planned["rows"] == pytest.approx(done["rows"], rel=0.1)
    assert planned["memory_per_worker_bytes"] > 0
    assert planned["seconds"] > planned["start_seconds"] >= 0
    # Of two workers none keeps the row group that reaches into the next shard.
    twice = api.plan(inputs.archive, inputs.models, calibrated=True, workers=2, **OPTIONS)
    assert twice["bytes_read"] > planned["bytes_read"]


def test_loading_the_networks_is_part_of_the_start(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate's clock it takes a thousand seconds."""
    waited: list[str] = []
    plain = ThreadPort.wait_until_loaded

    def wait(self: ThreadPort) -> None:
        plain(self)
        waited.append("loaded")

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * bool(waited))
    monkeypatch.setattr(ThreadPort, "wait_until_loaded", wait)
    monkeypatch.setattr(estimate, "time", clock)
    planned = api.plan(inputs.archive, inputs.models, calibrated=True, **OPTIONS)
    assert planned["start_seconds"] > 900


def test_no_thread_is_left_after_a_calibration_that_failed(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(*_: Any) -> Any:
        raise ValueError("this shard is poison")

    monkeypatch.setattr(ShardTask, "prepare", poison)
    before = threading.active_count()
    with pytest.raises(UserError, match="The calibration failed"):
        api.plan(inputs.archive, inputs.models, calibrated=True, **OPTIONS)
    assert threading.active_count() == before


def test_the_bytes_of_a_shard_are_those_of_its_row_groups(inputs: Inputs) -> None:
    edges = [0, 1 << 62, 1 << 63, (1 << 63) + (1 << 61), 1 << 64]
    shards = [Shard(i, edges[i], edges[i + 1], 1, 1) for i in range(4)]
    sizes = bytes_of(Archive.open(inputs.archive), shards)
    for name in ("alerts", "photometry", "stamps", "spectra"):
        exact = np.array([needed_bytes(inputs.archive, name, s.hash_lo, s.hash_hi) for s in shards])
        # Files' footers are counted along; of tables as short as these they are much, of stamps little.
        footers = sum(
            path.stat().st_size - needed_bytes_of(path)
            for path in Path(inputs.archive).rglob(f"{name}.parquet")
        )
        assert (sizes[name] >= 0.99 * exact).all()
        assert (sizes[name] <= 1.01 * exact + footers).all()
        assert name != "stamps" or footers < 0.02 * exact.sum()


def needed_bytes_of(path: Path) -> int:
    footer = pq.ParquetFile(path).metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return sum(group.column(i).total_compressed_size for group in groups for i in range(group.num_columns))


def test_the_pieces_are_spread_and_small() -> None:
    shards = [Shard(i, i << 60, (i + 1) << 60, 0 if i == 3 else 2000, 1) for i in range(16)]
    pieces = sample(shards)
    chosen = [piece.shard_id for piece in pieces]
    assert (len(chosen), chosen[0], chosen[-1]) == (5, 0, 15)
    assert all(3 <= gap <= 5 for gap in np.diff(chosen))
    assert 3 not in chosen, "it has no object"
    for piece, most in zip(pieces, (FEWEST_OBJECTS, *4 * [SAMPLE_OBJECTS]), strict=True):
        whole = shards[piece.shard_id]
        assert whole.hash_lo <= piece.hash_lo < piece.hash_hi <= whole.hash_hi
        share = (piece.hash_hi - piece.hash_lo) / (whole.hash_hi - whole.hash_lo)
        assert piece.objects == int(2000 * share)
        assert most <= piece.objects < 1.2 * most
    with pytest.raises(UserError, match="no object"):
        sample(shards[3:4])


def test_pieces_of_one_shard_are_apart_and_no_large_part_of_it() -> None:
    pieces = sample([Shard(0, 0, 1 << 64, 2000, 1)])
    assert [piece.objects for piece in pieces[1:]] == 4 * [250]
    assert all(one.hash_hi <= next.hash_lo for one, next in itertools.pairwise(pieces))


def test_a_calibration_times_the_middle_of_a_run(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate's clock the n-th piece takes 10**n seconds; the last one is not done."""
    done: list[Outcome] = []
    plain = SerialExecutor.wait

    def wait(self: SerialExecutor, seconds: float) -> list[Outcome]:
        done.extend(outcomes := plain(self, seconds))
        return outcomes

    clock = SimpleNamespace(monotonic=lambda: float(sum(10**n for n in range(len(done)))))
    monkeypatch.setattr(SerialExecutor, "wait", wait)
    monkeypatch.setattr(estimate, "time", clock)
    planned = api.plan(inputs.archive, inputs.models, calibrated=True, **OPTIONS)
    assert len(done) == 4
    objects = sum(outcome.record["objects"] for outcome in done[2:])
    expected = (100 + 1000) / objects * planned["objects"]
    assert planned["seconds"] - planned["start_seconds"] == pytest.approx(expected, rel=1e-3)


def test_the_cost_is_the_price_tables(inputs: Inputs, tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('currency = "EUR"\ncpu_hour = 3600.0\ngpu_hour = 7200\ngb_read = 1e9\n')
    planned = api.plan(inputs.archive, inputs.models, prices=str(table), workers=3, device="cuda")
    expected = 3 * planned["seconds"] + 7200 * planned["gpu_hours"] + planned["bytes_read"]
    assert planned["cost"] == pytest.approx(expected, rel=0.01)
    assert planned["currency"] == "EUR"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu = 1", "'cpu = 1'; allowed are currency, cpu_hour"),
        ("cpu_hour = -1", "numbers >= 0"),
        ("cpu_hour = true", "numbers >= 0"),
        ("cpu_hour", "is not TOML"),
        (None, "There is no price table"),
    ],
)
def test_a_wrong_price_table_is_refused(inputs: Inputs, tmp_path: Path, text: str | None, said: str) -> None:
    table = tmp_path / "prices.toml"
    if text is not None:
        table.write_text(text)
    with pytest.raises(UserError, match=said):
        api.plan(inputs.archive, inputs.models, prices=str(table))


def test_the_answer_is_json(inputs: Inputs) -> None:
    json.dumps(api.plan(inputs.archive, inputs.models, **OPTIONS))


def test_files_of_options_may_lie_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Store, "read_bytes", lambda self, rel: asked.append(self.path(rel)) or b"")
    assert estimate.read_prices("/prices.toml", None) == {}
    with contextlib.suppress(UserError):
        read_cuts("/cuts.toml", None)
    assert [path.lstrip("/") for path in asked] == ["prices.toml", "cuts.toml"]
    assert all(path.startswith("/") and str(Path.cwd()) not in path for path in asked)
