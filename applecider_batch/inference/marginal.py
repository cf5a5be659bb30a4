"""Spectra without a redshift: the mean over trial redshifts of what a network says.

p(c | x) = sum over z of w(z) p(c | x, z), w(z) proportional to prior(z) exp(-energy(z)). The prior is
exponential: the redshifts that a survey of ZTF's depth finds. The energy, -logsumexp of the logits, is the
network's own evidence for the redshift; of a ResNet-1D, which is trained on spectra at wrong redshifts too,
it is the logarithm of the odds against it. What this is worth on real spectra whose redshift was withheld
stands in docs/spectra_real.md.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.inference.fusion import log_softmax

REDSHIFT_SCALE = 0.06


def marginalise(
    logits: np.ndarray, latents: np.ndarray, energy: np.ndarray, redshift: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers for spectra from the answers for their trial redshifts.

    Parameters
    ----------
    logits : ndarray of float32, shape (m, C)
        A row per trial; NaN where the network gave no finite answer: such a trial does not count.
    latents : ndarray of float32, shape (m, D)
    energy : ndarray of float32, shape (m,)
    redshift : ndarray of float, shape (m,)
        Of the trials.
    offsets : ndarray of int64, shape (n + 1,)
        Spectrum i has the trials offsets[i] to offsets[i + 1] - 1, at least one.

    Returns
    -------
    tuple of ndarray of float32, shapes (n, C), (n, D) and (n,)
        Of a spectrum with one trial exactly that trial's answer; else the log of the mean probabilities, the
        mean latent, both with the weights w(z), and -log of the mean of exp(-energy) over the prior; NaN
        where no trial counts.
    """
    first = offsets[:-1]
    out, latent, joint = logits[first], latents[first], energy[first]  # copies
    for i in np.flatnonzero(np.diff(offsets) > 1):
        rows = np.arange(offsets[i], offsets[i + 1])
        rows = rows[np.isfinite(logits[rows]).all(1) & np.isfinite(energy[rows])]
        if not len(rows):
            out[i], latent[i], joint[i] = np.nan, np.nan, np.nan
            continue
        prior = -redshift[rows].astype(np.float64) / REDSHIFT_SCALE
        weight = prior - energy[rows]
        evidence = np.logaddexp.reduce(weight)
        weight -= evidence
        out[i] = np.logaddexp.reduce(weight[:, None] + log_softmax(logits[rows]), axis=0)
        latent[i] = np.exp(weight) @ latents[rows]
        joint[i] = np.logaddexp.reduce(prior) - evidence
    return out, latent, joint
