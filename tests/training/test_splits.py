"""No object on two sides, whatever the rule, and the same sides in any order."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from applecider_batch.errors import InternalError, UserError
from applecider_batch.training.splits import FOLDS, RULES, SplitRule, check_no_leak, split_parts


def _objects(n: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    owner = rng.integers(0, n // 2, n)  # several names of one object
    ra, dec = rng.uniform(0, 360, n // 2)[owner], rng.uniform(-60, 60, n // 2)[owner]
    return {
        "group": np.array([f"key{o}" for o in owner], object),
        "label": owner % 3,
        "t0": 2459000 + rng.uniform(0, 900, n),
        "ra": ra,
        "dec": dec,
    }


@pytest.mark.parametrize("rule", RULES)
def test_groups_stay_together_in_any_order(rule: str) -> None:
    data = _objects()
    part = split_parts(SplitRule(rule), **data)
    assert set(part.tolist()) == {0, 1, 2}
    by_group = {g: set(part[data["group"] == g].tolist()) for g in set(data["group"].tolist())}
    assert all(len(parts) == 1 for parts in by_group.values())
    order = np.random.default_rng(2).permutation(len(part))
    shuffled = split_parts(SplitRule(rule), **{k: v[order] for k, v in data.items()})
    assert (shuffled == part[order]).all()


def test_names_of_one_place_go_together() -> None:
    n = 60
    ra = np.linspace(10, 300, n).repeat(2)
    dec = np.zeros(2 * n)
    dec[1::2] = 1.5 / 3600
    group = np.array([f"n{i}" for i in range(2 * n)], object)
    label = np.zeros(2 * n, np.int64)
    part = split_parts(SplitRule(), group, label, ra=ra, dec=dec)
    assert (part[::2] == part[1::2]).all()
    dec[1::2] = 5.0 / 3600
    apart = split_parts(SplitRule(), group, label, ra=ra, dec=dec)
    assert (apart[::2] != apart[1::2]).any()


def test_stratified_shares() -> None:
    label = np.repeat([0, 1], [1000, 20])
    group = np.array([f"o{i}" for i in range(1020)], object)
    part = split_parts(SplitRule(validation=0.1, test=0.2), group, label)
    assert [(part[label == 1] == p).sum() for p in range(3)] == [14, 2, 4]
    other = split_parts(SplitRule(seed=1, validation=0.1, test=0.2), group, label)
    assert (other != part).any()


def test_dates_are_in_order_and_hash_is_the_rule() -> None:
    data = _objects()
    data["group"] = np.array([f"o{i}" for i in range(400)], object)
    data |= {"ra": np.full(400, np.nan), "dec": np.full(400, np.nan)}
    part = split_parts(SplitRule("date"), **data)
    assert data["t0"][part == 0].max() < data["t0"][part == 1].min() < data["t0"][part == 2].min()
    hashed = split_parts(SplitRule("hash"), **data)
    wanted = [int(hashlib.sha256(g.encode()).hexdigest()[8:16], 16) % 4 == 0 for g in data["group"]]
    assert ((hashed == 2) == wanted).all()
    folds = np.stack([split_parts(SplitRule("hash", seed=k), **data) for k in range(FOLDS)])
    assert ((folds == 2) == wanted).all()
    assert ((folds == 1).sum(0) == ~np.array(wanted)).all()  # each validates once


def test_refusals() -> None:
    with pytest.raises(UserError, match="Unknown split"):
        SplitRule("random")
    with pytest.raises(InternalError, match="two sides"):
        check_no_leak(np.array([0, 1]), np.array([5, 5]))


@pytest.mark.parametrize("rule", RULES)
def test_a_record_names_what_the_rule_uses_and_nothing_else(rule: str) -> None:
    """Another value of a recorded option gives other parts; of one that is not recorded, the same."""
    data = _objects()
    base = SplitRule(rule, seed=1)
    for name, other in (("seed", 2), ("validation", 0.4), ("test", 0.4), ("nside", 2)):
        changed = not (split_parts(base, **data) == split_parts(replace(base, **{name: other}), **data)).all()
        recorded = base.record() != replace(base, **{name: other}).record()
        assert changed == recorded, name
    assert base.record()["rule"] == rule
