"""The plan of a run: what is classified, with what, in which shards.  Immutable once a run folder has it.

``run_id`` is the digest of the plan's *identity*: the snapshot's logical digest, the model set, horizons,
selection, device type, dtype, batch size, threads, the shards' hash ranges and the program's version.
Executor, address, number of workers and ``--limit-shards`` are not in it: they do not change a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from applecider_batch import __version__
from applecider_batch.digest import HASH64_END, hash64, json_digest
from applecider_batch.engine.region import Region
from applecider_batch.engine.selection import describe
from applecider_batch.errors import UsageError, UserError

PLAN_FORMAT = "applecider-batch plan 1"
DTYPES: tuple[str, ...] = ("float32", "float16", "bfloat16")
DEVICE_TYPES: tuple[str, ...] = ("cpu", "cuda")
BATCH_SIZES = {"cpu": 64, "cuda": 1024}
"""Largest batch where none is asked for; on a GPU one that does not fit is halved until it does."""

_WHAT = {
    "snapshot": "the archive's snapshot",
    "models": "the model set",
    "horizons": "the horizons",
    "selection": "the selection",
    "cuts": "the own cuts",
    "device_type": "the device type",
    "dtype": "the dtype",
    "batch_size": "the batch size",
    "threads": "the threads",
    "shards": "the shards",
    "pipeline_version": "the version of applecider-batch",
}


@dataclass(frozen=True)
class Shard:
    """Objects with hash64 in [hash_lo, hash_hi); ``hash_hi`` may be 2**64."""

    shard_id: int
    hash_lo: int
    hash_hi: int
    objects: int
    alerts: int

    @property
    def name(self) -> str:
        """``shard-00012``."""
        return f"shard-{self.shard_id:05d}"

    def to_json(self) -> dict[str, Any]:
        """JSON form; hashes as decimal strings because JSON readers lose bits above 2**53."""
        return {
            "shard_id": self.shard_id,
            "hash_lo": str(self.hash_lo),
            "hash_hi": str(self.hash_hi),
            "objects": self.objects,
            "alerts": self.alerts,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shard:
        """The inverse of :meth:`to_json`."""
        return cls(
            value["shard_id"],
            int(value["hash_lo"]),
            int(value["hash_hi"]),
            value["objects"],
            value["alerts"],
        )


@dataclass(frozen=True)
class Plan:
    """What a run is.

    Attributes
    ----------
    identity : dict
        Everything that decides a row's bytes; its digest is ``run_id``.
    shards : tuple of Shard
        In hash order, covering [0, 2**64).
    archive_url, snapshot_id, models : str, int, str
        Where the inputs were found; not part of the identity.
    trained : bool
        Whether all networks in use are trained (follows from the model set).
    anomaly_ref_id : str or None
        Its anomaly reference; None: the rows will have no anomaly scores.
    """

    identity: dict[str, Any]
    shards: tuple[Shard, ...]
    archive_url: str
    snapshot_id: int
    models: str
    trained: bool
    anomaly_ref_id: str | None = None

    @property
    def run_id(self) -> str:
        """Digest of the identity, 32 hex digits."""
        return json_digest(self.identity)

    @property
    def horizons(self) -> tuple[float | None, ...]:
        """Days after t0, ascending; None (last) is the full history."""
        return tuple(self.identity["horizons"])

    @property
    def region(self) -> Region | None:
        """The cone selected, if any."""
        cone = self.identity["selection"]["region"]
        return None if cone is None else Region(*cone)

    @property
    def objects(self) -> dict[str, Any] | None:
        """Number and digest of the objects selected by name (see ``selection.py``); None for all."""
        chosen: dict[str, Any] | None = self.identity["selection"].get("objects")
        return chosen

    def to_json(self) -> dict[str, Any]:
        """The document of ``plan.json``."""
        return {
            "format": PLAN_FORMAT,
            "run_id": self.run_id,
            "identity": self.identity,
            "archive": self.archive_url,
            "snapshot_id": self.snapshot_id,
            "models": self.models,
            "trained": self.trained,
            "anomaly_ref_id": self.anomaly_ref_id,
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        UserError
            If it is not a plan of this format, or its ``run_id`` is not its identity's digest.
        """
        try:
            if value["format"] != PLAN_FORMAT:
                raise UserError(
                    f"Unknown plan format '{value['format']}'; this version reads '{PLAN_FORMAT}'."
                )
            plan = cls(
                dict(value["identity"]),
                tuple(Shard.from_json(shard) for shard in value["shards"]),
                value["archive"],
                value["snapshot_id"],
                value["models"],
                value["trained"],
                value.get("anomaly_ref_id"),
            )
            stated = value["run_id"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"The run's plan.json is damaged: {error!r}.") from error
        if stated != plan.run_id:
            raise UserError(
                f"The run's plan.json was changed: it states run_id {stated}, it is {plan.run_id}."
            )
        return plan

    def describe(self) -> dict[str, Any]:
        """What ``plan`` prints of it."""
        return {
            "run_id": self.run_id,
            "archive": self.archive_url,
            "snapshot": self.snapshot_id,
            "logical_digest": self.identity["snapshot"],
            "models": self.models,
            "model_set_digest": self.identity["models"],
            "trained": self.trained,
            "horizons": list(self.horizons),
            "region": self.identity["selection"]["region"],
            "device": self.identity["device_type"],
            "dtype": self.identity["dtype"],
            "batch_size": self.identity["batch_size"],
            "threads": self.identity["threads"],
            "shards": len(self.shards),
            "objects": sum(shard.objects for shard in self.shards),
            "alerts": sum(shard.alerts for shard in self.shards),
        }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words; empty when they are the same."""
    said = []
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            name = _WHAT.get(key, key)
            if key == "shards":
                said.append(f"{name} (the run has {old[key]['count']}, now {new[key]['count']})")
            else:
                said.append(f"{name} (the run has {_short(old.get(key))}, now {_short(new.get(key))})")
    return said


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join("full" if v is None else f"{v:g}" for v in value)
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    return str(value)


def open_inputs(
    archive_url: str, models: str, snapshot: int | None, storage_options: Mapping[str, Any] | None
) -> tuple[Any, Any]:
    """The archive and the model set, both checked; UserError where one is refused."""
    from applecider_batch.archive.read import Archive
    from applecider_batch.models.model_set import ModelSet

    model_set = ModelSet.load(models, storage_options=storage_options, check_weights=False)
    return Archive.open(archive_url, storage_options, snapshot), model_set


def read_cuts(url: str | None, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The document of a file of own cut presets; empty without one, UserError where it is refused."""
    from applecider_batch.features.cuts import read_own
    from applecider_batch.storage import store_of

    if url is None:
        return {}
    store, name = store_of(url, storage_options)
    try:
        return read_own(store.read_bytes(name).decode(), url)
    except FileNotFoundError:
        raise UserError(f"There is no cuts file '{url}'.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"The cuts file '{url}' is not text: {error}.") from error


def make_plan(
    archive: Any,
    model_set: Any,
    *,
    horizons: Sequence[float | None],
    region: Sequence[float] | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    threads: int,
    objects_per_shard: int,
    archive_url: str,
    models: str,
    cuts: Mapping[str, Any] | None = None,
    side: Sequence[str] = (),
    objects: np.ndarray | None = None,
) -> Plan:
    """The plan of a classification; deterministic, and it writes nothing (see ``engine.api.plan``).

    With ``objects`` (hash64, uint64, ascending) only these are classified, and nothing else is looked at.
    """
    _allowed("dtype", dtype, DTYPES)
    _allowed("device", device, DEVICE_TYPES)
    batch_size = BATCH_SIZES[device] if batch_size is None else batch_size
    for name, value in (
        ("batch size", batch_size),
        ("threads", threads),
        ("objects per shard", objects_per_shard),
    ):
        if value < 1:
            raise UsageError(f"The {name} must be at least 1, given was {value}.")
    cone = None if region is None else Region(*region)
    selection: dict[str, Any] = {"region": None if cone is None else [cone.ra, cone.dec, cone.radius]}
    if objects is None:
        shards = cut_shards(*_objects_of(archive, cone), objects_per_shard)
    else:
        selection["objects"] = describe(objects)
        shards = cut_shards(*_objects_among(archive.only(objects)), objects_per_shard)
    identity = {
        "format": PLAN_FORMAT,
        "pipeline_version": __version__,
        "snapshot": archive.snapshot.logical_digest,
        "models": model_set.digest,
        "horizons": checked_horizons(horizons),
        "selection": selection,
        "cuts": dict(cuts or {}),
        "side": _checked_side(side),
        "device_type": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "threads": threads,
        "shards": {
            "count": len(shards),
            "digest": json_digest([[str(s.hash_lo), str(s.hash_hi)] for s in shards]),
        },
    }
    return Plan(
        identity,
        shards,
        archive_url,
        archive.snapshot.id,
        models,
        model_set.trained,
        model_set.anomaly_ref_id,
    )


def _checked_side(names: Sequence[str]) -> list[str]:
    from applecider_batch.catalog.side import OF_RUNS

    for name in names:
        _allowed("side table", name, OF_RUNS)
    return sorted(set(names))


def _objects_of(archive: Any, cone: Region | None) -> tuple[np.ndarray, np.ndarray]:
    """hash64 and number of alerts of all objects selected; the same before and after compaction."""
    from applecider_batch.archive.objects import alert_counts, objects_table

    if cone is None:
        return alert_counts(archive)
    table = objects_table(archive)
    inside = cone.contains(table.column("ra").to_numpy(), table.column("dec").to_numpy())
    return table.column("hash64").to_numpy()[inside], table.column("n_alerts").to_numpy()[inside]


def _objects_among(archive: Any) -> tuple[np.ndarray, np.ndarray]:
    """hash64 and number of alerts of the objects of an archive that shows a few alone."""
    hashes = np.unique(hash64(archive.object_names(0, HASH64_END)))
    alerts = archive.read_alerts(0, HASH64_END, ["hash64"]).column("hash64").to_numpy()
    first, last = (np.searchsorted(alerts, hashes, side=side) for side in ("left", "right"))
    return hashes, last - first


def cut_shards(hashes: np.ndarray, alerts: np.ndarray, objects_per_shard: int) -> tuple[Shard, ...]:
    """Balanced hash ranges.

    Parameters
    ----------
    hashes : ndarray, uint64, shape (n,)
        hash64 of every object, in any order.
    alerts : ndarray, int, shape (n,)
        Alerts of every object.
    objects_per_shard : int

    Returns
    -------
    tuple of Shard
        At least one; together they cover [0, 2**64).
    """
    order = np.argsort(hashes, kind="stable")
    hashes, alerts = np.asarray(hashes, np.uint64)[order], np.asarray(alerts, np.int64)[order]
    count = max(1, math.ceil(len(hashes) / objects_per_shard))
    starts = [len(hashes) * k // count for k in range(1, count)]
    edges = [0, *sorted({int(hashes[start]) for start in starts} - {0}), HASH64_END]
    shards = []
    for number, (lo, hi) in enumerate(pairwise(edges)):
        first = np.searchsorted(hashes, np.uint64(lo))
        last = np.searchsorted(hashes, np.uint64(hi)) if hi < HASH64_END else len(hashes)
        shards.append(Shard(number, lo, hi, int(last - first), int(alerts[first:last].sum())))
    return tuple(shards)


def checked_horizons(horizons: Iterable[float | None]) -> list[float | None]:
    """Horizons ascending, each once, None last.

    Raises
    ------
    UsageError
        If there is none, or one is not a positive finite number of days.
    """
    listed = list(horizons)
    days = sorted({float(h) for h in listed if h is not None})
    if not listed:
        raise UsageError("At least one horizon is needed; give days or 'full'.")
    for day in days:
        if not (math.isfinite(day) and day > 0):
            raise UsageError(f"A horizon must be a positive number of days, given was {day}.")
    return [*days, None] if None in listed else list(days)


def _allowed(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"Unknown {name} '{value}'; allowed are {', '.join(choices)}.")
