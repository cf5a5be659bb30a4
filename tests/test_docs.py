"""The documentation tells the truth: its commands exist, its tutorial runs, its site needs no network."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from applecider_batch.cli.main import run
from applecider_batch.cli.reference import commands, help_of, page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = "applecider-batch"


def blocks(path: Path) -> list[str]:
    """Fenced blocks of a page, continued lines joined."""
    found = re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    return [block.replace("\\\n", " ") for block in found]


def calls(path: Path) -> list[list[str]]:
    """Every call of the program in the blocks of a page, as words without the program's name."""
    lines = [line.split(" #")[0].strip() for block in blocks(path) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{PROGRAM} ")]


@functools.cache
def help_text(path: tuple[str, ...]) -> str:
    return help_of(path)


CALLS = [(path, call) for path in PAGES for call in calls(path)]


def test_there_are_calls() -> None:
    assert len(CALLS) > 20


@pytest.mark.parametrize(
    ("path", "call"), CALLS, ids=[f"{path.stem}-{' '.join(call)[:60]}" for path, call in CALLS]
)
def test_commands_of_the_pages_exist(path: Path, call: list[str]) -> None:
    words = [word for word in call if not word.startswith("-")]
    known = [command for command in commands() if tuple(words[: len(command)]) == command]
    assert known, f"{path.name}: no such command: {' '.join(call)}"
    texts = [help_text(known[0])]
    if known[0] == ("submit",):  # everything after the verb is the verb's own
        texts += [help_text(c) for c in commands() if c[-1] == words[1] or " ".join(c) in " ".join(call)]
    for option in (word.split("=")[0] for word in call if word.startswith("--")):
        assert any(re.search(rf"{option}\b", text) for text in texts), f"{path.name}: no {option} in {call}"


def test_the_reference_names_every_command() -> None:
    text = page()
    for command in commands():
        assert f"## {' '.join(command)}\n" in text
    assert text.count("Example:") == len(list(commands()))


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in calls(ROOT / "docs" / "tutorial.md"):
        assert run(call) in (0, 3), call
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "candidates.parquet").exists()
    program = "\n".join(
        block for block in blocks(ROOT / "docs" / "howto" / "reading.md") if "import" in block
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "objectId" in done.stdout


def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for built in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=\"?(https?:[^\" >]+)", built.read_text())
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preload|preconnect)\"?[^>]*href=\"?(https?:[^\" >]+)",
            built.read_text(),
        )
        assert not loaded, f"{built.name} loads {loaded}"
    assert "models import" in (tmp_path / "cli.html").read_text()
