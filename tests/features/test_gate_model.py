"""The learned gate: scikit-learn as the oracle, rows that depend on themselves alone, the wall, bad files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from applecider_batch.errors import UserError
from applecider_batch.features.gate_features import FEATURES
from applecider_batch.features.gate_model import FORMAT, OUTPUTS, Judges, LearnedGate, prepared
from applecider_batch.features.inputs import prepare_gate, prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.training import gate as training
from applecider_batch.training.gate import Examples
from applecider_batch.training.gate_labels import KIND_GATES
from tests.features.tables import JD0, alert, limit, point, shard

KINDS = np.array(list(KIND_GATES), object)


def examples(n: int = 120, seed: int = 0, kinds: np.ndarray = KINDS) -> Examples:
    """Random features, with holes, of which the first tells the kind roughly."""
    rng = np.random.default_rng(seed)
    number = rng.integers(0, len(kinds), n)
    features = rng.normal(size=(n, len(FEATURES)))
    features[:, 0] += number
    features[rng.random(features.shape) < 0.2] = np.nan
    names = np.array([f"o{i}" for i in range(n)], object)
    no = np.zeros(n, bool)
    return Examples(features, kinds[number], names, rng.random(n) < 0.5, no, ~no)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:5]], ids=["four outputs", "two outputs"])
def test_trees_give_what_scikit_learn_gives(kinds: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(training.TREES, "n_estimators", 15)
    seen, new = examples(kinds=kinds), examples(seed=1, kinds=kinds).features
    model = training._boosted(seen, 0)
    assert isinstance(model, GradientBoostingClassifier)
    arrays, depth, outputs = training._fit(seen, 0)
    arrays["calibration"] = np.array([1.0, 0.0])
    gate = LearnedGate.build(arrays, {"outputs": outputs, "threshold": 0.5, "depth": depth})
    want = model.predict_proba(prepared(new))
    probability, otherwise = gate.judge(new)
    own = outputs.index("in_scope")
    assert outputs == [OUTPUTS[k] for k in model.classes_]
    assert np.allclose(probability, want[:, own], rtol=1e-9, atol=0)
    rest = [name for name in outputs if name != "in_scope"]
    assert otherwise.tolist() == [rest[k] for k in np.delete(want, own, axis=1).argmax(axis=1)]


@pytest.fixture(scope="module")
def gate() -> LearnedGate:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.TREES, "n_estimators", 15)
        arrays, depth, outputs = training._fit(examples(), 0)
    arrays["calibration"] = np.array([0.8, 0.1])
    return LearnedGate.build(arrays, {"outputs": outputs, "threshold": 0.5, "depth": depth})


def test_a_row_does_not_depend_on_its_neighbours(gate: LearnedGate) -> None:
    new = examples(2500, 3).features  # more than a chunk
    whole, _ = gate.judge(new)
    alone = np.concatenate([gate.judge(new[i : i + 1])[0] for i in (0, 1, 1023, 1024, 2499)])
    assert np.array_equal(whole[[0, 1, 1023, 1024, 2499]], alone)
    assert np.isnan(gate.judge(np.full((1, len(FEATURES)), np.nan))[0]).all()


def test_equal_gates_equal_bytes(gate: LearnedGate) -> None:
    data = gate.to_bytes()
    read = LearnedGate.from_bytes(data, "x")
    assert read.to_bytes() == data
    assert (read.gate_id, read.threshold) == (gate.gate_id, 0.5)


def test_files_that_are_refused(gate: LearnedGate) -> None:
    with pytest.raises(UserError, match="'x' is no learned gate"):
        LearnedGate.from_bytes(b"no gate at all", "x")
    changes: list[dict[str, Any]] = [
        {"features": ["ra"]}, {"format": FORMAT + "0"}, {"threshold": 1.5}, {"outputs": ["in_scope"]}
    ]  # fmt: skip
    for change in changes:
        wrong = LearnedGate(gate.arrays, {**gate.document, **change}, "")
        with pytest.raises(UserError, match="made for another version"):
            LearnedGate.from_bytes(wrong.to_bytes(), "x")
    for name, value in (("left", 10**6), ("feature", 99), ("output", 9), ("right", -1)):
        broken = {**gate.arrays, name: np.full_like(gate.arrays[name], value)}
        with pytest.raises(UserError, match="made for another version"):
            LearnedGate.from_bytes(LearnedGate(broken, gate.document, "").to_bytes(), "x")


def constant(probability: float, otherwise: str) -> LearnedGate:
    """A gate of one leaf that says the same of everything."""
    log_odds = np.log(probability / (1 - probability))
    arrays = {
        "feature": np.zeros(1, np.int16), "threshold": np.full(1, np.inf, np.float32),
        "left": np.zeros(1, np.int32), "right": np.zeros(1, np.int32), "value": np.zeros(1),
        "root": np.zeros(1, np.int32), "output": np.zeros(1, np.int8), "base": np.array([log_odds, 0.0]),
        "calibration": np.array([1.0, 0.0]),
    }  # fmt: skip
    document = {"outputs": ["in_scope", otherwise], "threshold": 0.5, "depth": 1}
    return LearnedGate.build(arrays, document)


STAR = {"sgscore1": 0.9, "distpsnr1": 0.5}


@pytest.mark.parametrize(
    ("fields", "probability", "otherwise", "gate", "reason"),
    [
        ({}, 0.9, "artefact", "in_scope", "score"),
        ({**STAR}, 0.9, "variable_star", "in_scope", "score_over_star_rule"),
        ({**STAR}, 0.4, "variable_star", "variable_star", "score"),
        ({}, 0.4, "artefact", "artefact", "score"),
        ({}, 0.4, "moving", "moving", "score"),
        ({"ssdistnr": 3.0}, 0.9, "variable_star", "moving", "solar_system_all"),
        ({"nbad": 1}, 0.9, "variable_star", "artefact", "no_clean_alert"),
        ({"isdiffpos": -1}, 0.9, "variable_star", "too_few_detections", "only_negative"),
    ],
)  # fmt: skip
def test_score_and_rules(
    fields: dict[str, Any], probability: float, otherwise: str, gate: str, reason: str
) -> None:
    data = shard([alert("ZTFa", JD0, 1, **fields), alert("ZTFa", JD0 + 1, 2, **fields)])
    judges = Judges(gate=constant(probability, otherwise))
    made = prepare_shard(data, [None], get_profile("paper"), snapshot_jd_max=JD0 + 99, judges=judges)
    row = made.rows.to_pylist()[0]
    assert (row["gate"], row["gate_reason"]) == (gate, reason)
    assert row["prob_in_scope"] == pytest.approx(probability)


def test_without_alerts_the_rules_decide() -> None:
    points = [point("curve", JD0 + i, origin=3, fid=1 + i % 2) for i in range(4)]
    judges = Judges(gate=constant(0.1, "variable_star"))
    made = prepare_shard(
        shard([], points), [None], get_profile("paper"), snapshot_jd_max=JD0 + 99, judges=judges
    )
    row = made.rows.to_pylist()[0]
    assert (row["gate"], row["prob_in_scope"]) == ("in_scope", None)


def test_features_see_packets_behind_the_wall_only() -> None:
    early = [alert("ZTFa", JD0 + i, i + 1, magpsf=18.0 + i / 10) for i in range(3)]
    late = alert("ZTFa", JD0 + 9, 9, magpsf=14.0, sgscore1=0.99, rb=0.6, isdiffpos=-1, jdstarthist=1.0)
    before = limit("ZTFa", JD0 - 2, known_jd=JD0)
    table = [point("ZTFa", JD0 + 1.5, origin=3, magpsf=12.0, fid=1)]
    own = [point("ZTFa", a["jd"], candid=a["candid"], magpsf=a["magpsf"]) for a in early]
    of_late = point("ZTFa", JD0 + 9, candid=9, magpsf=14.0, isdiffpos=-1)
    short = prepare_gate(shard(early, [*own, before]), [3.0], snapshot_jd_max=JD0 + 3)[1]
    rows, long = prepare_gate(
        shard([*early, late], [*own, before, of_late, *table]), [3.0, None], snapshot_jd_max=JD0 + 99
    )
    assert rows.column("horizon_days").to_pylist() == [3.0, None]
    assert np.array_equal(short[0], long[0], equal_nan=True)
    assert not np.array_equal(long[0], long[1], equal_nan=True)
    named = dict(zip(FEATURES, long[0].tolist(), strict=True))
    assert (named["n_good"], named["span_days"], named["negative_fraction"]) == (3.0, 2.0, 0.0)
    assert named["rb_median"] == pytest.approx(0.9)
    later = dict(zip(FEATURES, long[1].tolist(), strict=True))
    assert (later["negative_fraction"], later["span_days"]) == (0.25, 9.0)
    assert json.dumps(list(FEATURES)).count('"ra"') == 0


def test_alerts_of_asteroids_do_not_describe_the_object() -> None:
    own = [alert("ZTFa", JD0 + i, i + 1, sgscore1=0.1, rb=0.9) for i in range(2)]
    rock = alert("ZTFa", JD0 + 5, 9, sgscore1=0.99, rb=0.6, ssdistnr=1.0, ssmagnr=18.0)

    def seen(*alerts: dict[str, Any]) -> dict[str, float]:
        features = prepare_gate(shard(list(alerts)), [None], snapshot_jd_max=JD0 + 99)[1]
        return dict(zip(FEATURES, features[0].tolist(), strict=True))

    described = seen(*own, rock)
    assert described["sgscore1"] == pytest.approx(0.1)
    assert described["rb_median"] == pytest.approx(0.9)
    # Where nothing else was seen, a rock is described as it is.
    assert seen(rock)["sgscore1"] == pytest.approx(0.99)
