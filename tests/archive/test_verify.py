from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.verify import info, verify
from applecider_batch.digest import digest128
from applecider_batch.storage import json_bytes
from tests.archive.packet_maker import Packet, Source, bad_packet, night_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("verify") / "a"
    ingest([Source("s0", night_of(3, range(40)), [bad_packet("s0", "x.avro")])], str(url))
    ingest(
        [Source("s1", [*night_of(4, range(40)), Packet("ZTF20a000001", 3, note="x", n_stamps=0)])], str(url)
    )
    return url


def _snapshot(url: Path) -> Path:
    return url / "snapshots" / "00000002.json"


def _part(url: Path) -> Path:
    part_id = json.loads(_snapshot(url).read_text())["parts"][1]["part_id"]
    return url / "parts" / part_id


def _restate(url: Path, name: str) -> None:
    """Make the snapshot state the size and digest that a changed file has now."""
    value = json.loads(_snapshot(url).read_text())
    data = (_part(url) / f"{name}.parquet").read_bytes()
    value["parts"][1]["tables"][name] |= {"bytes": len(data), "digest": digest128(data)}
    _snapshot(url).write_bytes(json_bytes(value))


def _rewrite(url: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a file and hide it from the digests."""
    path = _part(url) / f"{name}.parquet"
    table = change(pq.read_table(path))
    pq.write_table(table, path, row_group_size=64 if name == "stamps" else 1 << 20)
    _restate(url, name)


def _set(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(
        index, table.schema.field(column), pa.array(values, table.schema.field(column).type)
    )


def _swap(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def _double(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, bool]] = {
    "a flipped byte": (
        lambda url: (_part(url) / "stamps.parquet").write_bytes(
            (_part(url) / "stamps.parquet").read_bytes()[:-50]
            + b"x"
            + (_part(url) / "stamps.parquet").read_bytes()[-49:]
        ),
        "stamps.parquet is damaged",
        False,
    ),
    "a cut file": (
        lambda url: (_part(url) / "alerts.parquet").write_bytes(
            (_part(url) / "alerts.parquet").read_bytes()[:100]
        ),
        "alerts.parquet is damaged: it has 100 bytes",
        False,
    ),
    "a missing file": (
        lambda url: (_part(url) / "photometry.parquet").unlink(),
        "photometry.parquet is missing",
        False,
    ),
    "a changed index": (
        lambda url: (_part(url) / "index.json").write_text("{}"),
        "index.json' is not the file that the snapshot names",
        False,
    ),
    "a lost row": (
        lambda url: _rewrite(url, "alerts", lambda t: t.slice(1)),
        "alerts.parquet has row groups",
        False,
    ),
    "rows out of order": (lambda url: _rewrite(url, "alerts", _swap), "is not sorted by", False),
    "a packet twice": (
        lambda url: _rewrite(url, "alerts", _double),
        "alerts have a candid that another alert has",
        False,
    ),
    "another candid": (
        lambda url: _rewrite(url, "alerts", lambda t: _set(t, "candid", 3, 7)),
        "the snapshot states",
        False,
    ),
    "another object": (
        lambda url: _rewrite(url, "alerts", lambda t: _set(t, "objectId", 3, "ZTF20zz")),
        "has a hash64 that is not its objectId's",
        False,
    ),
    "a stamp of another shape": (
        lambda url: _rewrite(url, "stamps", lambda t: _set(t, "heightScience", 2, 62)),
        "1 Science stamps of row group 0 do not have the pixels of their shape",
        True,
    ),
    "a stamp without alert": (
        lambda url: _rewrite(url, "stamps", lambda t: _set(t, "packet_digest", 2, "0" * 32)),
        "stamps from hash 0000000000000000 on belong to no alert",
        True,
    ),
    "a point twice": (
        lambda url: _rewrite(url, "photometry", _double),
        "are not de-duplicated",
        True,
    ),
    "wrong counts": (
        lambda url: _snapshot(url).write_text(
            _snapshot(url).read_text().replace('"packets_in": 82', '"packets_in": 83')
        ),
        "83 packets came in|sources' counts sum to",
        False,
    ),
}


def test_a_sound_archive_passes(sound: Path) -> None:
    for deep in (False, True):
        result = verify(str(sound), deep)
        assert result["ok"]
        assert result["problems"] == []
        assert result["rows"] == {
            "alerts": 80,
            "duplicates": 1,
            "photometry": 480,
            "quarantine": 1,
            "stamps": 80,
        } | {"photometry": result["rows"]["photometry"]}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(sound: Path, tmp_path: Path, damage: str) -> None:
    make, message, only_deep = DAMAGES[damage]
    url = tmp_path / "a"
    shutil.copytree(sound, url)
    make(url)
    result = verify(str(url), deep=True)
    assert not result["ok"]
    assert re.search(message, "\n".join(result["problems"])), result["problems"]
    if not only_deep:
        assert not verify(str(url))["ok"]


def test_info_says_what_is_there(sound: Path) -> None:
    value = info(str(sound))
    assert value["counts"] == {"packets_in": 82, "stored": 80, "duplicates": 1, "quarantined": 1}
    assert value["nights"] == ["20200603", "20200604"]
    assert (value["snapshot"], value["parts"], value["runs"]) == (2, 2, 2)
    assert value["schema_versions"] == {"before 2.0": 80}
    assert [entry["id"] for entry in value["chain"]] == [2, 1]
    assert [source["name"] for source in value["sources"]] == ["s0.tar.gz", "s1.tar.gz"]
    assert value["bytes"]["stamps"] > 80 * 30_000
