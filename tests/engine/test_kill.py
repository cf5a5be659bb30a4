"""Processes killed at any moment, resumed: the same rows as an undisturbed run, none twice, none lost."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from applecider_batch.catalog.run_folder import RunFolder
from tests.engine import fakes
from tests.killed import ENVIRONMENT, ROOT


def command(executor: str, archive: str, run: Path, workers: int = 1) -> list[str]:
    """A driver's command line."""
    return [sys.executable, "-m", "tests.engine.drive", executor, archive, str(run), str(workers)]


def start(executor: str, archive: str, run: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    """A driver in its own process group."""
    words = command(executor, archive, run, workers)
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)


def wait_for_commits(run: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    """Until so many shards are committed or the driver ended."""
    deadline = time.monotonic() + 90
    while len(list(run.glob("commits/shard-*"))) < count and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def committed_rows(run: Path) -> pa.Table:
    """All rows, read and checked as a catalogue build does."""
    folder = RunFolder(str(run))
    assert folder.missing == []
    table = pa.concat_tables([folder.read_shard(shard) for shard in folder.shards])
    assert table.num_rows == 80
    return table


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return fakes.write_archive(tmp_path / "archive.json", sleep={"*": 0.1})


@pytest.fixture
def undisturbed(archive: str, tmp_path: Path) -> pa.Table:
    from tests.engine.drive import drive

    drive("serial", archive, str(tmp_path / "undisturbed"), models="slim")
    return committed_rows(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_serial_driver_killed_five_times(archive: str, undisturbed: pa.Table, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = random.Random(20260711)
    for _ in range(5):
        driver = start("serial", archive, run)
        wait_for_commits(run, len(list(run.glob("commits/shard-*"))) + 1, driver)
        time.sleep(moments.uniform(0, 0.15))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert start("serial", archive, run).wait(timeout=90) == 0
    assert committed_rows(run) == undisturbed


def test_a_disk_that_is_full_ends_the_run_and_it_goes_on_later(
    archive: str, undisturbed: pa.Table, tmp_path: Path
) -> None:
    # The kernel's own refusal: no file of this process may grow beyond 8 kB, and a data file is larger.
    run = tmp_path / "run"
    full = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *command("serial", archive, run)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 4
    assert "No space left" in full.stderr
    assert "run the same command again" in full.stderr
    assert not list(run.glob("commits/*"))
    assert not (run / "quarantine").exists()
    assert start("serial", archive, run).wait(timeout=90) == 0
    assert committed_rows(run) == undisturbed
