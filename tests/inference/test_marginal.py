"""The mean over trial redshifts against a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.features.spectra import TRIAL_REDSHIFTS, preprocess_spectrum
from applecider_batch.inference.marginal import REDSHIFT_SCALE, marginalise
from applecider_batch.inference.predictor import Predictor
from applecider_batch.inference.shard import LocalPort, infer
from applecider_batch.models import build_network
from applecider_batch.models.importing import put_network
from applecider_batch.models.model_set import ModelSet
from applecider_batch.models.seeding import untrained_card
from applecider_batch.storage import Store
from tests.features.tables import JD0, alert, shard, spectrum


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


def test_a_run_takes_the_mean_over_trials(tmp_path: Path) -> None:
    """A spectrum without a redshift through preparation, batches and network, against one trial at a time."""
    card = untrained_card("paper", "resnet1d", config={"members": 2, "widths": [8, 12], "n_bins": 128})
    torch.manual_seed(0)
    state = build_network("paper", "resnet1d", **card.config).state_dict()
    put_network(Store(tmp_path), card, state, "paper", default=True, replace=False)
    entry = ModelSet.load(tmp_path).defaults["spectra"]
    unknown = spectrum("ZTFa", "s", JD0 + 1, redshift=None)
    unknown["flux"] = (1 + np.random.default_rng(0).random(len(unknown["flux"]))).tolist()
    data = shard([alert("ZTFa", JD0, 1), alert("ZTFb", JD0, 2)], None, [unknown, spectrum("ZTFb", "t", JD0)])
    paper = get_profile("paper")
    prepared = prepare_shard(data, [None], paper, snapshot_jd_max=JD0 + 100, modalities=["spectra"])
    ports = {"spectra": LocalPort(Predictor(entry))}
    outputs = infer(prepared, lambda candids: candids, ports, batch_size={"spectra": 7})
    item = prepared.spectra.spec_id.index("s")
    assert outputs.logits["spectra"].shape == (2, 5)
    assert not outputs.absent["spectra"].any()

    network, mean, total = entry.build(), np.zeros(5), 0.0
    wavelength, flux = np.array(unknown["wavelength"]), np.array(unknown["flux"])
    for z in TRIAL_REDSHIFTS:
        made = preprocess_spectrum(wavelength, flux, paper, z)
        assert made is not None
        logits = network(torch.from_numpy(made[None, None])).numpy().astype(np.float64)
        weight = np.exp(-z / REDSHIFT_SCALE) * np.exp(logits).sum()
        mean += weight * softmax(entry.card.to_five(logits)[0])
        total += weight
    np.testing.assert_allclose(softmax(outputs.logits["spectra"][item]), mean / total, rtol=1e-3)
