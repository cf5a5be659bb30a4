"""Ctrl-C: the exit code, what is safe, and the command that goes on."""

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
