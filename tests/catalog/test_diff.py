"""What changed between two releases, and why it can have: against a plain loop over both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.diff import COLUMNS, diff_catalogs
from applecider_batch.catalog.known import KnownList
from applecider_batch.catalog.read import read_table
from applecider_batch.errors import UsageError
from applecider_batch.schema import load_answers, load_table
from tests.catalog.synthetic import commit_table, make_rows, object_names, write_run

NAMES = object_names(80)


def _release(folder: Path, name: str, table: pa.Table, identity: dict[str, Any], **build: Any) -> str:
    """A catalogue of these rows, whose run's identity has these fields on top."""
    run = write_run(folder / f"run-{name}", NAMES[:1], shards=1)
    plan = json.loads((run / "plan.json").read_text())
    plan["identity"].update(identity)
    (run / "plan.json").write_text(json.dumps(plan))
    commit_table(run, 0, table)
    build_catalog(str(run), str(folder / name), rows_per_part=50, **build)
    return str(folder / name)


def _set(table: pa.Table, name: str, mask: np.ndarray, value: Any) -> pa.Table:
    at = table.schema.get_field_index(name)
    values = [value if m else v for m, v in zip(mask, table.column(name).to_pylist(), strict=True)]
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def _expected(old: pa.Table, new: pa.Table) -> list[tuple[Any, ...]]:
    rows = [{(r["objectId"], r["episode"], r["horizon_days"]): r for r in t.to_pylist()} for t in (old, new)]
    found = []
    for key in rows[0].keys() | rows[1].keys():
        a, b = (side.get(key) for side in rows)
        if a is None or b is None:
            found.append((*key, "row"))
        else:
            found += [(*key, c) for c in COLUMNS if a[c] != b[c]]
    return sorted(found, key=str)


def test_the_same_twice(tmp_path: Path) -> None:
    table = make_rows(NAMES)
    urls = [_release(tmp_path, name, table, {}) for name in ("a", "b")]
    answer = diff_catalogs(*urls)
    assert set(answer) == set(load_answers()["catalog diff"])
    assert answer["same_content"]
    assert answer["rows_in_both"] == table.num_rows
    assert (answer["changes"], answer["identity"]) == (0, [])


def test_every_change_and_its_causes(tmp_path: Path) -> None:
    old = make_rows(NAMES, model_set_id="first")
    new = make_rows(NAMES, seed=0, model_set_id="second")
    rng = np.random.default_rng(2)
    reclassified = rng.random(new.num_rows) < 0.2
    more_points = rng.random(new.num_rows) < 0.3
    new = _set(new, "class_top1", reclassified, "TDE")
    new = _set(new, "n_det", more_points, 99)
    new = _set(new, "known_status", rng.random(new.num_rows) < 0.1, "known")
    names = new.column("objectId").to_pylist()
    new = new.filter(pa.array([name not in NAMES[:5] for name in names]))
    old = old.filter(pa.array([name not in NAMES[50:53] for name in names]))
    a = _release(tmp_path, "a", old, {"models": "1"})
    b = _release(tmp_path, "b", new, {"models": "2"})
    answer = diff_catalogs(a, b, str(tmp_path / "changes.parquet"))
    changes = pq.read_table(tmp_path / "changes.parquet")
    assert changes.schema.equals(load_table("changes").arrow, check_metadata=False)
    listed = changes.to_pylist()
    seen = [(c["objectId"], c["episode"], c["horizon_days"], c["column"]) for c in listed]
    assert sorted(seen, key=str) == _expected(read_table(a), read_table(b))
    assert len({c["column"] for c in listed}) == 3
    vanished = sum(c["column"] == "row" and c["new"] is None for c in listed)
    assert answer["rows_vanished"] == vanished > 0
    assert answer["rows_appeared"] == sum(c["column"] == "row" and c["old"] is None for c in listed) > 0
    assert answer["changes"] == len(listed) == sum(answer["changes_by_cause"].values())
    grown = {(r["objectId"], r["horizon_days"]) for r in read_table(b).to_pylist() if r["n_det"] == 99}
    for change in listed:
        expected = ["data"] if (change["objectId"], change["horizon_days"]) in grown else []
        if change["column"] == "class_top1":
            assert change["causes"] == [*expected, "model"]
        elif change["column"] == "known_status":  # no model acts on it
            assert change["causes"] == expected
    assert answer["changes_by_cause"]["unexplained"] > 0
    assert answer["identity"] == [{"field": "models", "cause": "model", "old": "1", "new": "2"}]
    assert "SN I -> TDE" in answer["transitions"]["class_top1"]


def test_lists_act_on_the_status_alone(tmp_path: Path) -> None:
    table = make_rows(NAMES)
    row = next(r for r in table.to_pylist() if r["t0"])
    one = np.array([row["ra"]]), np.array([row["dec"]]), *(np.array([row["t0"]]) for _ in range(3))
    known = KnownList("l", "transient", "d", *one, ["S"], [None], None, 0)
    a = _release(tmp_path, "a", table, {})
    b = _release(tmp_path, "b", table, {}, known=[known])
    answer = diff_catalogs(a, b)
    assert set(answer["changes_by_column"]) == {"known_status", "tns_eligible"}
    assert set(answer["changes_by_cause"]) == {"lists"}
    assert answer["transitions"]["known_status"]["unchecked -> known"] == 4
    assert [entry["cause"] for entry in answer["identity"]] == ["lists"]


def test_refused_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="csv"):
        diff_catalogs("a", "b", str(tmp_path / "c.csv"))
