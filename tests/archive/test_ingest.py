from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import ArchiveError, load_snapshot
from applecider_batch.archive.verify import verify
from applecider_batch.errors import InternalError, StorageError
from applecider_batch.storage import Store
from tests.archive.packet_maker import Packet, Source, bad_packet, batch_of, candid_of, night_of
from tests.archive.trees import everything, tree


def nights(count: int, objects: int = 40) -> list[Source]:
    return [Source(f"night{n}", night_of(n, range(n % 3, objects, 1 + n % 2))) for n in range(count)]


def assert_sound(url: Path) -> None:
    result = verify(str(url), deep=True)
    assert result["ok"], result["problems"]


def test_counts_add_up_and_everything_is_there(tmp_path: Path) -> None:
    sources = nights(3)
    sources[1].bad = [bad_packet("night1", "a.avro"), bad_packet("night1", "b.avro")]
    expected = sum(len(source.packets) for source in sources)
    result = ingest(sources, str(tmp_path / "a"))
    assert result["packets_in"] == expected + 2
    assert (result["stored"], result["duplicates"], result["quarantined"]) == (expected, 0, 2)
    archive = Archive.open(str(tmp_path / "a"))
    shard = archive.read_shard(0, 1 << 64, stamps=True)
    assert sorted(shard.alerts.column("candid").to_pylist()) == sorted(
        p.key() for s in sources for p in s.packets
    )
    assert shard.stamps is not None
    assert shard.stamps.num_rows == expected
    assert sorted(archive.quarantine().column("member").to_pylist()) == ["a.avro", "b.avro"]
    assert archive.snapshot.jd_max == max(p.jd for s in sources for p in s.packets)
    assert_sound(tmp_path / "a")


def test_a_second_ingest_changes_no_byte(tmp_path: Path) -> None:
    first = ingest(nights(3), str(tmp_path / "a"))
    before = tree(tmp_path / "a")
    again = ingest(nights(3), str(tmp_path / "a"))
    assert tree(tmp_path / "a") == before
    assert not again["changed"]
    assert again["already"] == ["night0.tar.gz", "night1.tar.gz", "night2.tar.gz"]
    assert (again["snapshot"], again["logical_digest"]) == (first["snapshot"], first["logical_digest"])
    assert again["packets_in"] == again["stored"] == 0


def test_a_source_given_twice_is_read_once(tmp_path: Path) -> None:
    source = nights(1)[0]
    result = ingest([source, source], str(tmp_path / "a"))
    assert result["packets_in"] == len(source.packets)
    assert result["already"] == [source.name]


@pytest.mark.parametrize("packets", [[], [Packet("ZTF20a", 1)]])
def test_an_empty_night_is_remembered_and_harmless(tmp_path: Path, packets: list[Packet]) -> None:
    ingest([Source("full", packets)] if packets else [], str(tmp_path / "a"))
    result = ingest([Source("empty")], str(tmp_path / "a"))
    assert (result["packets_in"], result["stored"], result["changed"]) == (0, 0, True)
    assert Archive.open(str(tmp_path / "a")).snapshot.source_ids >= {"empty"}
    assert len(everything(tmp_path / "a")["alerts"]) == len(packets)
    assert not ingest([Source("empty")], str(tmp_path / "a"))["changed"]
    assert_sound(tmp_path / "a")


def versions_of_one_candid() -> list[Packet]:
    """From best to worst: stamps, then forced photometry, then history, then the smaller digest."""
    with_stamps = Packet("ZTF20x", 5, prv=[(4, 0)])
    forced = Packet("ZTF20x", 5, n_stamps=0, forced=[(3, 1.0)], prv=[])
    history = Packet("ZTF20x", 5, n_stamps=0, prv=[(4, 0), (3, -1)])
    plain = sorted(
        (Packet("ZTF20x", 5, n_stamps=0, prv=[(4, 0)], note=note) for note in ("a", "b")), key=Packet.digest
    )
    return [with_stamps, forced, history, *plain]


@pytest.mark.parametrize("split", ["one source", "one ingest", "many ingests"])
def test_of_equal_candids_the_most_complete_wins_in_any_order(tmp_path: Path, split: str) -> None:
    ranked = versions_of_one_candid()
    other = night_of(4, range(5))
    seen = []
    for number, order in enumerate(itertools.islice(itertools.permutations(range(len(ranked))), 0, 120, 31)):
        packets = [ranked[i] for i in order]
        url = tmp_path / f"{number}"
        if split == "one source":
            results = [ingest([Source("s", [*packets, *other], batch_size=2)], str(url))]
        else:
            sources = [Source(f"s{i}", [ranked[i], *(other if i == 0 else [])]) for i in order]
            groups = [sources] if split == "one ingest" else [[source] for source in sources]
            results = [ingest(group, str(url)) for group in groups]
        assert sum(result["stored"] for result in results) == 1 + len(other)
        assert sum(result["duplicates"] for result in results) == len(ranked) - 1
        archive = Archive.open(str(url))
        shard = archive.read_object("ZTF20x")
        assert shard.alerts.column("packet_digest").to_pylist() == [ranked[0].digest()]
        assert shard.stamps is not None
        assert shard.stamps.column("packet_digest").to_pylist() == [ranked[0].digest()]
        # The points of the packets that lost are there, too.
        assert {(p["origin"], p["jd"]) for p in shard.photometry.to_pylist()} >= {
            (2, 2_459_003.5),
            (1, 2_459_003.5),
        }
        lost = list(archive.read_duplicates(0, 1 << 64).to_pylist())
        assert sorted(row["packet_digest"] for row in lost) == sorted(p.digest() for p in ranked[1:])
        assert_sound(url)
        seen.append((archive.snapshot.logical_digest, everything(url)))
    assert all(item == seen[0] for item in seen[1:])


def test_the_same_packet_from_another_source_is_a_duplicate_without_a_record(tmp_path: Path) -> None:
    packets = night_of(1, range(20))
    ingest([Source("one", packets)], str(tmp_path / "a"))
    before = everything(tmp_path / "a")
    digest = load_snapshot(Store(tmp_path / "a")).logical_digest
    result = ingest([Source("copy", [*packets, *night_of(1, range(20, 22))])], str(tmp_path / "a"))
    assert (result["stored"], result["duplicates"]) == (2, 20)
    archive = Archive.open(str(tmp_path / "a"))
    assert archive.read_duplicates(0, 1 << 64).num_rows == 0
    assert archive.snapshot.logical_digest != digest
    # Nothing of what was known is written again.
    assert [part.rows("alerts") for part in archive.snapshot.parts] == [20, 2]
    assert archive.snapshot.parts[1].rows("photometry") <= 2 * 12
    after = everything(archive)
    assert [row for row in after["alerts"] if row in before["alerts"]] == before["alerts"]
    assert_sound(tmp_path / "a")


def test_one_candid_under_two_object_names_is_stored_once(tmp_path: Path) -> None:
    shared = candid_of("shared", 3)
    worse = Packet("ZTF20first", 3, candid=shared, n_stamps=0)
    better = Packet("ZTF20second", 3, candid=shared)
    digests = set()
    for name, order in (("a", [worse, better]), ("b", [better, worse])):
        for number, packet in enumerate(order):
            ingest([Source(f"{name}{number}", [packet])], str(tmp_path / name))
        archive = Archive.open(str(tmp_path / name))
        assert archive.read_alerts(0, 1 << 64).column("objectId").to_pylist() == ["ZTF20second"]
        # The name that lost keeps its photometry, so it stays an object.
        assert set(archive.read_shard(0, 1 << 64).objects) == {"ZTF20first", "ZTF20second"}
        assert_sound(tmp_path / name)
        digests.add(archive.snapshot.logical_digest)
    assert len(digests) == 1


def test_memory_and_part_sizes_change_no_content(tmp_path: Path) -> None:
    sources = nights(6, objects=60)
    ingest(sources, str(tmp_path / "large"))
    limit = 4 << 20
    ingest(sources, str(tmp_path / "small"), memory_bytes=1 << 20, part_bytes=limit, commit_bytes=8 << 20)
    small = load_snapshot(Store(tmp_path / "small"))
    assert small.id > 1  # committed several times on the way
    assert max(Counter(part.run for part in small.parts).values()) > 1  # an ingest in several parts
    # Ranges are cut by what lies in them on average, and an object of these, 230 kB, is never cut.
    assert all(table.bytes <= limit + (1 << 20) for part in small.parts for table in part.tables.values())
    assert everything(tmp_path / "small") == everything(tmp_path / "large")
    assert small.logical_digest == load_snapshot(Store(tmp_path / "large")).logical_digest
    assert_sound(tmp_path / "small")


def test_memory_does_not_grow_with_the_night(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import pyarrow as pa\n"
        "from applecider_batch.archive.ingest import ingest\n"
        "from tests.archive.packet_maker import Source, night_of\n"
        "source = Source('s', night_of(1, range(int(sys.argv[3]))), batch_size=20)\n"
        "ingest([source], sys.argv[2], memory_bytes=8 << 20)\n"
        "print(pa.default_memory_pool().max_memory())\n"
    )
    peaks = []
    for count in (300, 1500):
        command = [
            sys.executable,
            "-c",
            code,
            str(Path(__file__).parents[2]),
            str(tmp_path / str(count)),
            str(count),
        ]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout))
    # 1,500 packets hold 72 MB of stamps; four times more packets than the first do not take more memory.
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 48 << 20


def test_any_order_and_grouping_of_nights_gives_the_same(tmp_path: Path) -> None:
    seen = []
    for seed in range(3):
        sources = nights(5)
        random.Random(seed).shuffle(sources)
        cut = 1 + seed
        for group in (sources[:cut], sources[cut:]):
            ingest(group, str(tmp_path / f"{seed}"))
        archive = Archive.open(str(tmp_path / f"{seed}"))
        counts = archive.snapshot.counts
        seen.append((archive.snapshot.logical_digest, counts, archive.snapshot.jd_max, everything(archive)))
    assert seen[0] == seen[1] == seen[2]


class Meddling(Source):
    """A source that lets another ingest finish while it is being read."""

    def __init__(self, meddle: Any, *args: Any) -> None:
        super().__init__(*args)
        self.meddle = meddle

    def batches(self) -> Any:
        yield from super().batches()
        self.meddle()


def test_two_ingests_at_once_both_arrive(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    mine, theirs = night_of(1, range(20)), [*night_of(1, range(10), note="other"), *night_of(2, range(20))]
    source = Meddling(lambda: ingest([Source("theirs", theirs)], url), "mine", mine)
    ingest([source], url)
    ingest([Source("mine", mine), Source("theirs", theirs)], str(tmp_path / "b"))
    assert everything(url) == everything(tmp_path / "b")
    both = [load_snapshot(Store(tmp_path / name)) for name in "ab"]
    assert both[0].logical_digest == both[1].logical_digest
    assert both[0].counts == both[1].counts
    assert_sound(tmp_path / "a")


def test_a_commit_between_looking_and_committing_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    url = str(tmp_path / "a")
    mine, theirs = night_of(1, range(20)), night_of(1, range(10), note="other")
    original, done = Store.create_only, []

    def slow(self: Store, rel: str, data: bytes) -> None:
        if rel.startswith("snapshots/") and not done:
            done.append(rel)
            ingest([Source("theirs", theirs)], url)
        original(self, rel, data)

    monkeypatch.setattr(Store, "create_only", slow)
    result = ingest([Source("mine", mine)], url)
    assert done
    assert result["snapshot"] == 2
    assert len(everything(url)["alerts"]) == 20
    assert_sound(tmp_path / "a")


def test_two_ingests_of_the_same_source_are_told(tmp_path: Path) -> None:
    url = str(tmp_path / "a")
    packets = night_of(1, range(5))
    source = Meddling(lambda: ingest([Source("mine", packets)], url), "mine", packets)
    with pytest.raises(ArchiveError, match=r"Another process ingested mine.tar.gz"):
        ingest([source], url)
    assert len(everything(url)["alerts"]) == 5
    assert_sound(tmp_path / "a")


def test_a_batch_that_does_not_add_up_is_our_fault(tmp_path: Path) -> None:
    class Lying(Source):
        def batches(self) -> Any:
            batch = batch_of(self.packets)
            batch.packets_in += 1
            yield batch

    with pytest.raises(InternalError, match=r"of 2 packets"):
        ingest([Lying("s", [Packet("ZTF20a", 1)])], str(tmp_path / "a"))


def test_rows_of_another_source_are_our_fault(tmp_path: Path) -> None:
    """They would count as duplicates."""

    class Mixed(Source):
        def batches(self) -> Any:
            yield from Source("another", self.packets).batches()

    with pytest.raises(InternalError, match="The parts hold"):
        ingest([Mixed("s", [Packet("ZTF20a", 1)])], str(tmp_path / "a"))


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ArchiveError, match=r"not an archive: it holds 1 other entries \(thesis.tex\)"):
        ingest(nights(1), str(tmp_path))
    assert tree(tmp_path).keys() == {"thesis.tex"}


def test_a_file_as_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(ArchiveError, match=r"is a file, not an archive"):
        ingest(nights(1), str(tmp_path / "a"))


@pytest.mark.parametrize("function", ["link", "replace"])
def test_no_space_left_is_a_sentence_and_the_archive_is_as_before(
    tmp_path: Path, monkeypatch: Any, function: str
) -> None:
    url = tmp_path / "a"
    ingest(nights(1), str(url))
    before, digest = everything(url), load_snapshot(Store(url)).logical_digest

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"applecider_batch.storage.os.{function}", full)
        with pytest.raises(StorageError, match=r"No space left: '.*' could not be written"):
            ingest(nights(2)[1:], str(url))
    assert everything(url) == before
    assert load_snapshot(Store(url)).logical_digest == digest
    assert_sound(url)
    result = ingest(nights(2)[1:], str(url))
    assert result["changed"]
    assert result["stored"] > 0
    assert_sound(url)


def test_a_full_temporary_folder_is_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    from applecider_batch.archive import spill

    def full(self: Any, name: str, tables: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill.Spill, "_write_run", full)
    with pytest.raises(StorageError, match=r"spill file in .* could not be written.*TMPDIR"):
        ingest(nights(1), str(tmp_path / "a"), memory_bytes=1 << 20)


def test_a_read_only_target_is_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    url = tmp_path / "a"
    ingest(nights(1), str(url))
    before = tree(url)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("applecider_batch.storage.open", denied, raising=False)
    with pytest.raises(StorageError, match=r"Permission denied: '.*' could not be written"):
        ingest(nights(2)[1:], str(url))
    monkeypatch.undo()
    assert tree(url) == before


def test_the_spill_is_removed_whatever_happens(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    class Broken(Source):
        def batches(self) -> Any:
            yield batch_of(self.packets)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"broken"):
        ingest([Broken("s", night_of(1, range(3)))], str(tmp_path / "a"))
    ingest(nights(1), str(tmp_path / "a"))
    assert not list((tmp_path / "tmp").iterdir())
