"""Three small rounds of ``make chaos``: a real cluster over a real S3 server, processes killed."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.chaos import KINDS, plan_rounds, prepared


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_rounds() -> None:
    with prepared(objects=12, nights=8, per_shard=1, seed=3) as chaos:
        for number, kills in enumerate((["driver", "model"], ["worker"], ["ingest", "node"]), 1):
            done = chaos.round(number, kills)
            assert done.kills == kills, "a process was to be killed, and the run was over"
            assert (done.same, done.duplicates, done.losses) == (True, 0, 0)
            assert done.drivers >= (2 if "driver" in kills else 1)


def test_every_kind_is_killed_equally_often() -> None:
    planned = Counter(kind for kills in plan_rounds(20, 2, 0) for kind in kills)
    assert planned == {**dict.fromkeys(KINDS, 10), "ingest": 10}
