"""One build of a catalogue at a time, and what a killed one leaves."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.catalog import build as build_module
from applecider_batch.catalog.build import build_catalog
from applecider_batch.errors import UserError
from applecider_batch.lease import LEASE, Lease, read_lease
from applecider_batch.spread import Here, ProgressLike
from applecider_batch.storage import Store
from tests.archive.trees import tree
from tests.catalog.synthetic import object_names, write_run
from tests.killed import killed

NAMES = object_names(40)


class Meanwhile(Here):
    """Calls something before every pass."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def map(
        self,
        function: Callable[[Any, Any, Any], Any],
        shared: Any,
        tasks: Iterable[Any],
        progress: ProgressLike | None = None,
    ) -> Generator[Any, None, None]:
        """See :meth:`Here.map`."""
        self._call()
        yield from super().map(function, shared, tasks, progress)


@pytest.mark.parametrize("there_before", [False, True])
def test_the_second_of_two_builds_is_refused(tmp_path: Path, there_before: bool) -> None:
    one, other = (str(write_run(tmp_path / name, NAMES[:count])) for name, count in (("a", 40), ("b", 20)))
    out, oracle = str(tmp_path / "out"), str(tmp_path / "oracle")
    for url in (oracle, *([out] if there_before else [])):
        build_catalog(one, url)
    refused = []

    def beside() -> None:
        before = tree(tmp_path / "out")
        with pytest.raises(
            UserError, match=r"The catalogue '.*out' is being changed: process \d+ on "
        ) as why:
            build_catalog(one if there_before else other, out)
        refused.append(why.value.hint)
        assert tree(tmp_path / "out") == before

    build_catalog(one, out, spread=Meanwhile(beside))
    assert set(refused) == {"Wait for it."}
    assert len(refused) >= 2
    assert tree(tmp_path / "out") == tree(tmp_path / "oracle")
    assert read_lease(Store(out)) is None


def test_a_folder_of_something_else_gets_no_lease(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", NAMES))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        build_catalog(run, str(tmp_path / "out"))
    assert list(tree(tmp_path / "out")) == ["mine.txt"]


def test_what_another_has_built_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = str(write_run(tmp_path / "run", NAMES)), tmp_path / "out"

    class Late(Lease):
        """Gets the lease when another build has just ended."""

        def __enter__(self) -> Lease:
            document = out / "catalog.json"
            document.parent.mkdir()
            document.write_text('{"run_id": "another"}')
            return super().__enter__()

    monkeypatch.setattr(build_module, "Lease", Late)
    with pytest.raises(UserError, match="already holds the catalogue of run another"):
        build_catalog(run, str(out))
    assert list(tree(out)) == ["catalog.json"]


@pytest.mark.parametrize(
    ("pattern", "moment"),
    [
        ("rows/part-*", "after"),
        ("rows/part-*", "before"),
        ("catalog.json", "before"),
        ("catalog.json", "after"),
    ],
)
def test_a_build_killed_and_called_again(tmp_path: Path, pattern: str, moment: str) -> None:
    run, out, oracle = str(write_run(tmp_path / "run", NAMES)), tmp_path / "out", tmp_path / "oracle"
    build_catalog(run, str(oracle))
    killed(f"{out}/{pattern}", moment, "catalog", "build", run, "--out", str(out))
    assert (out / LEASE).exists()
    build_catalog(run, str(out))
    assert tree(out) == tree(oracle)
