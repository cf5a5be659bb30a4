"""``catalog fold`` and ``catalog gc`` killed at any step: the same bytes, and readers see whole releases."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from applecider_batch.catalog.release_upkeep import fold, gc, list_releases
from applecider_batch.catalog.store import open_catalog
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.cli.main import run
from applecider_batch.storage import Store
from tests.archive.trees import tree
from tests.engine.nightly import catalogue_bytes
from tests.killed import killed, watch


@pytest.fixture(scope="module")
def folded(updated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three releases, the last of which is a base again."""
    folder = tmp_path_factory.mktemp("folded") / "a"
    shutil.copytree(updated, folder)
    assert fold(str(folder / "catalogue"))["changed"]
    return folder


@pytest.fixture(scope="module")
def collected(folded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last release alone."""
    folder = tmp_path_factory.mktemp("collected") / "a"
    shutil.copytree(folded, folder)
    assert gc(str(folder / "catalogue"))["releases_removed"] == [1, 2]
    return folder


def catalogue(folder: Path) -> str:
    return str(folder / "catalogue")


def read_all(url: str) -> dict[int, str]:
    """``content_sha256`` of every release that is offered, each of which is whole, and of the newest."""
    listed = list_releases(url)
    for release in listed["releases"]:
        assert verify_catalog(release["read_as"])["problems"] == []
    assert verify_catalog(url)["problems"] == []
    return {release["release"]: release["content_sha256"] for release in listed["releases"]}


def copy(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder / "a")
    return folder / "a"


@pytest.mark.parametrize(
    ("pattern", "moment"),
    [
        ("rows/part-*", "before"),  # rows lie under a temporary name
        ("index/positions-*", "after"),  # of the release only its document is missing
        ("releases/00003.json", "after"),  # the release is there, and is not yet the newest
        ("catalog.json", "after"),
    ],
)
def test_a_fold_killed_and_called_again(
    updated: Path, folded: Path, tmp_path: Path, pattern: str, moment: str
) -> None:
    folder = copy(updated, tmp_path)
    url = catalogue(folder)
    killed(f"{url}/{pattern}", moment, "catalog", "fold", url)
    assert open_catalog(url)[1]["release"] == (3 if pattern == "catalog.json" else 2)
    contents = read_all(url)
    assert len(set(contents.values())) == 2  # of the base, and of the update and what is folded from it
    assert fold(url)["changed"] is (pattern != "catalog.json")
    assert catalogue_bytes(folder) == catalogue_bytes(folded)
    assert not fold(url)["changed"]


@pytest.mark.parametrize(("number", "moment"), [(1, "after"), (2, "before"), (3, "after"), (7, "after")])
def test_a_removal_killed_and_called_again(
    folded: Path, collected: Path, tmp_path: Path, number: int, moment: str
) -> None:
    folder = copy(folded, tmp_path)
    url = catalogue(folder)
    newest = open_catalog(url)[1]
    killed(f"{url}/*/*", moment, "catalog", "gc", url, number=number)
    assert open_catalog(url)[1] == newest
    assert read_all(url)[3] == newest["content_sha256"]
    assert run(["catalog", "gc", url]) == 0
    assert tree(folder / "catalogue") == tree(collected / "catalogue")
    assert not (folder / "catalogue" / "runs").exists()


def test_what_a_killed_fold_wrote_is_removed(updated: Path, tmp_path: Path) -> None:
    undisturbed, folder = copy(updated, tmp_path / "undisturbed"), copy(updated, tmp_path / "killed")
    killed(f"{catalogue(folder)}/rows/part-*", "before", "catalog", "fold", catalogue(folder))
    left = [name for name in tree(folder / "catalogue") if name.endswith(".tmp")]
    assert len(left) == 1
    for each in (undisturbed, folder):
        assert run(["catalog", "gc", catalogue(each), "--keep", "2"]) == 0
    assert tree(folder / "catalogue") == tree(undisturbed / "catalogue")


def test_saying_what_would_be_removed_writes_nothing(
    updated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(updated, tmp_path)
    url = catalogue(folder)
    killed(f"{url}/releases/00003.json", "after", "catalog", "fold", url)  # its release is not the newest yet
    before = tree(folder / "catalogue")
    answers = []
    for more in (["--dry-run"], []):
        assert tree(folder / "catalogue") == before
        assert run(["catalog", "gc", url, *more, "--format", "json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    said, done = answers
    assert said == {**done, "dry_run": True}
    assert done["releases_removed"] == [1, 2]
    assert open_catalog(url)[1]["release"] == 3


@pytest.mark.parametrize("verb", ["fold", "gc"])
def test_readers_find_whole_releases_at_every_step(
    updated: Path, folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    folder = copy(updated if verb == "fold" else folded, tmp_path)
    url = catalogue(folder)
    contents = read_all(url)
    steps = []

    def look(moment: str, path: str) -> None:
        steps.append((moment, path))
        seen = read_all(url)
        assert seen.items() <= {**contents, 3: contents[2]}.items()
        assert len(seen) >= len(contents) or verb == "gc"

    for name, step in watch(look).items():
        monkeypatch.setattr(os, name, step)
    assert run(["catalog", verb, url]) == 0
    assert len(steps) > 10


def test_a_release_that_is_removed_while_they_are_listed(
    folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = catalogue(copy(folded, tmp_path))
    ls = Store.ls

    def then_remove(self: Store, rel: str = "") -> list[str]:
        names = ls(self, rel)
        monkeypatch.undo()
        gc(url, keep=2)
        return names

    monkeypatch.setattr(Store, "ls", then_remove)
    assert [release["release"] for release in list_releases(url)["releases"]] == [2, 3]
