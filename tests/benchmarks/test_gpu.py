"""The GPU benchmark on a CPU: that it runs, and that its figures hang together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu


def test_the_batch_doubles_while_it_gains_and_fits() -> None:
    rates = {4: 10.0, 8: 20.0, 16: 30.0, 32: 30.1}
    assert gpu.fastest_batch(rates.__getitem__, 4, 1024) == (16, 30.0)

    def short(batch: int) -> float:
        if batch > 8:
            raise torch.OutOfMemoryError
        return float(batch)

    assert gpu.fastest_batch(short, 4, 1024) == (8, 8.0)
    assert gpu.fastest_batch(float, 4, 32) == (32, 32.0)


def test_readers_share_the_row_groups_and_cut_what_is_stored(tmp_path: Path) -> None:
    part = gpu.noise_part(str(tmp_path), 130)
    rows = {n: next(gpu.cutouts([part], n, 2)) for n in range(2)}
    assert [len(images) for images in rows.values()] == [64, 66]
    assert all(np.isfinite(images).all() for images in rows.values())


def test_it_runs_on_a_cpu() -> None:
    line = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run(
        [*line, "--readers", "1", "--seconds", "0.01"],
        capture_output=True,
        check=False,
        text=True,
        cwd=Path(gpu.__file__).parents[1],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["network"] for row in answer["networks"]] == list(gpu.NETWORKS)
    for row in answer["networks"]:
        shown = row["per_second"] * row["gflop"] * 1e9 / (answer["ceiling_tflops"] * 1e12)
        assert row["share_of_ceiling"] == pytest.approx(shown)
        assert row["per_second_graph"] is None
    gflop = {row["network"]: row["gflop"] for row in answer["networks"]}
    assert gflop["convnext"] < gflop["astrominn"] < 1.05 * gflop["convnext"]  # one is a tower of the other
    assert answer["end_to_end_triplets_per_second"] > 0
    assert "share of the ceiling" in gpu.table(answer)
