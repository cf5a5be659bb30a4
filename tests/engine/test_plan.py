from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from applecider_batch.digest import HASH64_END
from applecider_batch.engine.plan import Plan, checked_horizons, cut_shards, differences
from applecider_batch.errors import UsageError, UserError
from tests.engine import fakes


@given(st.lists(st.integers(0, HASH64_END - 1), max_size=80), st.integers(1, 30))
def test_shards_cover_all_hashes_and_are_balanced(hashes: list[int], per_shard: int) -> None:
    array = np.array(hashes, np.uint64)
    shards = cut_shards(array, np.full(len(hashes), 2), per_shard)
    assert shards[0].hash_lo == 0
    assert shards[-1].hash_hi == HASH64_END
    assert all(left.hash_hi == right.hash_lo for left, right in pairwise(shards))
    for shard in shards:
        inside = [h for h in hashes if shard.hash_lo <= h < shard.hash_hi]
        assert shard.objects == len(inside)
        assert shard.alerts == 2 * len(inside)
    if len(set(hashes)) == len(hashes):
        assert max(s.objects for s in shards) <= per_shard


def test_the_plan_survives_its_json_form(tmp_path: Path) -> None:
    plan = fakes.make_plan(fakes.write_archive(tmp_path / "a.json"))
    assert Plan.from_json(plan.to_json()) == plan
    assert len(plan.shards) == 8


def test_a_changed_plan_file_is_refused(tmp_path: Path) -> None:
    document = fakes.make_plan(fakes.write_archive(tmp_path / "a.json")).to_json()
    document["identity"]["batch_size"] = 5
    with pytest.raises(UserError, match=r"plan.json was changed"):
        Plan.from_json(document)
    with pytest.raises(UserError, match=r"plan.json is damaged"):
        Plan.from_json({"format": document["format"]})


def test_run_id_follows_from_the_identity_alone(tmp_path: Path) -> None:
    plan = fakes.make_plan(fakes.write_archive(tmp_path / "a.json"))
    assert replace(plan, archive_url="elsewhere", snapshot_id=9).run_id == plan.run_id
    for key, value in {"threads": 2, "batch_size": 8, "dtype": "float16", "horizons": [3.0]}.items():
        assert fakes.make_plan(plan.archive_url, **{key: value}).run_id != plan.run_id


def test_differences_are_named(tmp_path: Path) -> None:
    old = fakes.make_plan(fakes.write_archive(tmp_path / "a.json")).identity
    new = {**old, "horizons": [3.0, 10.0], "models": "digest-other"}
    said = differences(old, new)
    assert said == [
        "the horizons (the run has 3,full, now 3,10)",
        "the model set (the run has digest-tiny, now digest-other)",
    ]
    assert differences(old, dict(old)) == []


def test_horizons_are_sorted_once_each_full_last() -> None:
    assert checked_horizons([None, 30, 3, 3.0]) == [3.0, 30.0, None]
    assert checked_horizons([10]) == [10.0]


@pytest.mark.parametrize("given_days", [[], [0.0], [-3.0], [float("nan")], [float("inf")]])
def test_wrong_horizons_are_refused(given_days: list[float]) -> None:
    with pytest.raises(UsageError, match="horizon"):
        checked_horizons(given_days)
