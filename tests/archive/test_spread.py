"""Ingest and compaction in other processes: the bytes of one process, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.verify import verify
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.export import export_catalog
from applecider_batch.digest import digest128
from applecider_batch.errors import InternalError
from applecider_batch.spread import Here, Spread
from applecider_batch.storage import Store
from tests.archive.packet_maker import Packet, Source, bad_packet, night_of
from tests.archive.trees import tree
from tests.catalog.synthetic import object_names, write_run
from tests.elsewhere import Elsewhere

SIZES: dict[str, Any] = {"memory_bytes": 1 << 20, "part_bytes": 2 << 20}


def nights() -> list[Source]:
    """Nights with what a task must not decide alone: versions of one candid in several of them."""
    made = []
    for night in range(4):
        packets = night_of(night, range(30))
        packets.append(Packet("ZTF20x", 2, n_stamps=3 if night == 3 else 0, note=str(night)))
        made.append(Source(f"s{night}", packets, [bad_packet(f"s{night}", "x.avro")]))
    return [*made, Source("s1", made[1].packets)]


def ingested(url: Path, spread: Spread, **options: Any) -> dict[str, Any]:
    return ingest(nights(), str(url), spread=spread, **SIZES, **options)


@pytest.mark.parametrize(("workers", "commit_bytes"), [(1, 1 << 30), (3, 1 << 30), (3, 2 << 20)])
def test_ingest_elsewhere_writes_the_same_bytes(tmp_path: Path, workers: int, commit_bytes: int) -> None:
    here = ingested(tmp_path / "here", Here(), commit_bytes=commit_bytes)
    spread = Elsewhere(workers)
    there = ingested(tmp_path / "there", spread, commit_bytes=commit_bytes)
    assert there == here
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert not list((tmp_path / "there").glob(".spill*"))
    parts = len(Archive.open(str(tmp_path / "there")).parts)
    assert parts >= 3
    written = sum(count for name, count in spread.passes if name == "_write_part")
    assert written >= parts
    assert ("read_sources", 4) in spread.passes
    assert (here["snapshot"] > 1) == (commit_bytes < 1 << 30)


def test_small_sources_are_read_by_one_task(tmp_path: Path) -> None:
    sources = nights()
    for source in sources:
        source.n_bytes = 24 << 20
    spread = Elsewhere(4)
    ingest(sources, str(tmp_path / "there"), spread=spread, **SIZES)
    assert ("read_sources", 2) in spread.passes
    assert verify(str(tmp_path / "there"), deep=True)["ok"]


def test_compaction_elsewhere_writes_the_same_bytes(tmp_path: Path) -> None:
    answers = []
    for name, spread in (("here", Here()), ("there", Elsewhere(3))):
        for source in nights():
            ingest([source], str(tmp_path / name), **SIZES)
        answers.append(compact(str(tmp_path / name), full=True, spread=spread, **SIZES))
    assert answers[0] == answers[1]
    assert answers[0]["parts_after"] >= 3
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert verify(str(tmp_path / "there"), deep=True)["ok"]


def test_on_an_object_store_rows_pass_from_process_to_process(
    tmp_path: Path, s3_url: str, s3_options: dict[str, Any]
) -> None:
    url = f"{s3_url}/archive"
    here = ingested(tmp_path / "here", Here())
    there = ingest(nights(), url, spread=Elsewhere(3), storage_options=s3_options, **SIZES)
    assert there == here
    run = write_run(tmp_path / "run", object_names(30))
    build_catalog(str(run), f"{s3_url}/catalogue", rows_per_part=40, storage_options=s3_options)
    export_catalog(
        f"{s3_url}/catalogue",
        f"{s3_url}/hats",
        "hats",
        horizon="full",
        storage_options=s3_options,
        spread=Elsewhere(2),
    )
    stored = Store(s3_url, s3_options)
    names = stored.walk()
    assert not [name for name in names if "spill" in name or name.endswith(".rows")]
    build_catalog(str(run), str(tmp_path / "catalogue"), rows_per_part=40)
    export_catalog(str(tmp_path / "catalogue"), str(tmp_path / "hats"), "hats", horizon="full")
    for folder, where in (("archive", "here"), ("hats", "hats")):
        expected = tree(tmp_path / where)
        found = {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}
        assert found == set(expected)
        assert {name: digest128(stored.read_bytes(f"{folder}/{name}")) for name in found} == expected


class Lying(Source):
    """Gives another number of packets than it says."""

    def batches(self) -> Any:
        for batch in super().batches():
            batch.packets_in += 1
            yield batch


def test_what_is_on_its_way_is_removed_when_a_source_fails(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="gave 5 alerts"):
        ingest(
            [*nights(), Lying("bad", night_of(1, range(5)))],
            str(tmp_path / "a"),
            spread=Elsewhere(2),
            **SIZES,
        )
    assert {path.name for path in (tmp_path / "a").rglob("*") if path.is_file()} == {"archive.json"}
