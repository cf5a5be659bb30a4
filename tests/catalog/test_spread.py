"""Catalogue build and HATS export in other processes: the bytes of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from applecider_batch.archive.spill import scratch_folder
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.export import export_catalog
from applecider_batch.catalog.known import KnownList, read_known
from applecider_batch.catalog.parts import part_tasks
from applecider_batch.errors import UserError
from applecider_batch.spread import Here, Spread
from applecider_batch.storage import Store
from tests.archive.trees import tree
from tests.catalog.synthetic import make_rows, object_names, write_run
from tests.elsewhere import Elsewhere
from tests.killed import killed_in

NAMES = object_names(90)


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_every_row_is_in_one_part_and_every_shard_begins_in_one(size: int) -> None:
    rows = [0, 5, 3, 0, 40, 1, 0]
    tasks = part_tasks(rows, size)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    taken = [
        (piece.shard, row)
        for task in tasks
        for piece in task.pieces
        for row in range(piece.start, piece.stop)
    ]
    assert taken == [(shard, row) for shard, count in enumerate(rows) for row in range(count)]
    assert [piece.shard for task in tasks for piece in task.pieces if piece.first] == list(range(len(rows)))
    held = [sum(piece.stop - piece.start for piece in task.pieces) for task in tasks]
    assert held[:-1] == [size] * (len(tasks) - 1)
    assert part_tasks([], size) == part_tasks([], 5)
    assert len(part_tasks([], size)) == 1


def known(folder: Path) -> list[KnownList]:
    """A list with every third object's position in it."""
    rows = make_rows(NAMES).to_pylist()
    placed = {row["objectId"]: (row["ra"], row["dec"]) for row in rows if row["ra"] is not None}
    lines = [f"K{number},{ra},{dec}" for number, (ra, dec) in enumerate(list(placed.values())[::3])]
    file = folder / "known.csv"
    file.write_text("\n".join(["name,ra,dec", *lines]))
    return [read_known(str(file), "agn")]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_catalogue_made_elsewhere_has_the_same_bytes(tmp_path: Path, workers: int) -> None:
    run = write_run(tmp_path / "run", NAMES)
    spread = Elsewhere(workers)
    lists = known(tmp_path)
    infos = [
        build_catalog(str(run), str(tmp_path / name), rows_per_part=64, known=lists, spread=where)
        for name, where in (("here", Here()), ("there", spread))
    ]
    assert infos[0] == infos[1]
    assert sum(part["rows"] for part in infos[0]["side_tables"]["crossmatches"]) > 10
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert ("_write_rows", len(infos[0]["parts"])) in spread.passes
    assert len(infos[0]["parts"]) > 3


def test_hats_made_elsewhere_has_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", NAMES)
    build_catalog(str(run), str(tmp_path / "catalogue"), rows_per_part=64)
    for name, where in (("here", Here()), ("there", Elsewhere(3))):
        export_catalog(
            str(tmp_path / "catalogue"), str(tmp_path / name), "hats", horizon="full", spread=where
        )
    there = tree(tmp_path / "there")
    assert there == tree(tmp_path / "here")
    assert any("Npix" in name for name in there)
    assert not any("rows" in name or "spill" in name for name in there)


_EXPORT = """
from applecider_batch.catalog.export import export_catalog
from applecider_batch.errors import UserError
from applecider_batch.spread import Here, Spread
from applecider_batch.storage import Store
from tests.elsewhere import Elsewhere
where = Elsewhere(3) if sys.argv[3] == "elsewhere" else Here()
export_catalog(*sys.argv[1:3], "hats", spread=where)
"""


@pytest.mark.parametrize(
    ("where", "pattern", "number"),
    [
        ("elsewhere", ".spill-*/*.rows", 1),  # rows are being sorted
        ("elsewhere", "horizon_*/catalogue/dataset/*/*/*.parquet", 2),  # partitions are being written
        ("here", "horizon_*/catalogue/dataset/*/*/*.parquet", 2),
        ("here", "horizon_*/collection.properties", 1),  # the first of the horizons is done
    ],
)
def test_a_hats_export_killed_and_called_again(tmp_path: Path, where: str, pattern: str, number: int) -> None:
    catalogue, out = str(tmp_path / "catalogue"), tmp_path / "out"
    build_catalog(str(write_run(tmp_path / "run", NAMES)), catalogue, rows_per_part=64)
    export_catalog(catalogue, str(tmp_path / "undisturbed"), "hats")
    killed_in(_EXPORT, f"{out}/{pattern}", "after", catalogue, str(out), where, number=number)
    assert len(list(out.glob(".spill-*"))) == 1
    export_catalog(catalogue, str(out), "hats", spread=Elsewhere(3) if where == "elsewhere" else None)
    assert tree(out) == tree(tmp_path / "undisturbed")
    assert not list(out.glob(".spill-*"))


@pytest.mark.parametrize("where", [Here(), Elsewhere(2)])
def test_a_hats_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Spread
) -> None:
    catalogue, out = str(tmp_path / "catalogue"), tmp_path / "out"
    build_catalog(str(write_run(tmp_path / "run", NAMES)), catalogue, rows_per_part=64)

    def interrupted(*_: object) -> None:
        assert list(out.glob("horizon_*/catalogue/dataset"))
        raise KeyboardInterrupt

    monkeypatch.setattr("applecider_batch.catalog.hats_export._publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_catalog(catalogue, str(out), "hats", spread=where)
    assert not list(out.iterdir())


def test_a_folder_into_which_another_exports_is_left_alone(tmp_path: Path) -> None:
    catalogue, out = str(tmp_path / "catalogue"), tmp_path / "out"
    build_catalog(str(write_run(tmp_path / "run", NAMES)), catalogue, rows_per_part=64)
    with scratch_folder(Store(out)):
        (out / "horizon_full").mkdir()
        with pytest.raises(UserError, match="is not empty"):
            export_catalog(catalogue, str(out), "hats")
        assert (out / "horizon_full").exists()
