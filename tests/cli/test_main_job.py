"""The main job by its commands: simulated nights in, a verified catalogue out, every answer as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.cli.main import run
from applecider_batch.schema import load_answers


class Shell:
    """Runs command lines with ``--format json`` in one folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.capsys, self.folder = capsys, folder

    def __call__(self, line: str, code: int = 0) -> dict[str, Any]:
        words = line.replace("@", f"{self.folder}/").split()
        assert run([*words, "--format", "json"]) == code, self.capsys.readouterr()
        out = self.capsys.readouterr().out
        answer: dict[str, Any] = json.loads(out)
        return answer


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    return Shell(capsys, tmp_path)


def _promised(verb: str, answer: dict[str, Any]) -> None:
    missing = set(answer) ^ set(load_answers()[verb])
    assert not missing, f"{verb}: keys differ from schemas/answers.json: {missing}"


def test_the_main_job(shell: Shell) -> None:
    simulated = shell("simulate @survey --objects 30 --nights 20 --seed 4 -q")
    _promised("simulate", simulated)
    assert simulated["simulated"] is True

    line = "ingest @survey/alerts --archive @archive --spectra @survey/spectra.parquet -q"
    ingested = shell(line)
    _promised("ingest", ingested)
    assert ingested["packets_in"] == simulated["packets"] == ingested["stored"]
    assert ingested["spectra_in"] == simulated["spectra"] == ingested["spectra_stored"]
    assert shell(line)["changed"] is False
    for verb in ("info", "verify", "compact", "gc"):
        _promised(f"archive {verb}", shell(f"archive {verb} @archive" + (" -q" if verb == "compact" else "")))

    shell("models init @models --seed 3")
    _promised("models verify", shell("models verify @models"))
    _promised("models list", shell("models list @."))
    planned = shell("plan --archive @archive --models @models --horizons 3,full --objects-per-shard 10")
    _promised("plan", planned)
    assert planned["objects"] == simulated["objects_with_packets"]
    assert planned["shards"] > 1

    classify = (
        "classify --archive @archive --models @models --run @run --horizons 3,full --objects-per-shard 10 -q"
    )
    half = shell(f"{classify} --limit-shards 1")
    assert (half["shards_committed"], half["state"]) == (1, "incomplete")
    shell("catalog build @run --out @catalog", code=4)
    done = shell(classify)
    _promised("classify", done)
    assert done["state"] == "complete"
    assert done["trained"] is False
    assert done["run_id"] == planned["run_id"] == shell("status @run")["run_id"]
    _promised("status", shell("status @run"))
    _promised("logs", shell("logs @run"))
    _promised("cancel", shell("cancel @run"))
    refused = shell(classify.replace("3,full", "10"), code=4)
    assert "horizons" in refused["error"]

    built = shell("catalog build @run --out @catalog --known @survey/known_transients.csv")
    _promised("catalog build", built)
    verified = shell("catalog verify @catalog")
    _promised("catalog verify", verified)
    assert verified["rows"] == built["rows"] == done["rows"]
    updated = shell(
        "update @catalog --archive @archive --models @models --known @survey/known_transients.csv -q"
    )
    _promised("update", updated)
    assert (updated["changed"], updated["content_sha256"]) == (False, built["content_sha256"])
    for verb in ("fold", "releases", "gc"):
        _promised(f"catalog {verb}", shell(f"catalog {verb} @catalog"))
    _promised("catalog export", shell("catalog export @catalog --to csv --out @catalog.csv"))
    _promised("report", shell("report @catalog --archive @archive --out @report.html"))
    assert (shell.folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("archive info @nothing", "nothing"),
        ("archive verify @nothing", "nothing"),
        ("models info @nothing", "nothing"),
        ("status @nothing", "nothing"),
        ("catalog verify @nothing", "nothing"),
        ("catalog build @nothing --out @catalog", "nothing"),
        ("plan --archive @nothing --models @nothing", "nothing"),
        ("ingest @nothing.tar.gz --archive @archive", "nothing"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(shell: Shell, line: str, word: str) -> None:
    answer = shell(line, code=4)
    assert word in answer["error"]
    assert answer["exit_code"] == 4
