"""A shard's task before its first shard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from applecider_batch.engine import api
from tests.engine.conftest import Inputs

FIRST_SHARD = """
import sys
from applecider_batch.engine.isolate import Attempt
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.shard_task import ShardTask
from applecider_batch.engine.task_spec import TaskSpec
from applecider_batch.storage import Store

store = Store(sys.argv[1])
plan = RunFolder(store).require_plan()
task = ShardTask(TaskSpec(plan, store))
before = task.folder.store.ls()
task.warm_up()
assert task.folder.store.ls() == before
known = set(sys.modules)
prepared = task.make_ready(plan.shards[0], Attempt("first")).prepared
table = task.assemble(plan.shards[0], prepared, task.infer(plan.shards[0], prepared, {}))
print(table.num_rows, *(set(sys.modules) - known))
"""


@pytest.mark.parametrize("region", [None, (150.0, 20.0, 90.0)])
def test_the_first_shard_imports_nothing_after_the_warm_up(
    inputs: Inputs, tmp_path: Path, region: tuple[float, float, float] | None
) -> None:
    run = tmp_path / "run"
    api.classify(inputs.archive, inputs.models, str(run), region=region, device="cpu", progress=False)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_SHARD, str(run)], capture_output=True, text=True, check=True, timeout=120
    )
    record = json.loads((run / "commits" / "shard-00000.json").read_text())
    assert done.stdout.split() == [str(record["rows"])]
