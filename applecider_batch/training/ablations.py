"""What a class can be guessed from without looking: availability and instrument, and the place on the sky."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.inference.calibration import pattern_name
from applecider_batch.training.dataset import Dataset

SKY = ("ra", "dec")


def instruments(archive: Archive, dataset: Dataset) -> np.ndarray:
    """Instrument of the spectrum of each object and horizon, str (n, n_horizons); empty without one."""
    table = archive.read_spectra(0, 1 << 64, ["spec_id", "instrument"])
    known = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    names = dataset.prepared.rows.column("spec_id").to_pylist()
    of_row = np.array([(known.get(name) or "unknown") if name is not None else "" for name in names], object)
    return of_row[dataset.row]


def availability_figure(
    dataset: Dataset,
    mask: np.ndarray,
    instrument: np.ndarray,
    members: np.ndarray,
    judge: Callable[[Dataset, np.ndarray, np.ndarray], dict[str, Any]],
) -> dict[str, Any]:
    """The figures of a guess from the modalities available and the spectrum's instrument alone.

    Parameters
    ----------
    dataset : Dataset
        Split: class shares per pattern and instrument are those of the training part.
    mask : ndarray of int64, shape (n,)
    instrument : ndarray of str, shape (n,)
    members : ndarray of int64
        Objects to judge.
    judge : callable, (data set, log probabilities (n, C), members) -> report

    Returns
    -------
    dict
        The report; or ``why_not``.
    """
    train = np.setdiff1d(dataset.members("train"), members)
    if not len(train):
        return {"why_not": "no training objects beside those judged"}
    kind = [f"{pattern_name(int(m))} / {name}" for m, name in zip(mask, instrument, strict=True)]
    names, number = np.unique(np.array(kind), return_inverse=True)
    n_classes = len(dataset.classes)
    prior = (np.bincount(dataset.label[train], minlength=n_classes) + 1.0) / (len(train) + n_classes)
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (number[train], dataset.label[train]), 1.0)
    share = (counts + prior) / (counts.sum(1, keepdims=True) + 1.0)  # one object's worth of the prior
    return judge(dataset, np.log(share[number]), members)


def shuffled_sky(dataset: Dataset, names: tuple[str, ...], seed: int) -> Dataset:
    """The data set with ra and dec of the metadata exchanged among its objects; nothing else changes.

    All packets of an object get the position of the same other object.
    """
    items = dataset.items("image")
    owner = np.full(len(dataset.prepared.image.candid), -1, np.int64)
    for column in range(items.shape[1]):
        here = items[:, column] >= 0
        owner[items[here, column]] = np.flatnonzero(here)
    objects = np.unique(owner[owner >= 0])
    columns = np.array([names.index(name) for name in SKY if name in names], np.int64)
    metadata = dataset.prepared.image.metadata.copy()
    place = np.full((len(dataset), len(columns)), np.nan, np.float32)
    place[owner[owner >= 0]] = metadata[owner >= 0][:, columns]
    place[objects] = place[np.random.default_rng(seed).permutation(objects)]
    metadata[np.ix_(np.flatnonzero(owner >= 0), columns)] = place[owner[owner >= 0]]
    image = replace(dataset.prepared.image, metadata=metadata)
    return replace(dataset, prepared=replace(dataset.prepared, image=image))
