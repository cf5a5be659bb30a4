"""The file of defaults: written with comments, read by every command of its folder, checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from applecider_batch.cli.main import run
from applecider_batch.cli.project import FILE, KEYS, TEMPLATE, read_defaults


def test_the_template_is_valid_and_names_every_key(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text(TEMPLATE)
    assert read_defaults(file) == {}
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", TEMPLATE, flags=re.MULTILINE))
    assert read_defaults(file).keys() == KEYS.keys()


def test_init_writes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "--format", "json"]) == 0
    assert Path(FILE).read_text() == TEMPLATE
    Path(FILE).write_text('models = "mine"\n')
    assert run(["init"]) == 4
    assert Path(FILE).read_text() == 'models = "mine"\n'


def test_defaults_apply_and_the_command_line_goes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = ["simulate", "survey", "--objects", "3", "--nights", "3", "-q"]
    assert run(made) == 0
    Path(FILE).write_text('archive = "first"\nknown = ["a.csv", "b.csv"]\n')
    capsys.readouterr()
    assert run(["ingest", "survey/alerts", "-q", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] > 0
    assert run(["ingest", "survey/alerts", "--archive", "second", "-q"]) == 0
    assert Path("first/archive.json").exists()
    assert Path("second/archive.json").exists()
    assert run(["catalog", "build", "nowhere", "--out", "out"]) == 4  # takes the list, then finds no run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("archiv = 'x'", "has the key 'archiv'; allowed are archive"),
        ("archive = 3", "must be a text, and is 3"),
        ("known = 'x'", "must be a list of texts"),
        ("known = [1]", "must be a list of texts"),
        ("archive = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text(text)
    assert run(["models", "list"]) == 4
    assert says in capsys.readouterr().err


def test_submit_sends_the_defaults_that_the_verb_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text(
        'archive = "mine"\nhorizons = "3,full"\nknown = ["a.csv", "b.csv"]\nprices = "prices.toml"\n'
    )
    sent: list[tuple[str, list[str]]] = []

    def submit(verb: str, arguments: list[str], address: str, *, follow: bool) -> dict[str, str]:
        sent.append((verb, arguments))
        return {}

    monkeypatch.setattr("applecider_batch.engine.submit.submit", submit)
    at = ["--address", "http://127.0.0.1:1"]
    assert run(["submit", "classify", *at, "--run", "RUN", "--horizons=10"]) == 0
    assert run(["submit", "catalog", "build", "RUN", *at, "--out", "OUT"]) == 0
    assert run(["submit", "compact", *at, "mine"]) == 0
    assert run(["submit", "train", "photometry", *at, "--out", "OUT", "--archive", "other"]) == 0
    assert sent == [
        ("classify", ["--run", "RUN", "--horizons=10", "--archive", "mine"]),
        ("catalog-build", ["RUN", "--out", "OUT", "--known", "a.csv", "--known", "b.csv"]),
        ("compact", ["mine"]),
        ("train", ["photometry", "--out", "OUT", "--archive", "other"]),
    ]
