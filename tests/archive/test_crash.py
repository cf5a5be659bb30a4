"""SIGKILL at every kind of moment: the archive stays readable, the rerun completes it to the same bytes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.snapshot import load_snapshot
from applecider_batch.archive.verify import verify
from applecider_batch.storage import Store
from tests.archive.packet_maker import Packet, Source, bad_packet, night_of
from tests.archive.trees import everything, tree
from tests.killed import ENVIRONMENT, killed_in

_CODE = """
from applecider_batch.archive.compact import compact
from tests.archive.test_crash import ingest_second
url, verb = sys.argv[1:]
ingest_second(url) if verb == "ingest" else compact(url, full=True)
"""


def ingest_first(url: str) -> None:
    """What is in the archive before."""
    ingest([Source("s0", night_of(3, range(40)))], url)


def ingest_second(url: str) -> None:
    """What is killed: it supersedes a packet and sets one aside, in several parts."""
    packets = [
        *night_of(4, range(120)),
        Packet("ZTF20a000001", 3, note="x", forced=[(n, 1.0) for n in range(3)]),
    ]
    source = Source("s1", packets, [bad_packet("s1", "x.avro")])
    ingest([source], url, memory_bytes=1 << 20, part_bytes=3 << 20)


def _kill(url: Path, verb: str, moment: str, count: int) -> None:
    killed_in(_CODE, "*", moment, str(url), verb, number=count)


def _named(url: Path) -> dict[str, str]:
    """The files that the latest snapshot names."""
    return {name: digest for name, digest in tree(url).items() if not Path(name).name.startswith(".")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as it is without any kill."""
    url = tmp_path_factory.mktemp("undisturbed") / "a"
    ingest_first(str(url))
    ingest_second(str(url))
    return url


# A part's files appear one by one (os.replace), the snapshot last (os.link): call 9 is in the second part.
@pytest.mark.parametrize(("moment", "count"), [("before", 1), ("after", 4), ("before", 9), ("after", 9)])
def test_ingest_killed(tmp_path: Path, undisturbed: Path, moment: str, count: int) -> None:
    url = tmp_path / "a"
    ingest_first(str(url))
    before = everything(url)
    assert count < _calls_to_commit(undisturbed)
    _kill(url, "ingest", moment, count)
    assert load_snapshot(Store(url)).id == 1
    assert everything(url) == before
    assert verify(str(url), deep=True)["problems"] == []
    ingest_second(str(url))
    assert verify(str(url), deep=True)["problems"] == []
    assert _named(url) == _named(undisturbed)
    assert everything(url) == everything(undisturbed)
    gc(str(url), keep=2)
    assert tree(url) == tree(undisturbed)


def _calls_to_commit(undisturbed: Path) -> int:
    """Files of the second ingest's parts, of its changes and its snapshot: the commit is the last call."""
    snapshot = load_snapshot(Store(undisturbed))
    return sum(len(part.tables) + 1 for part in snapshot.parts[1:]) + 2


@pytest.mark.parametrize(("moment", "committed"), [("before", False), ("after", True)])
def test_ingest_killed_at_its_commit(tmp_path: Path, undisturbed: Path, moment: str, committed: bool) -> None:
    url = tmp_path / "a"
    ingest_first(str(url))
    before = everything(url)
    _kill(url, "ingest", moment, _calls_to_commit(undisturbed))
    assert load_snapshot(Store(url)).id == 1 + committed
    assert everything(url) == (everything(undisturbed) if committed else before)
    ingest_second(str(url))
    assert load_snapshot(Store(url)).id == 2
    assert _named(url) == _named(undisturbed)


@pytest.mark.parametrize(("moment", "count"), [("before", 1), ("after", 5), ("before", 7), ("after", 7)])
def test_compaction_killed(tmp_path: Path, undisturbed: Path, moment: str, count: int) -> None:
    url = tmp_path / "a"
    ingest_first(str(url))
    ingest_second(str(url))
    _kill(url, "compact", moment, count)
    committed = (moment, count) == ("after", 7)  # 5 tables, the index, the snapshot
    assert load_snapshot(Store(url)).id == 2 + committed
    assert everything(url) == everything(undisturbed)
    assert verify(str(url), deep=True)["problems"] == []
    compact(str(url), full=True)
    gc(str(url))
    assert load_snapshot(Store(url)).id == 3
    assert everything(url) == everything(undisturbed)
    assert load_snapshot(Store(url)).logical_digest == load_snapshot(Store(undisturbed)).logical_digest
    assert verify(str(url), deep=True)["problems"] == []
    assert not list(url.rglob(".*.tmp"))


def test_ingest_killed_while_it_reads(tmp_path: Path, undisturbed: Path) -> None:
    url = tmp_path / "a"
    ingest_first(str(url))
    code = (
        "import sys, time\n"
        "from tests.archive import packet_maker, test_crash\n"
        "original = packet_maker.Source.batches\n"
        "def slow(self):\n"
        "    for batch in original(self):\n"
        "        yield batch\n"
        "        print('read', flush=True); time.sleep(60)\n"
        "packet_maker.Source.batches = slow\n"
        "test_crash.ingest_second(sys.argv[1])\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(url)],
        stdout=subprocess.PIPE,
        env={**ENVIRONMENT, "TMPDIR": str(temporary)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"read\n"
        time.sleep(0.1)
        process.kill()
    assert load_snapshot(Store(url)).id == 1
    assert list(temporary.iterdir())
    ingest_second(str(url))
    assert _named(url) == _named(undisturbed)
