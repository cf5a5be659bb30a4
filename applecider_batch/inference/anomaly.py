"""Anomaly scores of single items: energy, isolation forests and distance on the latents of one modality.

- energy: ``-logsumexp(logits)`` (temperature 1), which is high where no class claims the item (Liu et al.
  2020, arXiv:2010.03759)
- mcif: one isolation forest per class, the lowest score of all: anomalous to *every* class (Gupta et al.
  2024, arXiv:2408.08888)
- iforest: one isolation forest on the latents of all classes
- knn: mean distance to the ten nearest training latents, after whitening by the covariance within the
  classes, shrunk after Ledoit & Wolf (2004, doi:10.1016/S0047-259X(03)00096-4)

Higher is more anomalous in all of them. What they are worth is known only against a reference:
:mod:`applecider_batch.inference.anomaly_reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from applecider_batch.inference.batches import whole_rows
from applecider_batch.inference.forest import Forest, fit_forest

#: Scores that every modality has by itself, in the order of the arrays.
ITEM_SCORES: tuple[str, ...] = ("energy", "mcif", "iforest", "knn")

NEIGHBOURS = 10
MIN_CLASS = 10
MIN_LATENTS = 50
MAX_POINTS = 4096
_CHUNK = 256


@dataclass(frozen=True)
class Neighbours:
    """Training latents in whitened space.

    Attributes
    ----------
    mean : ndarray, float64, shape (D,)
    whiten : ndarray, float64, shape (D, D)
        (latent - mean) @ whiten has unit covariance within the classes.
    points : ndarray, float16, shape (n, D)
        At most ``MAX_POINTS``; scores are computed in double precision from these.
    """

    mean: np.ndarray
    whiten: np.ndarray
    points: np.ndarray

    def score(self, latent: np.ndarray) -> np.ndarray:
        """Mean distance to the nearest points, float64 (n,); NaN where a latent is not all finite."""
        finite = np.isfinite(latent).all(axis=1)
        out = np.full(len(latent), np.nan)
        points = self.points.astype(np.float64)
        norms = (points**2).sum(axis=1)
        k = min(NEIGHBOURS, len(points))
        rows = np.flatnonzero(finite)
        for start in range(0, len(rows), _CHUNK):
            here = rows[start : start + _CHUNK]
            # Whole blocks of rows, so that a score's bits do not depend on the other rows.
            block = here[whole_rows(len(here))]
            x = (latent[block].astype(np.float64) - self.mean) @ self.whiten
            squared = (x**2).sum(axis=1)[:, None] + norms - 2.0 * (x @ points.T)
            nearest = np.sort(np.partition(squared, k - 1, axis=1)[:, :k], axis=1)
            out[block] = np.sqrt(np.maximum(nearest, 0.0)).mean(axis=1)
        return out


@dataclass(frozen=True)
class LatentScorer:
    """What was fitted on the training latents of one modality.

    Attributes
    ----------
    whole : Forest
    by_class : dict of class -> Forest
        Classes with enough training latents.
    neighbours : Neighbours
    """

    whole: Forest
    by_class: dict[str, Forest]
    neighbours: Neighbours

    def score(self, latent: np.ndarray) -> np.ndarray:
        """mcif, iforest and knn of latents (n, D); float64 (n, 3), NaN where a latent is not all finite."""
        each = np.stack([forest.score(latent) for forest in self.by_class.values()])  # (classes, n)
        whole, far = self.whole.score(latent), self.neighbours.score(latent)
        return np.stack([each.min(axis=0), whole, far], axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for a file."""
        forests = {"whole": self.whole} | {f"class/{name}": f for name, f in self.by_class.items()}
        out = {f"{name}/{key}": a for name, forest in forests.items() for key, a in forest.arrays().items()}
        near = self.neighbours
        return out | {"knn/mean": near.mean, "knn/whiten": near.whiten, "knn/points": near.points}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LatentScorer:
        """The inverse of :meth:`arrays`."""

        def forest(prefix: str) -> Forest:
            here = f"{prefix}/"
            return Forest.from_arrays({k[len(here) :]: a for k, a in arrays.items() if k.startswith(here)})

        classes = sorted({key.split("/")[1] for key in arrays if key.startswith("class/")})
        near = Neighbours(arrays["knn/mean"], arrays["knn/whiten"], arrays["knn/points"])
        return cls(forest("whole"), {name: forest(f"class/{name}") for name in classes}, near)


def fit_scorer(latent: np.ndarray, classes: np.ndarray, seed: int) -> LatentScorer | None:
    """Fit forests and whitening on training latents.

    Parameters
    ----------
    latent : ndarray, float, shape (n, D)
        Finite.
    classes : ndarray of str, shape (n,)
        True class of each.
    seed : int

    Returns
    -------
    LatentScorer or None
        None with fewer than ``MIN_LATENTS`` rows, or without a class of ``MIN_CLASS`` rows.
    """
    names, counts = np.unique(classes.astype(str), return_counts=True)
    enough = names[counts >= MIN_CLASS]
    if len(latent) < MIN_LATENTS or not len(enough):
        return None
    by_class = {str(name): fit_forest(latent[classes == name], seed) for name in enough}
    return LatentScorer(fit_forest(latent, seed), by_class, _fit_neighbours(latent, classes, seed))


def _fit_neighbours(latent: np.ndarray, classes: np.ndarray, seed: int) -> Neighbours:
    from sklearn.covariance import ledoit_wolf

    wide = latent.astype(np.float64)
    within = wide.copy()
    for name in np.unique(classes):
        within[classes == name] -= wide[classes == name].mean(axis=0)
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    # L L^T is the inverse covariance: x L has the unit matrix as covariance.
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    mean = wide.mean(axis=0)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(wide))[:MAX_POINTS])
    return Neighbours(mean, whiten, ((wide[chosen] - mean) @ whiten).astype(np.float16))


def item_scores(outputs: Any, modality: str, scorer: LatentScorer | None) -> np.ndarray:
    """All scores of a modality's items.

    Parameters
    ----------
    outputs : inference.shard.ShardOutputs
    modality : str
    scorer : LatentScorer or None
        None: the energy alone.

    Returns
    -------
    ndarray, float32, shape (n_items, len(ITEM_SCORES))
        NaN where there is no finite answer.
    """
    energy = np.asarray(outputs.energies[modality], np.float64)
    latent = outputs.latents[modality]
    rest = np.full((len(energy), len(ITEM_SCORES) - 1), np.nan)
    if scorer is not None and latent.shape[1]:
        rest = scorer.score(latent)
    return np.column_stack([energy, rest]).astype(np.float32)


def row_scores(outputs: Any, prepared: Any, modality: str, scorer: LatentScorer | None) -> np.ndarray:
    """Scores of a modality by row of ``prepared``, NaN where a row lacks it; float32 (n_rows, 4)."""
    index = np.asarray(getattr(prepared, modality).row_index)
    absent = np.full((1, len(ITEM_SCORES)), np.nan, np.float32)
    return np.concatenate([item_scores(outputs, modality, scorer), absent])[index]
