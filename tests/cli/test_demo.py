"""The demo: the whole way in one command, which can be run again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from applecider_batch.cli.main import run


def test_demo_runs_and_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["demo", str(tmp_path / "d"), "--objects", "20", "--nights", "12", "--executor", "serial", "-q"]
    assert run([*line, "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["packets_in"] == first["stored"] + first["duplicates"] + first["quarantined"] > 0
    assert first["problems"] == []
    assert first["simulated"] is True
    check = first["check"]
    assert check["planted"] >= 5
    assert check["rare"] == 5
    assert check["found"] + len(check["not_found"]) == check["planted"]
    assert check["recall"] >= 0.5
    page = Path(first["report"]).read_text(encoding="utf-8")
    assert "untrained" not in page.lower()
    assert "simulated" in page.lower()

    assert run([*line, "--format", "json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["content_sha256"] == first["content_sha256"]

    # What it says to try works as typed.
    assert run(line) == 0
    tried = [text.strip() for text in capsys.readouterr().err.splitlines() if text.startswith("  applecider")]
    assert len(tried) == 4
    for text in tried[:3]:
        assert run(shlex.split(text)[1:]) == 0, text
    assert (tmp_path / "d" / "truth.html").exists()

    assert run([*line, "--seed", "9"]) == 4
    assert "holds a demo with" in capsys.readouterr().err


def test_demo_leaves_a_foreign_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert run(["demo", str(tmp_path)]) == 4
    assert "something else" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
