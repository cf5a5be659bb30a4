"""Training a gate: labels, weights, splits, and the way from two archives to a run that uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.gate_features import FEATURES
from applecider_batch.features.gate_model import Judges
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.schema import load_answers
from applecider_batch.simulate import simulate
from applecider_batch.training import gate as training
from applecider_batch.training.gate import train_gate
from applecider_batch.training.gate_labels import KIND_GATES, interval, kind_of, read_gate_labels
from applecider_batch.training.splits import development_part
from tests.features.test_gate_model import examples
from tests.models.test_model_set import SMALL


@pytest.mark.parametrize(
    ("simbad", "vsx", "label", "kind"),
    [
        (None, None, "SN Ia", "supernova"),
        ("RRLyr", None, "AGN", "AGN"),  # the own label first
        (None, None, "SLSN-I", "supernova"),
        ("QSO", None, None, "AGN"),
        ("CataclyV*", None, None, "CV"),
        ("(TNS) SN IIn", None, None, "supernova"),
        ("EclBin", None, None, "star"),
        ("EB*", "CV", None, "star"),  # SIMBAD before VSX
        ("Unknown", "UGSU", None, "CV"),
        ("Fail 503", "RRAB", None, "star"),
        ("", "AGN", None, "AGN"),
        ("denseCore", None, None, "other type"),
        (None, "nan", None, "no type"),
    ],
)
def test_kinds(simbad: str | None, vsx: str | None, label: str | None, kind: str) -> None:
    assert kind_of(simbad, vsx, label) == kind


def test_labels_of_a_table(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "objectId": ["a", "b", "c", "d", "e"],
            "gate": ["artefact", "moving", "in_scope", "too_few_detections", None],
            "class": [None, None, "TDE", "CV", None],
            "simbad": ["QSO", None, None, None, "denseCore"],
            "object_key": ["A", None, "C", None, None],
        }
    )
    table.write_parquet(tmp_path / "t.parquet")
    labels = read_gate_labels(str(tmp_path / "t.parquet"))
    assert labels.kind == {"a": "artefact", "b": "mover", "c": "TDE", "d": "CV"}
    assert labels.group == {"a": "A", "b": "b", "c": "C", "d": "d"}
    table.select("objectId").write_csv(tmp_path / "t.csv")
    with pytest.raises(UserError, match="no object whose gate is known"):
        read_gate_labels(str(tmp_path / "t.csv"))


def test_intervals_against_the_tables_of_clopper_and_pearson() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert interval(10, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)


def test_weights_are_shared_as_stated() -> None:
    seen = examples(400)
    weight, output = training._weights(seen), seen.output
    scope = output == 0
    assert weight[scope].sum() == pytest.approx(weight[~scope].sum())
    for number in range(1, 4):
        assert weight[output == number].sum() == pytest.approx(weight[~scope].sum() / 3)
    real = scope & ~seen.simulated
    assert weight[real].sum() == pytest.approx(0.8 * weight[scope].sum())
    assert np.ptp(weight[real]) < 1e-12


def test_threshold_and_calibration_of_a_known_case() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat(np.array(["AGN", "star"], object), 500)
    # Log odds 2 x of a normal x around +1 and -1 are the true ones at equal shares.
    x = rng.normal(np.where(kind == "AGN", 1.0, -1.0))
    slope, intercept = training._platt(x, kind)
    assert (slope, intercept) == (pytest.approx(2.0, abs=0.4), pytest.approx(0.0, abs=0.2))
    probability = 1 / (1 + np.exp(-2 * x))
    assert training._balanced_threshold(probability, kind, 0) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("survey")
    simulate(str(folder / "sim"), n_objects=80, n_nights=15, seed=5)
    ingest([str(folder / "sim" / "alerts")], str(folder / "archive"))
    return str(folder / "archive"), str(folder / "sim" / "truth.parquet")


def test_from_archives_to_a_set_and_its_rows(
    survey: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.TREES, "n_estimators", 20)
    monkeypatch.setattr(training, "REPEATS", 1)
    models = tmp_path / "set"
    before = init_model_set(models, configs=SMALL)
    told = train_gate([survey], str(models), hold_out=True)
    after = ModelSet.load(models)
    assert (told["gate_id"], told["model_set_digest"]) == (after.gate_id, after.digest)
    assert after.digest != before.digest
    assert set(told) == set(load_answers()["train gate"])
    assert [e.card for e in after.entries] == [e.card for e in before.entries]
    truth = read_gate_labels(survey[1])
    tested = {name for name, group in truth.group.items() if development_part(group) == 2}
    counted = sum(entry["objects"] for entry in told["held_out"]["simulated"]["passed"].values())
    assert 0 < counted <= len(tested)
    assert told["cross_validation"]["simulated"]["auc"] > 0.9
    again = train_gate([survey], str(models), hold_out=True)
    assert again["gate_id"] == told["gate_id"]

    archive = Archive.open(survey[0])
    made = prepare_shard(
        archive.read_shard(0, 1 << 64), [None], get_profile("paper"),
        snapshot_jd_max=archive.snapshot.jd_max, modalities=set(), judges=Judges(gate=after.learned_gate()),
    )  # fmt: skip
    rows = made.rows.to_pylist()
    scope = [row["prob_in_scope"] for row in rows if KIND_GATES[truth.kind[row["objectId"]]] == "in_scope"]
    rest = [row["prob_in_scope"] for row in rows if KIND_GATES[truth.kind[row["objectId"]]] != "in_scope"]
    assert np.median(scope) > 0.7 > 0.3 > np.median(rest)
    below = {row["gate"] for row in rows if row["prob_in_scope"] < told["threshold"]}
    assert "in_scope" not in below
    assert len(FEATURES) == len(set(FEATURES))


def test_too_few_labels(survey: tuple[str, str], tmp_path: Path) -> None:
    truth = pl.read_parquet(survey[1]).filter(pl.col("class").is_not_null()).head(8)
    truth.write_parquet(tmp_path / "few.parquet")
    init_model_set(tmp_path / "set", configs=SMALL)
    with pytest.raises(UserError, match="at least 10 labelled objects in scope and 10 out of it"):
        train_gate([(survey[0], str(tmp_path / "few.parquet"))], str(tmp_path / "set"))
