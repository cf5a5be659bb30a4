"""The leak audit: silent on a clean run, loud on a leaky row and on leaky features."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from applecider_batch.cli.main import run as command
from applecider_batch.engine import api
from applecider_batch.engine.audit import audit_run
from applecider_batch.engine.task_spec import Rooms, real_rooms
from applecider_batch.errors import UserError
from applecider_batch.schema import load_answers
from applecider_batch.storage import Store
from tests.engine.conftest import Inputs


@pytest.fixture(scope="module")
def run(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("audited") / "run")
    api.classify(
        inputs.archive, inputs.models, folder, horizons=[3.0, 10.0, None], objects_per_shard=10,
        progress=False,
    )  # fmt: skip
    return folder


def test_a_clean_run(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["catalog", "audit", run, "--shards", "99", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == set(load_answers()["catalog audit"])
    assert (answer["ok"], answer["leaks"], answer["differences"]) == (True, 0, 0)
    assert len(answer["shards_audited"]) == answer["shards"] > 1
    files = [pq.read_table(path) for path in Path(run, "data").glob("*.parquet")]
    assert answer["rows_compared"] == sum(table.num_rows for table in files)
    assert answer["rows_at_a_wall"] == sum(len(pc.drop_null(table.column("horizon_days"))) for table in files)
    one = audit_run(run, shards=1, seed=3)
    assert len(one["shards_audited"]) == 1


def test_a_leaky_row_is_seen(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The row of 3 days takes the full history's count of detections and its probability."""
    run = shutil.copytree(run, str(tmp_path / "run"))
    for path in Path(run, "commits").glob("*.json"):
        record = json.loads(path.read_text())
        table = pq.read_table(Path(run, record["data_file"]))
        rows = table.to_pylist()
        full = {(r["objectId"], r["episode"]): r for r in rows if r["horizon_days"] is None}
        early = next(
            (r for r in rows if r["horizon_days"] == 3.0
             and full[r["objectId"], r["episode"]]["n_det"] != r["n_det"]), None
        )  # fmt: skip
        if early is not None:
            break
    assert early is not None
    early.update({name: full[early["objectId"], early["episode"]][name] for name in ("n_det", "prob_sni")})
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, table.schema), buffer)
    Path(run, record["data_file"]).write_bytes(buffer.getvalue())
    record["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    path.write_text(json.dumps(record))
    assert command(["catalog", "audit", run, "--shards", "99", "--format", "json"]) == 4
    answer = json.loads(capsys.readouterr().out)
    assert (answer["leaks"], answer["differences"]) == (0, 1)
    assert f"{early['objectId']}, episode {early['episode']}, 3 d" in answer["examples"][0]
    assert "n_det" in answer["examples"][0]


def _leaky(change: Any) -> Rooms:
    """The real lower floors, with features that look at all of a shard's tables."""
    rooms = real_rooms()

    def prepare(data: Any, *rest: Any) -> Any:
        return change(data, rooms.prepare(data, *rest))

    return replace(rooms, prepare=prepare)


def _leaky_count(data: Any, prepared: Any) -> Any:
    names = data.photometry.column("objectId").to_pylist()
    total = [names.count(name) for name in prepared.rows.column("objectId").to_pylist()]
    at = prepared.rows.schema.get_field_index("n_nondet")
    field = prepared.rows.schema.field(at)
    return replace(prepared, rows=prepared.rows.set_column(at, field, pa.array(total, field.type)))


def _leaky_sequence(data: Any, prepared: Any) -> Any:
    values = np.array(prepared.photometry.values)
    values[:, 0] += np.float32(data.photometry.num_rows)
    return replace(prepared, photometry=replace(prepared.photometry, values=values))


@pytest.mark.parametrize(
    ("change", "word"), [(_leaky_count, "n_nondet"), (_leaky_sequence, "the photometry input")]
)
def test_leaky_features_are_seen(run: str, change: Any, word: str) -> None:
    answer = audit_run(run, shards=1, rooms=_leaky(change))
    assert not answer["ok"]
    assert answer["leaks"] > 0
    assert any(word in sentence for sentence in answer["examples"])


def test_the_commits_are_listed_once(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, plain = [], Store.ls
    monkeypatch.setattr(Store, "ls", lambda self, rel="": listed.append(rel) or plain(self, rel))
    assert audit_run(run, shards=1)["shards"] > 1
    assert listed.count("commits") == 1


def test_refusals(tmp_path: Path, inputs: Inputs) -> None:
    with pytest.raises(UserError, match="run"):
        audit_run(str(tmp_path / "nothing"))
