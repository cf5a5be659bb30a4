"""What a run's tasks are made of: its plan, its folder, and the lower floors as they call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.engine.plan import Plan, Shard
from applecider_batch.engine.selection import read_selection
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.storage import Store

TABLES = {"image": "stamps", "spectra": "spectra"}
"""Table of the archive without which a modality has no input; every object has a light curve."""


@dataclass(frozen=True)
class Rooms:
    """The lower floors as a shard task calls them; :func:`real_rooms` are the package's own.

    Attributes
    ----------
    open_archive : callable, (url, storage_options, snapshot) -> Archive
    load_models : callable, (models, storage_options) -> ModelSet
    prepare : callable, (shard data, horizons, profile name, jd_max, modalities, judges, set_aside)
        -> Prepared
    cutouts : callable, (stamps table, profile name) -> float32 (n, C, S, S)
    cutout_shape : callable, (profile name) -> (C, S, S)
    assemble : callable, (prepared, outputs, identity) -> catalogue rows
    """

    open_archive: Callable[..., Any]
    load_models: Callable[..., Any]
    prepare: Callable[..., Any]
    cutouts: Callable[..., np.ndarray]
    cutout_shape: Callable[..., tuple[int, int, int]]
    assemble: Callable[..., pa.Table]


def _prepare(
    data: Any,
    horizons: Any,
    profile: str,
    jd_max: float,
    modalities: set[str],
    judges: Any,
    set_aside: Mapping[str, tuple[str, str]],
) -> Any:
    from applecider_batch.features.inputs import prepare_shard
    from applecider_batch.features.profiles import get_profile

    return prepare_shard(
        data,
        list(horizons),
        get_profile(profile),
        snapshot_jd_max=jd_max,
        modalities=modalities,
        judges=judges,
        set_aside=set_aside,
    )


def _cutouts(stamps: pa.Table, profile: str) -> np.ndarray:
    from applecider_batch.features.cutouts import make_cutouts
    from applecider_batch.features.profiles import get_profile

    return make_cutouts(stamps, get_profile(profile))


def _cutout_shape(profile: str) -> tuple[int, int, int]:
    from applecider_batch.features.profiles import get_profile

    found = get_profile(profile)
    return found.image_channels, found.image_size, found.image_size


def _open_archive(url: str, storage_options: Mapping[str, Any] | None, snapshot: int | None) -> Any:
    from applecider_batch.archive.read import Archive

    return Archive.open(url, storage_options, snapshot)


def _load_models(models: str, storage_options: Mapping[str, Any] | None) -> Any:
    from applecider_batch.models.model_set import ModelSet

    return ModelSet.load(models, storage_options=storage_options, check_weights=False)


def real_rooms() -> Rooms:
    """The package's own lower floors."""
    from applecider_batch.catalog.rows import assemble_rows

    return Rooms(_open_archive, _load_models, _prepare, _cutouts, _cutout_shape, assemble_rows)


@dataclass(frozen=True)
class TaskSpec:
    """All that a process needs to work on shards of a run; small, and sent to every worker once."""

    plan: Plan
    run: Store
    storage_options: dict[str, Any] = field(default_factory=dict)
    rooms: Rooms = field(default_factory=real_rooms)

    def load_models(self) -> Any:
        """The run's model set."""
        return self.rooms.load_models(self.plan.models, self.storage_options or None)

    def modalities(self) -> list[str]:
        """Modalities with a network in the model set and any input in the archive."""
        networks, archive = self.load_models().defaults, self.archive()
        return [
            name
            for name in MODALITIES
            if name in networks and (name not in TABLES or archive.holds(TABLES[name]))
        ]

    def archive(self) -> Any:
        """The run's archive, at the plan's snapshot; only the plan's objects where it names some.

        Where 'archive gc' has removed that snapshot after a compaction, a later one has the same contents.
        """
        plan = self.plan
        options = self.storage_options or None
        try:
            opened = self.rooms.open_archive(plan.archive_url, options, plan.snapshot_id)
        except ArchiveError:
            opened = self.rooms.open_archive(plan.archive_url, options, None)
            if opened.snapshot.logical_digest != plan.identity["snapshot"]:
                raise
        return opened if plan.objects is None else opened.only(read_selection(self.run, plan.objects))

    def object_names(self, shard: Shard) -> list[str]:
        """objectIds of a shard, from the archive's names alone."""
        archive = self.archive()
        names: list[str] = archive.object_names(shard.hash_lo, shard.hash_hi)
        return names

    def without_shards(self) -> TaskSpec:
        """The same without the list of shards, which may be long and comes shard by shard."""
        return replace(self, plan=replace(self.plan, shards=()))
