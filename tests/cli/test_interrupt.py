"""Ctrl-C and SIGTERM: the exit code, what is safe, and the command that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = "from applecider_batch.cli.main import main; main()"
ROOT = Path(__file__).resolve().parents[2]


def test_an_interrupted_simulation_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    line = [sys.executable, "-c", PROGRAM, "simulate", "a survey", "--objects", "500", "--nights", "20"]
    child = subprocess.Popen(
        line,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    limit = time.monotonic() + 60
    while not (tmp_path / "a survey/.simulating").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    for _ in range(20):  # Python drops what is raised while it collects garbage; one presses again then
        child.send_signal(signal.SIGINT)
        try:
            said = child.communicate(timeout=3)[1]
            break
        except subprocess.TimeoutExpired:
            continue
    assert child.returncode == 130
    assert "Interrupted; what is committed is safe." in said
    assert "applecider-batch simulate 'a survey' --objects 500 --nights 20" in said
    assert not (tmp_path / "a survey/simulation.json").exists()
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "a survey/simulation.json").exists()


def test_a_terminated_build_takes_its_lease_along(tmp_path: Path) -> None:
    program = """
import sys, time
from applecider_batch.catalog import build
def slow(*args, **kwargs):
    print("building", flush=True)
    time.sleep(60)
build.RunFolder = build.refuse_missing = build._refuse_foreign = lambda *args: None
build._build = slow
from applecider_batch.cli.main import main
main()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program, "catalog", "build", "RUN", "--out", "CATALOG"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "building\n"
    assert (tmp_path / "CATALOG/lease.json").exists()
    child.terminate()
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 143
    assert "Run the same command again to go on: applecider-batch catalog build RUN --out CATALOG" in said
    assert not (tmp_path / "CATALOG/lease.json").exists()
