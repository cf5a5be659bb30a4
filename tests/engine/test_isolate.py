"""Objects that a shard fails with are found, set aside with their error, and the rest goes on."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.digest import HASH64_END, hash64_one
from applecider_batch.engine import api
from applecider_batch.engine.isolate import MAX_OBJECTS, Isolation
from applecider_batch.engine.plan import Shard
from applecider_batch.simulate import simulate
from tests.engine import fakes
from tests.engine.conftest import Inputs
from tests.engine.drive import drive


def rows(run: Path) -> pa.Table:
    folder = RunFolder(str(run))
    assert folder.missing == []
    return pa.concat_tables([folder.read_shard(shard) for shard in folder.shards])


def isolate(names: list[str], bad: set[str], chance: int = 0) -> Isolation:
    """Drive the halving over a shard of all hashes; the first ``chance`` trials fail whatever they hold."""
    halving = Isolation(Shard(0, 0, HASH64_END, len(names), 0), names)
    while (part := halving.trial) is not None:
        inside = {name for name in names if part.hash_lo <= hash64_one(name) < part.hash_hi}
        assert inside
        if inside & bad or halving.trials < chance:
            halving.failed(("code", "said"))
        else:
            halving.passed()
    return halving


@pytest.mark.parametrize("count", [1, 2, 3, 40, 200])
@pytest.mark.parametrize("seed", range(4))
def test_exactly_the_bad_objects_are_found(count: int, seed: int) -> None:
    draw = random.Random(seed)
    names = fakes.names(count)
    bad = set(draw.sample(names, draw.randint(1, max(1, min(count // 2, MAX_OBJECTS)))))
    halving = isolate(names, bad)
    assert set(halving.found) == bad
    assert halving.trials <= 2 * len(bad) * (count.bit_length() + 1)


def test_a_failure_by_chance_accuses_nobody() -> None:
    for chance in range(1, 6):
        assert isolate(fakes.names(40), set(), chance).found == {}


def test_too_many_bad_objects_are_no_objects_fault() -> None:
    names = fakes.names(40)
    assert isolate(names, set(names)).hopeless
    assert not isolate(names, set(names[:10])).hopeless


def test_an_object_that_raises_is_set_aside_and_the_rest_is_as_without_it(tmp_path: Path) -> None:
    archive = fakes.write_archive(tmp_path / "archive.json")
    drive("serial", archive, str(tmp_path / "clean"))
    bad = [fakes.names(40)[position] for position in (7, 8, 23)]  # 8 shards of 5; one has room for one
    fakes.write_archive(Path(archive), raise_object=dict.fromkeys(bad[:1] + bad[2:], True))
    result = drive("serial", archive, str(tmp_path / "run"))
    assert (result["state"], result["objects"], result["objects_in_error"]) == ("complete", 40, 2)
    table, clean = rows(tmp_path / "run"), rows(tmp_path / "clean")
    failed = table.filter(pc.is_valid(table.column("error_code")))
    assert failed.column("objectId").to_pylist() == [bad[0], bad[2]]
    assert set(failed.column("error_code").to_pylist()) == {"object_failed"}
    assert set(failed.column("object_error").to_pylist()) == {"ValueError: this object is poison"}
    same = ["objectId", "episode", "horizon_days", "gate", "modality_mask"]
    others = [
        t.filter(pc.invert(pc.is_in(t["objectId"], pa.array(bad)))).select(same) for t in (table, clean)
    ]
    assert others[0] == others[1]
    assert any("set aside after" in line for line in api.logs(str(tmp_path / "run")))
    # A second run of the same plan sets the same aside: the same rows.
    drive("serial", archive, str(tmp_path / "again"))
    assert rows(tmp_path / "again") == table


def test_a_set_aside_object_is_remembered_when_the_run_goes_on(tmp_path: Path) -> None:
    bad = fakes.names(40)[0]
    archive = fakes.write_archive(tmp_path / "archive.json", raise_object={bad: True})
    drive("serial", archive, str(tmp_path / "run"))
    (tmp_path / "run" / "commits" / "shard-00000.json").unlink()
    failures = len(list((tmp_path / "run" / "failures").iterdir()))
    assert drive("serial", archive, str(tmp_path / "run"))["objects_in_error"] == 1
    assert len(list((tmp_path / "run" / "failures").iterdir())) == failures, "it was not touched again"


def test_a_storage_that_fails_is_no_objects_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a row would say for good that its object cannot be classified."""
    archive, run = fakes.write_archive(tmp_path / "archive.json"), str(tmp_path / "run")
    plain, victim = fakes.FakeArchive.read_shard, fakes.names(40)[3]

    def read_shard(self: fakes.FakeArchive, *where: Any, **more: Any) -> fakes.FakeShard:
        shard = plain(self, *where, **more)
        if victim in shard.objects:
            raise OSError(errno.EIO, "Input/output error")
        return shard

    with monkeypatch.context() as patched:
        patched.setattr(fakes.FakeArchive, "read_shard", read_shard)
        done = drive("serial", archive, run)
    assert (done["shards_quarantined"], done["objects_in_error"]) == (1, 0)
    done = drive("serial", archive, run, retry_quarantined=True)
    assert (done["state"], done["objects_in_error"]) == ("complete", 0)


def test_a_damaged_stamp_costs_its_object_alone(inputs: Inputs, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    simulate(tmp_path / "survey", n_objects=16, n_nights=12, seed=3)
    ingest([str(tmp_path / "survey" / "alerts")], str(archive))
    options = {"horizons": (None,), "device": "cpu", "progress": False}
    api.classify(str(archive), inputs.models, str(tmp_path / "clean"), **options)
    file = next(path for path in archive.rglob("stamps.parquet"))
    shown = pc.drop_null(rows(tmp_path / "clean").column("candid_image"))
    stamps = pq.read_table(file, columns=["candid", "cutoutScience"])
    block = stamps.filter(pc.equal(stamps["candid"], shown[0])).column("cutoutScience")[0].as_py()
    data = bytearray(file.read_bytes())
    middle = data.index(block) + len(block) // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    file.write_bytes(data)
    result = api.classify(str(archive), inputs.models, str(tmp_path / "run"), **options)
    table, clean = rows(tmp_path / "run"), rows(tmp_path / "clean")
    failed = table.filter(pc.is_valid(table.column("error_code")))
    assert result["state"] == "complete"
    lost = clean.filter(pc.equal(clean["candid_image"], shown[0]))
    assert failed.column("objectId").to_pylist() == lost.column("objectId").to_pylist()
    assert failed.num_rows == result["objects_in_error"] > 0
    assert all("holds a damaged stamp" in said for said in failed.column("object_error").to_pylist())
    assert set(table.column("objectId").to_pylist()) == set(clean.column("objectId").to_pylist())


def test_an_archive_is_read_around_objects(inputs: Inputs) -> None:
    archive = Archive.open(inputs.archive)
    whole = archive.read_shard(0, HASH64_END)
    assert archive.object_names(0, HASH64_END) == whole.objects
    left_out = [whole.objects[0], whole.objects[7], whole.objects[-1]]
    around = archive.read_shard(0, HASH64_END, without=[hash64_one(name) for name in left_out])
    assert around.objects == [name for name in whole.objects if name not in left_out]
    for name in ("alerts", "photometry", "spectra"):
        table = getattr(whole, name)
        kept = table.filter(pc.invert(pc.is_in(table["objectId"], pa.array(left_out))))
        assert getattr(around, name).equals(kept)
