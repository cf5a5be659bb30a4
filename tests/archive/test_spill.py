from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive import spill as spill_module
from applecider_batch.archive.spill import Spill, cut_ranges, hash_slice
from applecider_batch.digest import HASH64_END


def _table(hashes: np.ndarray, start: int = 0) -> pa.Table:
    values = [[float(v)] * (int(h) % 5) for v, h in enumerate(hashes, start)]
    return pa.table({"hash64": pa.array(hashes), "row": np.arange(len(hashes)) + start, "values": values})


@pytest.mark.parametrize("memory", [1, 10_000, 10_000_000])
@pytest.mark.parametrize("target", [1, 5_000, 10_000_000])
def test_every_row_comes_back_once_in_its_range(tmp_path: Path, memory: int, target: int) -> None:
    rng = np.random.default_rng(1)
    # Few distinct hashes, with both ends of the range, so that cuts fall into runs of equal ones.
    pool = np.append(
        rng.integers(1, 2**63, 40, dtype=np.uint64) * 2, np.array([0, HASH64_END - 1], np.uint64)
    )
    given = [pool[rng.integers(0, len(pool), 60)] for _ in range(20)]
    with Spill(memory, tmp_path) as spill:
        for number, hashes in enumerate(given):
            spill.add("a", _table(hashes, number * 60))
        spill.add("b", _table(np.array([3], np.uint64)))
        ranges = spill.ranges(target)
        assert ranges[0][0] == 0
        assert ranges[-1][1] == HASH64_END
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
        rows: list[tuple[int, int, list[float]]] = []
        for lo, hi in ranges:
            table = spill.read("a", lo, hi)
            hashes = table.column("hash64").to_pylist()
            assert all(lo <= value < hi for value in hashes)
            rows += zip(
                hashes, table.column("row").to_pylist(), table.column("values").to_pylist(), strict=True
            )
        assert sum(spill.read("b", lo, hi).num_rows for lo, hi in ranges) == 1
    expected = pa.concat_tables([_table(hashes, number * 60) for number, hashes in enumerate(given)])
    names = ("hash64", "row", "values")
    assert sorted(rows) == sorted(zip(*(expected.column(name).to_pylist() for name in names), strict=True))
    if target == 1 and memory == 1:
        assert len(ranges) > 10
    assert not list(tmp_path.iterdir())


def test_an_empty_spill_is_one_range(tmp_path: Path) -> None:
    with Spill(1, tmp_path) as spill:
        assert spill.ranges(10) == [(0, HASH64_END)]
        assert spill.names == []


def test_cuts_never_split_one_hash() -> None:
    same = [(5, 5, 10), (5, 5, 10), (5, 5, 10)]
    assert cut_ranges([*same, (9, 9, 1), (12, 12, 10)], 10) == [(0, 9), (9, HASH64_END)]
    assert cut_ranges([(0, 99, 4000)], 1000) == [(0, 25), (25, 50), (50, 75), (75, HASH64_END)]
    assert cut_ranges([], 10) == [(0, HASH64_END)]


def test_slices_reach_both_ends() -> None:
    hashes = np.array([0, 4, 4, HASH64_END - 1], np.uint64)
    assert hash_slice(hashes, 0, HASH64_END) == (0, 4)
    assert hash_slice(hashes, 4, 5) == (1, 3)
    assert hash_slice(hashes, 5, HASH64_END - 1) == (3, 3)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from applecider_batch.archive.spill import Spill; "
        "spill = Spill(1, sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = set(tmp_path.iterdir())
    assert len(left) == 1
    with Spill(1, tmp_path) as living:
        assert not left & set(tmp_path.iterdir())
        with Spill(1, tmp_path):
            assert len(list(tmp_path.iterdir())) == 2
        living.add("a", _table(np.array([1], np.uint64)))
        living.flush()
        assert living.read("a", 0, HASH64_END).num_rows == 1


def test_one_that_is_being_made_is_not_taken_for_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = spill_module.fcntl.flock

    def after_another_has_looked(file: Any, how: int) -> None:
        monkeypatch.setattr(spill_module.fcntl, "flock", lock)
        spill_module._remove_stale(tmp_path)
        lock(file, how)

    monkeypatch.setattr(spill_module.fcntl, "flock", after_another_has_looked)
    with Spill(1, tmp_path) as made:
        assert len(list(tmp_path.glob("*/*"))) == 1
        spill_module._remove_stale(tmp_path)
        made.add("a", _table(np.array([1], np.uint64)))
        made.flush()
        assert len(list(tmp_path.glob("*/*"))) == 1
    assert not list(tmp_path.iterdir())
