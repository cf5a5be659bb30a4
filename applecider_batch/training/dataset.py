"""Labelled data straight from an archive, by the same way that a classification takes.

Inputs are made by `features.inputs.prepare_shard`, behind the same as-of walls: what a network is trained and
judged on is what it will see. Each object stands for one episode, the one with the most detections over its
history (ties: the first); a label does not say which episode it means, and the brightest one is what gets a
spectrum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.features.inputs import prepare_packets, prepare_shard
from applecider_batch.features.prepared import Prepared, join_prepared
from applecider_batch.features.profiles import Profile
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.population import Population
from applecider_batch.training.splits import PARTS, SplitRule

HORIZONS: tuple[float | None, ...] = (3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, None)
_RANGE_BYTES = 128 << 20


@dataclass(frozen=True)
class Dataset:
    """Labelled objects and their inputs at every horizon.

    Attributes
    ----------
    classes : tuple of str
    horizons : tuple of float or None
    object_id, group, source : ndarray of str, shape (n,)
    label : ndarray of int64, shape (n,)
    t0, ra, dec : ndarray of float64, shape (n,)
        JD and degrees, NaN where unknown.
    part : ndarray of int8, shape (n,)
        Position in `splits.PARTS`; -1 for none. All -1 before :meth:`split`.
    prepared : Prepared
        Inputs of all rows of the objects.
    row : ndarray of int64, shape (n, n_horizons)
        Row of ``prepared`` of each object and horizon.
    population : Population
        All labelled objects of the archive, of which the split is made.
    """

    classes: tuple[str, ...]
    horizons: tuple[float | None, ...]
    object_id: np.ndarray
    group: np.ndarray
    source: np.ndarray
    label: np.ndarray
    t0: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    part: np.ndarray
    prepared: Prepared
    row: np.ndarray
    population: Population

    def __len__(self) -> int:
        return len(self.object_id)

    def items(self, modality: str) -> np.ndarray:
        """Item of a modality of each object and horizon, -1 where there is none; int64 (n, n_horizons)."""
        index: np.ndarray = getattr(self.prepared, modality).row_index
        return index[self.row].astype(np.int64)

    def episode(self) -> np.ndarray:
        """Number of each object's episode; int16 (n,)."""
        numbers: np.ndarray = self.prepared.rows.column("episode").to_numpy()
        return numbers[self.row[:, -1]]

    def days(self) -> np.ndarray:
        """Days from t0 to the moment of each row; float64 (n, n_horizons), NaN for the full history."""
        days: np.ndarray = self.prepared.rows.column("horizon_days").to_numpy()
        return days[self.row]

    def column(self, horizon: float | None) -> int:
        """Position of a horizon."""
        return self.horizons.index(horizon)

    def members(self, part: str) -> np.ndarray:
        """Positions of the objects of a part; int64."""
        return np.flatnonzero(self.part == PARTS.index(part))

    def take(self, rows: np.ndarray) -> Dataset:
        """Some of the objects; their inputs stay where they are."""
        names = ("object_id", "group", "source", "label", "t0", "ra", "dec", "part", "row")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def split(self, rule: SplitRule) -> Dataset:
        """The same with parts."""
        return replace(self, part=self.population.parts(rule, self.group))

    def trained_on(self, names: Collection[str]) -> np.ndarray:
        """Objects that are among these names, or another name of one that is; bool (n,)."""
        own = np.array([o in names or g in names for o, g in zip(self.object_id, self.group, strict=True)])
        return np.isin(self.group.astype(str), self.group[own].astype(str))

    def split_table(self) -> pa.Table:
        """objectId, group, class and part of every object: what is written beside a trained network."""
        names = np.array([*PARTS, "none"])
        return pa.table(
            {
                "objectId": self.object_id.astype(str),
                "object_key": self.group.astype(str),
                "class": np.array(self.classes)[self.label],
                "part": names[self.part],
            }
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Objects per part and class."""
        return count_parts(self.part, self.label, self.classes)


def count_parts(part: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Number of rows per part and class."""
    out = {}
    for number, name in enumerate(PARTS):
        counts = np.bincount(label[part == number], minlength=len(classes))
        out[name] = dict(zip(classes, counts.tolist(), strict=True))
    return out


def split_digest(table: pa.Table) -> str:
    """Digest of who is on which side."""
    return json_digest(sorted(zip(*(table.column(c).to_pylist() for c in ("objectId", "part")), strict=True)))


@dataclass(frozen=True)
class _Part:
    objects: list[str]
    alerts: pa.Table
    photometry: pa.Table
    spectra: pa.Table


def load_dataset(
    archive: Archive,
    labels: LabelTable,
    profile: Profile,
    *,
    horizons: Sequence[float | None] = HORIZONS,
    modalities: Collection[str] = ("photometry",),
) -> Dataset:
    """The labelled objects of an archive.

    Parameters
    ----------
    archive : Archive
    labels : LabelTable
    profile : Profile
    horizons : sequence of float or None
        Days; ascending, None (full) last.
    modalities : collection of str

    Raises
    ------
    UserError
        If no labelled object is in the archive.
    """
    jd_max = archive.snapshot.jd_max or 0.0
    pieces = [
        prepare_shard(shard, horizons, profile, snapshot_jd_max=jd_max, modalities=modalities)
        for shard in _labelled_shards(archive, labels.object_id.tolist())
    ]
    if not pieces:
        raise UserError(
            "No object of the label table is in the archive.",
            hint="The table's objects must be named as in the archive (see 'archive info').",
        )
    return _assemble(join_prepared(pieces), labels, tuple(horizons), Population(archive, labels))


def load_alerts(
    archive: Archive,
    dataset: Dataset,
    profile: Profile,
    *,
    max_days: float = np.inf,
    modalities: Collection[str] = ("image",),
) -> Dataset:
    """The alerts of a data set's objects, each as of its own packet and with its object's part.

    Parameters
    ----------
    archive : Archive
    dataset : Dataset
        Split or not; of each object the alerts of its episode are taken.
    profile : Profile
    max_days : float
        Alerts up to so many days after t0.
    modalities : collection of str

    Returns
    -------
    Dataset
        A row per eligible alert, in the archive's order, with one horizon, None: the alert's own moment. It
        may be empty (light curves without packets).
    """
    jd_max = archive.snapshot.jd_max or 0.0
    shards = _labelled_shards(archive, dataset.object_id.tolist())
    pieces = [
        prepare_packets(shard, profile, snapshot_jd_max=jd_max, max_days=max_days, modalities=modalities)
        for shard in shards
    ]
    prepared = join_prepared(pieces)
    where = {name: i for i, name in enumerate(dataset.object_id.tolist())}
    owner = np.array([where[name] for name in prepared.rows.column("objectId").to_pylist()], np.int64)
    kept = np.flatnonzero(prepared.rows.column("episode").to_numpy() == dataset.episode()[owner])
    owner = owner[kept]
    per_object = {
        name: getattr(dataset, name)[owner]
        for name in ("object_id", "group", "source", "label", "t0", "ra", "dec", "part")
    }
    return replace(dataset, horizons=(None,), prepared=prepared, row=kept[:, None], **per_object)


def _labelled_shards(archive: Archive, names: list[str]) -> Iterator[_Part]:
    wanted = pa.array(names, pa.string())
    for lo, hi in archive.ranges(_RANGE_BYTES, ("alerts", "photometry", "spectra")):
        shard = _labelled(archive.read_shard(lo, hi), wanted)
        if shard.objects:
            yield shard


def _labelled(shard: Any, wanted: pa.Array) -> _Part:
    names = pa.array(shard.objects, pa.string())

    def of(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table.column("objectId").cast(pa.string()), value_set=wanted))

    kept = names.filter(pc.is_in(names, value_set=wanted)).to_pylist()
    return _Part(kept, of(shard.alerts), of(shard.photometry), of(shard.spectra))


def _assemble(
    prepared: Prepared, labels: LabelTable, horizons: tuple[float | None, ...], population: Population
) -> Dataset:
    rows = prepared.rows
    names = rows.column("objectId").to_pylist()
    episode = rows.column("episode").to_numpy()
    horizon = rows.column("horizon_days").to_numpy()
    n_det = rows.column("n_det").to_numpy()
    table: dict[tuple[str, int], np.ndarray] = {}
    full: dict[str, tuple[float, int]] = {}
    position = {h: i for i, h in enumerate(horizons)}
    for i, (name, e, h) in enumerate(zip(names, episode.tolist(), horizon.tolist(), strict=True)):
        if e < 1:
            continue  # no t0: no clock, no horizon
        where = position[None if h != h else h]
        table.setdefault((name, e), np.full(len(horizons), -1, np.int64))[where] = i
        key = (float(np.nan_to_num(n_det[i])), -e)
        if name not in full or key > full[name]:
            full[name] = key
    objects = sorted(full)
    if not objects:
        raise UserError("No labelled object of the archive has an eligible detection.")
    row = np.stack([table[name, -full[name][1]] for name in objects])
    if (row < 0).any():
        raise UserError("An object lacks a row at a horizon; ask for the horizons in ascending order.")
    at = labels.positions(objects)
    last = row[:, -1]

    def column(name: str) -> np.ndarray:
        return rows.column(name).to_numpy()[last].astype(np.float64)

    return Dataset(
        classes=labels.classes,
        horizons=horizons,
        object_id=np.array(objects, object),
        group=labels.group[at],
        source=labels.source[at],
        label=labels.label[at],
        t0=column("t0"),
        ra=column("ra"),
        dec=column("dec"),
        part=np.full(len(objects), -1, np.int8),
        prepared=prepared,
        row=row,
        population=population,
    )
