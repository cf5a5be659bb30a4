"""Which known objects look most like an episode to the networks: its nearest latents, per modality.

The distance of two latents x, y is::

    d(x, y) = sqrt(mean_j (x_j - y_j)^2 / (2 s_j^2))

with s_j the standard deviation of number j over the labelled episodes of the catalogue at that horizon.  So 1
is the (root mean square) distance of two labelled episodes drawn at random, and 0 the same answer of the
network's last but one layer.  Numbers that are the same for all of them are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.columns import SHORT_NAMES
from applecider_batch.catalog.read import only_horizon
from applecider_batch.catalog.store import iter_rows
from applecider_batch.storage import Store

NEAREST = 5
#: Labelled latents compared at a time: 500 candidates take 16 MB.
_PIECE = 4096
_TABLE = "embeddings"
#: An episode: objectId and its number.
Key = tuple[str, int]


@dataclass(frozen=True, order=True)
class LatentNeighbour:
    """A labelled object near an episode; ``distance`` as in this module."""

    distance: float
    object_id: str
    label: str


def has_latents(info: Mapping[str, Any]) -> bool:
    """Whether the catalogue was built of a run with ``--side embeddings``."""
    return _TABLE in info["side_tables"]


def latent_neighbours(
    store: Store,
    info: Mapping[str, Any],
    horizon: str,
    keys: Sequence[Key],
    labels: Mapping[str, str],
    nearest: int = NEAREST,
) -> dict[Key, dict[str, list[LatentNeighbour]]]:
    """The nearest labelled objects of every episode by modality, nearest first; two passes in bounded memory.

    Parameters
    ----------
    store, info
        An opened catalogue with the side table ``embeddings``.
    horizon : str
        Label of the horizon whose latents are compared.
    keys : sequence of (objectId, episode)
    labels : mapping of objectId to label
        The objects among which neighbours are sought; an episode's own object is not one of them.
    nearest : int
        How many are kept.

    Returns
    -------
    dict
        Episode -> modality -> neighbours; without an entry where the episode has no such latent or no object
        with a label has one.
    """
    found: dict[Key, dict[str, list[LatentNeighbour]]] = {key: {} for key in keys}
    scales = {short: _Scale() for short in SHORT_NAMES.values()}
    mine: dict[str, list[tuple[Key, np.ndarray]]] = {short: [] for short in SHORT_NAMES.values()}
    for rows in _pieces(store, info, horizon):
        for short, scale in scales.items():
            names, episodes, latents = _latents(rows, short)
            scale.update(latents[[name in labels for name in names]])
            mine[short] += [
                (key, latent)
                for key, latent in zip(zip(names, episodes, strict=True), latents, strict=True)
                if key in found
            ]
    searches = {
        modality: _Nearest([key for key, _ in mine[short]], np.stack([x for _, x in mine[short]]),
                           scales[short].spread(), nearest)
        for modality, short in SHORT_NAMES.items() if mine[short] and scales[short].count
    }  # fmt: skip
    for rows in _pieces(store, info, horizon) if searches else ():
        for modality, search in searches.items():
            names, _, latents = _latents(rows, SHORT_NAMES[modality])
            known = np.flatnonzero([name in labels for name in names])
            search.update([names[i] for i in known], latents[known], labels)
    for modality, search in searches.items():
        for key, neighbours in zip(search.keys, search.best, strict=True):
            if neighbours:
                found[key][modality] = neighbours
    return found


def _pieces(store: Store, info: Mapping[str, Any], horizon: str) -> Iterator[pa.Table]:
    for table in iter_rows(store, info, name=_TABLE, batch_rows=_PIECE):
        yield only_horizon(table, horizon)


def _latents(rows: pa.Table, short: str) -> tuple[list[str], list[int], np.ndarray]:
    """Names, episodes and latents (n, width) of the rows that have one."""
    rows = rows.filter(pc.is_valid(rows.column(f"latent_{short}")))
    values = pc.list_flatten(rows.column(f"latent_{short}")).to_numpy().astype(np.float64)
    names, episodes = (rows.column(name).to_pylist() for name in ("objectId", "episode"))
    return names, episodes, values.reshape(len(names), -1 if names else 0)


class _Scale:
    """Standard deviation of each number of a latent, piece by piece (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0
        self.square: np.ndarray | float = 0.0

    def update(self, latents: np.ndarray) -> None:
        n = len(latents)
        if n:
            mean = latents.mean(axis=0)
            shift, total = mean - self.mean, self.count + n
            self.square = (
                self.square + ((latents - mean) ** 2).sum(axis=0) + shift**2 * (self.count * n / total)
            )
            self.mean, self.count = self.mean + shift * (n / total), total

    def spread(self) -> np.ndarray:
        """Shape (width,); infinite where there is none."""
        spread = np.sqrt(np.asarray(self.square) / max(self.count, 1))
        return np.where(spread > 1e-6 * (1.0 + np.abs(self.mean)), spread, np.inf)


class _Nearest:
    """The nearest labelled latents of some episodes, piece by piece."""

    def __init__(self, keys: list[Key], latents: np.ndarray, spread: np.ndarray, nearest: int) -> None:
        self.keys = keys
        self.nearest = nearest
        used = np.isfinite(spread)
        self._used = used
        self._unit = spread[used] * np.sqrt(2.0 * max(used.sum(), 1))
        self._latents = latents[:, used] / self._unit
        self.best: list[list[LatentNeighbour]] = [[] for _ in keys]

    def update(self, names: list[str], latents: np.ndarray, labels: Mapping[str, str]) -> None:
        if not names:
            return
        other = latents[:, self._used] / self._unit
        square = (self._latents**2).sum(1)[:, None] + (other**2).sum(1) - 2.0 * self._latents @ other.T
        distance = np.sqrt(np.maximum(square, 0.0))
        several = len(names) - len(set(names))  # episodes of one object
        kept = min(self.nearest + several + 1, len(names))  # one of them can be the object itself
        for at, (key, row) in enumerate(zip(self.keys, distance, strict=True)):
            close = np.flatnonzero(row <= np.partition(row, kept - 1)[kept - 1])
            near = {n.object_id: n for n in self.best[at]}
            for i in close:
                name = names[i]
                if name != key[0] and (name not in near or row[i] < near[name].distance):
                    near[name] = LatentNeighbour(float(row[i]), name, labels[name])
            self.best[at] = sorted(near.values())[: self.nearest]
