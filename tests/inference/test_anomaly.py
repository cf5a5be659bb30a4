"""Scores, p-values and flags against plain loops and against what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from applecider_batch.errors import UserError
from applecider_batch.inference import anomaly_file
from applecider_batch.inference.anomaly import NEIGHBOURS, LatentScorer, fit_scorer
from applecider_batch.inference.anomaly_reference import SCORES, AnomalyReference, Reason, describe

HORIZONS = (3.0, 30.0, None)


def make_reference(n: int = 400, *, image_share: float = 0.5, seed: int = 0) -> AnomalyReference:
    """Normal scores of objects of two predicted classes; some with an image beside the light curve."""
    rng = np.random.default_rng(seed)
    values = np.full((n, len(HORIZONS), 3, 4), np.nan, np.float32)
    values[:, :, 0] = rng.normal(size=(n, len(HORIZONS), 4))
    image = rng.random(n) < image_share
    values[image, :, 1] = rng.normal(5, 3, (int(image.sum()), len(HORIZONS), 4))
    mask = np.repeat(np.where(image, 3, 1)[:, None], len(HORIZONS), axis=1).astype(np.int16)
    divergence = np.where(mask == 3, rng.random(mask.shape), np.nan).astype(np.float32)
    predicted = (rng.random(mask.shape) < 0.4).astype(np.int16)
    document = {"fitted_with": {"photometry": "w", "calibration": "c"}}
    return AnomalyReference({}, HORIZONS, ("A", "B"), values, divergence, mask, predicted, document)


def judge(reference: AnomalyReference, rows: AnomalyReference, column: int = 1) -> object:
    """Judge the objects of one made reference by another, at one horizon."""
    days = HORIZONS[column]
    return reference.judge(
        rows.values[:, column],
        rows.divergence[:, column],
        rows.mask[:, column],
        rows.predicted[:, column],
        np.full(len(rows.mask), np.nan if days is None else days),
        np.ones(len(rows.mask), bool),
    )


def test_pvalues_by_a_plain_loop() -> None:
    reference, rows = make_reference(1200), make_reference(40, seed=1)
    found = judge(reference, rows)
    scale = {}
    for m in (0, 1):
        for s in range(4):
            known = reference.values[:, 1, m, s].astype(float)
            low, middle, high = np.nanquantile(known, [0.25, 0.5, 0.75])
            scale[m, s] = middle, high - low

    def combined(values: np.ndarray, mask: int, s: int) -> np.float32:
        used = [m for m in (0, 1) if mask >> m & 1]
        return max(np.float32((values[m, s] - scale[m, s][0]) / scale[m, s][1]) for m in used)

    def scores(r: AnomalyReference, i: int) -> list[float]:
        out = [combined(r.values[i, 1], r.mask[i, 1], s) for s in range(4)]
        return out + ([r.divergence[i, 1]] if r.mask[i, 1] == 3 else [])

    for i in range(40):
        same = [
            j
            for j in range(1200)
            if (reference.mask[j, 1], reference.predicted[j, 1]) == (rows.mask[i, 1], rows.predicted[i, 1])
        ]
        table = np.array([scores(reference, j) for j in same])
        own = np.array(scores(rows, i))
        p = (1 + (table >= own).sum(axis=0)) / (len(same) + 1)
        np.testing.assert_allclose(found.pvalues[i, : len(p)], p)
        others = np.array(
            [(1 + (np.delete(table, j, 0) >= table[j]).sum(axis=0)) / len(same) for j in range(len(same))]
        )
        consensus = np.float32(-np.log10(p).mean())
        rest = np.float32(-np.log10(others).mean(axis=1))
        assert found.consensus[i] == pytest.approx(consensus, rel=1e-6)
        assert found.pvalue[i] == pytest.approx((1 + (rest >= consensus).sum()) / (len(same) + 1))
        assert found.n_ref[i] == len(same)


def test_flags_keep_their_rate_on_objects_like_the_reference() -> None:
    # Over references too: what one reference draws by chance stays with all rows that are compared with it.
    rows = make_reference(20000, seed=100)
    made = [judge(make_reference(4000, seed=seed), rows, column=2) for seed in range(12)]
    n_ref = np.concatenate([m.n_ref for m in made])
    for flag, level, close in ((1, 0.01, 0.25), (2, 0.001, 0.5)):
        attainable = np.floor(level * (n_ref + 1)) / (n_ref + 1)  # p has steps of 1 / (n_ref + 1)
        fired = np.concatenate([m.flag for m in made]) >= flag
        assert fired.mean() == pytest.approx(attainable.mean(), rel=close)
    for number in range(len(SCORES)):
        p = np.concatenate([m.pvalues[:, number] for m in made])
        assert (p[np.isfinite(p)] <= 0.01).mean() == pytest.approx(0.01, rel=0.25)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    reference, rows = make_reference(), make_reference(50, seed=4)
    together = judge(reference, rows)
    picked = replace(
        rows, **{n: getattr(rows, n)[7:8] for n in ("values", "divergence", "mask", "predicted")}
    )
    alone = judge(reference, picked)
    assert alone.pvalue[0] == together.pvalue[7]
    assert alone.reason[0] == together.reason[7]


def test_the_comparison_backs_off_and_says_so() -> None:
    rows = make_reference(4, image_share=1.0, seed=5)
    exact = judge(make_reference(2000), rows).group
    assert {g.split(", ")[1] for g in exact} == {"photometry+image"}
    assert {g.split(", ")[0] for g in exact} <= {"A", "B"}
    # 150 with images, of them fewer than 99 of a class: any class
    some = judge(make_reference(150, image_share=1.0), rows).group
    assert set(some) == {"any class, photometry+image, 30 d"}
    # of 150 with images most have a spectrum, too, which is left out of the comparison
    made = make_reference(150, image_share=1.0)
    made.values[60:, :, 2] = 1e6
    mask = np.where(np.arange(150)[:, None] < 60, made.mask, 7).astype(np.int16)
    more = judge(replace(made, mask=mask), rows)
    assert set(more.group) == {"any class, photometry+image at least, 30 d"}
    assert np.isfinite(more.pvalues[:, :4]).all()
    assert np.isnan(more.pvalues[:, 4]).all()
    # hardly any with images: as if there were the light curve alone, and then without a divergence
    rare = judge(make_reference(1000, image_share=0.02), rows)
    assert {g.split(", ")[1] for g in rare.group} == {"photometry at least"}
    assert np.isnan(rare.pvalues[:, 4]).all()
    loud = rows.values.copy()
    loud[:, :, 1] = 1e6  # what the comparison leaves out cannot matter
    np.testing.assert_array_equal(
        judge(make_reference(1000, image_share=0.02), replace(rows, values=loud)).pvalue, rare.pvalue
    )
    # too few of anything: no p-value, but the scores stand
    few = judge(make_reference(15), rows)
    assert np.isnan(few.pvalue).all()
    assert (few.flag == -1).all()
    assert np.isfinite(few.scores).all()


def test_a_horizon_is_compared_with_its_nearest() -> None:
    reference = make_reference(1000, image_share=0.0)
    rows = make_reference(3, image_share=0.0, seed=6)
    args = (rows.values[:, 0], rows.divergence[:, 0], rows.mask[:, 0], rows.predicted[:, 0])
    groups = [
        reference.judge(*args, np.full(3, days), np.ones(3, bool)).group[0].split(", ")[2]
        for days in (1.0, 9.0, 10.0, 500.0, np.nan)
    ]
    assert groups == ["3 d", "3 d", "30 d", "30 d", "full"]


def test_out_of_scope_rows_have_scores_but_no_pvalue() -> None:
    reference, rows = make_reference(1000), make_reference(10, seed=7)
    found = reference.judge(
        rows.values[:, 0], rows.divergence[:, 0], rows.mask[:, 0], rows.predicted[:, 0],
        np.full(10, 3.0), np.zeros(10, bool),
    )  # fmt: skip
    assert np.isfinite(found.scores).all()
    assert np.isnan(found.pvalue).all()
    assert not found.reason.any()
    assert found.group == [None] * 10


def test_reasons_name_the_scores_and_where_they_were_largest() -> None:
    reference = make_reference(2000, image_share=1.0)
    rows = make_reference(1, image_share=1.0, seed=8)
    values = np.zeros_like(rows.values[:, 1])
    values[:, 1] = 5.0
    values[0, 1, 2] = 90.0  # isolation forest in the image
    found = reference.judge(
        values, np.array([0.5]), rows.mask[:, 1], rows.predicted[:, 1], np.array([30.0]), np.ones(1, bool)
    )
    assert Reason(int(found.reason[0])) & ~Reason.CONSENSUS == Reason.IFOREST | Reason.IMAGE
    assert len(describe(int(found.reason[0]))) == int(found.reason[0]).bit_count()


@pytest.fixture(scope="module")
def latents() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    label = rng.choice(["A", "B", "C"], 600, p=[0.6, 0.38, 0.02])
    centre = {"A": 0.0, "B": 6.0, "C": -6.0}
    points = rng.normal(size=(600, 6)) @ mixing + np.array([centre[c] for c in label])[:, None]
    return points.astype(np.float32), label


def test_neighbours_are_those_of_scikit_learn(latents: tuple[np.ndarray, np.ndarray]) -> None:
    points, label = latents
    scorer = fit_scorer(points, label, seed=0)
    assert scorer is not None
    within = points.astype(float)
    for name in "ABC":
        within[label == name] -= within[label == name].mean(axis=0)
    precision = LedoitWolf(assume_centered=True).fit(within).precision_
    oracle = NearestNeighbors(
        n_neighbors=NEIGHBOURS, algorithm="brute", metric="mahalanobis", metric_params={"VI": precision}
    ).fit(points.astype(float))
    asked = 3 * np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    wanted = oracle.kneighbors(asked.astype(float))[0].mean(axis=1)
    np.testing.assert_allclose(scorer.score(asked)[:, 2], wanted, rtol=2e-3)  # kept in half precision


def test_mcif_is_the_least_of_the_class_forests(latents: tuple[np.ndarray, np.ndarray]) -> None:
    points, label = latents
    scorer = fit_scorer(points, label, seed=0)
    assert scorer is not None
    assert sorted(scorer.by_class) == [n for n in "ABC" if (label == n).sum() >= 10]
    found = scorer.score(points)
    each = np.stack([forest.score(points) for forest in scorer.by_class.values()])
    np.testing.assert_array_equal(found[:, 0], each.min(axis=0))
    far = scorer.score(np.full((1, 6), 60, np.float32))
    assert (far > np.quantile(found, 0.97, axis=0)).all()


def test_too_few_latents_fit_nothing(latents: tuple[np.ndarray, np.ndarray]) -> None:
    points, label = latents
    assert fit_scorer(points[:30], label[:30], seed=0) is None


def test_the_file_gives_the_reference_back(latents: tuple[np.ndarray, np.ndarray]) -> None:
    points, label = latents
    scorer = fit_scorer(points, label, seed=0)
    assert isinstance(scorer, LatentScorer)
    reference = replace(make_reference(), scorers={"photometry": scorer})
    data = anomaly_file.to_bytes(reference)
    twin = replace(make_reference(), scorers={"photometry": fit_scorer(points, label, seed=0)})
    assert anomaly_file.to_bytes(twin) == data
    again = anomaly_file.from_bytes(data)
    np.testing.assert_array_equal(again.scorers["photometry"].score(points), scorer.score(points))
    rows = make_reference(20, seed=9)
    np.testing.assert_array_equal(judge(again, rows).pvalue, judge(reference, rows).pvalue)


def test_a_file_that_is_something_else_is_refused() -> None:
    with pytest.raises(UserError, match="no file of this program"):
        anomaly_file.from_bytes(b"not a reference")
    data = anomaly_file.to_bytes(make_reference(30))
    with pytest.raises(UserError, match="has the format"):
        anomaly_file.from_bytes(data.replace(b"anomaly reference 1", b"anomaly reference 7"))


def test_a_reference_of_other_networks_is_refused() -> None:
    def model_set(weights: str, calibration: str) -> SimpleNamespace:
        entry = SimpleNamespace(card=SimpleNamespace(weights_sha256=weights))
        data = anomaly_file.to_bytes(make_reference(30))
        return SimpleNamespace(
            name="s", anomaly_ref_id="x", anomaly_bytes=lambda: data,
            defaults={"photometry": entry}, calibration_id=calibration,
        )  # fmt: skip

    loaded = anomaly_file.load_reference(model_set("w", "c"))
    assert loaded is not None
    assert json.dumps(loaded.document)
    for weights, calibration in (("other", "c"), ("w", "other")):
        with pytest.raises(UserError, match="fitted with other networks"):
            anomaly_file.load_reference(model_set(weights, calibration))
