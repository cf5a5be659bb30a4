"""The mean over trial redshifts against a plain loop."""

from __future__ import annotations

import numpy as np

from applecider_batch.inference.marginal import REDSHIFT_SCALE, marginalise


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    out: np.ndarray = e / e.sum()
    return out


def test_trials_are_weighted_by_prior_and_evidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 5)).astype(np.float32)
    latents = rng.normal(size=(7, 3)).astype(np.float32)
    energy = rng.normal(size=7).astype(np.float32)
    redshift = np.array([0.03, 0.0, 0.05, 0.1, 0.2, 0.0, 0.1], np.float32)
    logits[4] = np.nan  # does not count
    out, latent, joint = marginalise(logits, latents, energy, redshift, np.array([0, 1, 5, 7]))
    np.testing.assert_array_equal(out[0], logits[0])
    np.testing.assert_array_equal(latent[0], latents[0])
    assert joint[0] == energy[0]
    for i, rows in ((1, [1, 2, 3]), (2, [5, 6])):
        prior = np.exp(-redshift[rows] / REDSHIFT_SCALE)
        weight = prior * np.exp(-energy[rows])
        mean = sum(w * softmax(logits[r]) for w, r in zip(weight, rows, strict=True)) / weight.sum()
        np.testing.assert_allclose(np.exp(out[i]), mean, rtol=1e-5)
        np.testing.assert_allclose(latent[i], weight @ latents[rows] / weight.sum(), rtol=1e-4)
        assert abs(joint[i] + np.log(weight.sum() / prior.sum())) < 1e-5


def test_no_trial_that_counts_is_no_answer() -> None:
    nothing = np.full((2, 5), np.nan, np.float32)
    zeros = np.zeros(2, np.float32)
    out, latent, joint = marginalise(nothing, np.zeros((2, 3), np.float32), zeros, zeros, np.array([0, 2]))
    assert np.isnan(out).all()
    assert np.isnan(latent).all()
    assert np.isnan(joint).all()
