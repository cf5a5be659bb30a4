"""Small lower floors for engine tests: an archive, features and networks in a few lines, with faults on
demand.

An archive is a JSON file ``{"objects": n, "faults": {...}}``; the faults are looked up again for every
shard, so a test can take one away.  Keys of ``faults`` map a shard's hash_lo (decimal string) or ``"*"``:

- ``raise``: the shard raises ValueError, and so does every part of it
- ``raise_object``, ``die_object`` (objectId -> true): any range with the object raises or is killed
- ``die_once``: the process is killed the first time (a marker file beside the archive remembers)
- ``sleep``: seconds spent reading the shard
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.rows import assemble_rows
from applecider_batch.digest import hash64, hash64_one
from applecider_batch.engine.plan import Plan, cut_shards
from applecider_batch.engine.task_spec import Rooms, TaskSpec
from applecider_batch.inference.anomaly import fit_scorer
from applecider_batch.inference.anomaly_file import fitted_with, to_bytes
from applecider_batch.inference.anomaly_reference import AnomalyReference
from applecider_batch.models.card import ModelCard
from applecider_batch.schema import load_table
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES

HORIZONS: tuple[float | None, ...] = (3.0, None)
SIZE = 5
NAN_MARK = 77.0


def names(count: int) -> list[str]:
    """objectIds sorted as an archive's are."""
    return sorted((f"ZTF21test{i:05d}" for i in range(count)), key=lambda name: (hash64_one(name), name))


def write_archive(path: Path, objects: int = 40, **faults: Any) -> str:
    """Write the JSON file of an archive; returns its path."""
    path.write_text(json.dumps({"objects": objects, "faults": faults}))
    return str(path)


@dataclass(frozen=True)
class FakeShard:
    """Objects and the tables that region selection looks at."""

    objects: list[str]


class FakeArchive:
    """Objects named by :func:`names`; a candid is the position of its object in that list."""

    bytes_read = 0

    def __init__(self, url: str) -> None:
        self.url = url
        self.snapshot = SimpleNamespace(
            logical_digest=f"fake-{self._read()['objects']}", jd_max=2460000.5, id=1
        )

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(Path(self.url).read_text())
        return content

    def read_shard(self, lo: int, hi: int, without: Sequence[int] = ()) -> FakeShard:
        for gap in sorted({gap for gap in without if lo <= gap < hi}):
            left, right = self.read_shard(lo, gap), self.read_shard(gap + 1, hi, without)
            return FakeShard([*left.objects, *right.objects])
        if lo == hi:
            return FakeShard([])
        content = self._read()
        self._fail(content["faults"], lo, hi)
        return FakeShard(self.object_names(lo, hi))

    def holds(self, name: str) -> bool:
        return True

    def object_names(self, lo: int, hi: int) -> list[str]:
        return [name for name in names(self._read()["objects"]) if lo <= hash64_one(name) < hi]

    def _fail(self, faults: dict[str, Any], lo: int, hi: int) -> None:
        inside = set(self.object_names(lo, hi))

        def of(kind: str) -> Any:
            where = faults.get(kind, {})
            return where.get(str(lo), where.get("*"))

        if seconds := of("sleep"):
            time.sleep(seconds)
        if any(int(start) <= lo < int(end) for start, end in faults.get("raise", {}).items()):
            raise ValueError("this shard is poison")
        if inside & set(faults.get("raise_object", {})):
            raise ValueError("this object is poison")
        if inside & set(faults.get("die_object", {})):
            os.kill(os.getpid(), signal.SIGKILL)
        marker = Path(f"{self.url}.died-{lo}")
        if of("die_once") and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def read_stamps(self, lo: int, hi: int, candids: Sequence[int]) -> pa.Table:
        return pa.table({"candid": pa.array(list(candids), pa.int64())})


@dataclass(frozen=True)
class Photometry:
    values: np.ndarray
    offsets: np.ndarray
    row_index: np.ndarray


@dataclass(frozen=True)
class Image:
    candid: np.ndarray
    metadata: np.ndarray
    row_index: np.ndarray


@dataclass(frozen=True)
class Spectra:
    flux: np.ndarray
    row_index: np.ndarray


@dataclass(frozen=True)
class Prepared:
    rows: pa.Table
    photometry: Photometry
    image: Image
    spectra: Spectra


def prepare(
    data: FakeShard,
    horizons: Sequence[float | None],
    profile: str,
    jd_max: float,
    wanted: set[str],
    judges: Any,
    set_aside: dict[str, tuple[str, str]],
) -> Prepared:
    """One row per object and horizon; light curves of 1 to 40 events; the object decides everything."""
    objects = list(data.objects)
    rows = [
        {"objectId": name, "episode": 1, "horizon_days": day, "gate": "in_scope"}
        for name in objects
        for day in horizons
    ]
    rows += [
        {"objectId": name, "episode": 0, "error_code": code, "object_error": said}
        for name, (code, said) in set_aside.items()
    ]
    n = len(objects)
    catalogue = load_table("catalogue").arrow
    keys = ("objectId", "episode", "horizon_days", "gate", "error_code", "object_error")
    table = pa.Table.from_pylist(rows, pa.schema([catalogue.field(key) for key in keys]))
    table = table.append_column("hash64", pa.array(hash64(table.column("objectId"))))
    for name in ("ra", "dec"):
        table = table.append_column(name, pa.nulls(len(rows), pa.float64()))
    curves = [np.random.default_rng(hash64_one(name)) for name in objects]
    lengths = np.array([int(rng.integers(1, 41)) for rng in curves], np.int64)
    values = [
        rng.normal(size=(length, 7)).astype(np.float32) for rng, length in zip(curves, lengths, strict=True)
    ]
    everyone = np.repeat(np.arange(n), len(horizons)).astype(np.int32)
    everyone = np.append(everyone, np.full(len(set_aside), -1, np.int32))
    candids = np.array([int(name[-5:]) for name in objects], np.int64)
    return Prepared(
        table,
        Photometry(
            np.concatenate([np.empty((0, 7), np.float32), *values]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            everyone,
        ),
        Image(candids, np.stack([candids, candids % 7], axis=1).astype(np.float32).reshape(n, 2), everyone),
        Spectra(np.empty((0, 16), np.float32), np.full(len(rows), -1, np.int32)),
    )


def cutouts(stamps: pa.Table, profile: str) -> np.ndarray:
    """Images from the candid alone."""
    candids = stamps.column("candid").to_pylist()
    made = [np.random.default_rng(c).normal(size=(3, SIZE, SIZE)) for c in candids]
    return np.array(made, np.float32).reshape(-1, 3, SIZE, SIZE)


def cutout_shape(profile: str) -> tuple[int, int, int]:
    """Shape of an image."""
    return 3, SIZE, SIZE


class FakeEntry:
    """A network of a fake set."""

    def __init__(self, modality: str, features: tuple[str, ...]) -> None:
        self.modality = modality
        self.card = ModelCard(modality, "fake", "tiny", modality, feature_names=features)

    def build(self) -> Any:
        from tests.engine.fake_networks import build

        return build(self.modality)


def load_models(models: str, storage_options: Any = None) -> Any:
    """``tiny`` has photometry and image networks, ``scored`` an anomaly reference too, ``slim`` photometry
    alone, ``broken`` cannot be loaded."""
    if models == "broken":
        raise RuntimeError("no such file on this node")
    defaults = {
        "photometry": FakeEntry("photometry", ()),
        **({} if models == "slim" else {"image": FakeEntry("image", ("a", "b"))}),
    }
    made = SimpleNamespace(
        digest=f"digest-{models}",
        profile="fake",
        trained=False,
        model_set_id=f"{models}-0",
        calibration={},
        calibration_id=None,
        anomaly_ref_id=None,
        picture_size=None,
        gate_id=None,
        learned_gate=lambda: None,
        training_ids=lambda: (frozenset(), False),
        defaults=defaults,
        inputs=set(defaults),
    )
    if models == "scored":
        made.anomaly_ref_id, made.anomaly_bytes = "ref-0", lambda: reference_bytes(made)
    return made


def reference_bytes(model_set: Any) -> bytes:
    """An anomaly reference of random latents and scores, the same in every process."""
    rng = np.random.default_rng(5)
    n, h = 300, len(HORIZONS)
    scorers = {}
    for modality, width in (("photometry", 8), ("image", 4)):
        latent = np.tanh(rng.normal(size=(120, width))).astype(np.float32)
        scorers[modality] = fit_scorer(latent, np.repeat(CLASSES[:2], 60), seed=0)
    return to_bytes(
        AnomalyReference(
            {name: scorer for name, scorer in scorers.items() if scorer is not None},
            HORIZONS,
            CLASSES,
            rng.normal(0.5, 1, (n, h, 3, 4)).astype(np.float32),
            rng.random((n, h)).astype(np.float32),
            np.full((n, h), 3, np.int16),
            rng.integers(0, 2, (n, h)).astype(np.int16),
            {"fitted_with": fitted_with(model_set)},
        )
    )


def open_archive(url: str, storage_options: Any, snapshot: int | None) -> FakeArchive:
    """The archive of a JSON file."""
    return FakeArchive(url)


ROOMS = Rooms(open_archive, load_models, prepare, cutouts, cutout_shape, assemble_rows)


def make_plan(archive_url: str, objects_per_shard: int = 5, models: str = "tiny", **identity: Any) -> Plan:
    """A plan over a fake archive."""
    archive, model_set = FakeArchive(archive_url), load_models("tiny")
    listed = names(archive._read()["objects"])
    shards = cut_shards(hash64(listed), np.ones(len(listed), np.int64), objects_per_shard)
    filled = {
        "snapshot": archive.snapshot.logical_digest,
        "models": f"digest-{models}",
        "horizons": list(HORIZONS),
        "selection": {"region": None},
        "cuts": {},
        "device_type": "cpu",
        "dtype": "float32",
        "batch_size": 4,
        "threads": 1,
        "shards": {"count": len(shards), "digest": ""},
        **identity,
    }
    return Plan(filled, shards, archive_url, 1, models, model_set.trained)


def make_spec(plan: Plan, run_url: str, storage_options: dict[str, Any] | None = None) -> TaskSpec:
    """The task over the fake floors."""
    return TaskSpec(plan, Store(run_url, storage_options), {}, ROOMS)
