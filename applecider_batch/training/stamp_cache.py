"""Cutouts of a training's alerts as memory-mapped files, so that an epoch reads them in bounded memory.

::

    CACHE/stamps-<digest>/000000.npy …   float32 (up to 1024, C, S, S): cutouts as inference makes them
    CACHE/stamps-<digest>/usable.npy     bool (n,); written last, so a cache without it is not complete

The digest is over profile, snapshot and alerts. A build that was interrupted goes on with the first missing
file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from applecider_batch.archive.read import Archive
from applecider_batch.digest import json_digest
from applecider_batch.features.prepared import ImageInputs
from applecider_batch.features.profiles import Profile
from applecider_batch.inference.shard import stamp_reader

SHARD = 1024
_USABLE = "usable.npy"


class StampCache:
    """Cutouts of n alerts on disk.

    Parameters
    ----------
    folder : Path
        As :func:`build_cache` leaves it.

    Attributes
    ----------
    usable : ndarray of bool, shape (n,)
        False where the stamps could not be cut.
    """

    def __init__(self, folder: Path) -> None:
        self.usable: np.ndarray = np.load(folder / _USABLE)
        self._shard = SHARD
        self._files = [folder / _shard_name(i) for i in range(-(-len(self.usable) // SHARD))]

    def __len__(self) -> int:
        return len(self.usable)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Cutouts of some alerts, float32 (b, C, S, S)."""
        shard, inside = np.divmod(rows, self._shard)
        out: np.ndarray | None = None
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            # Opened anew each time: a map that is kept keeps the pages that were touched.
            images = np.load(self._files[number], mmap_mode="r")[inside[here]]
            if out is None:
                out = np.empty((len(rows), *images.shape[1:]), np.float32)
            out[here] = images
        assert out is not None, "no rows were asked for"
        return out


def build_cache(folder: Path, archive: Archive, image: ImageInputs, profile: Profile) -> StampCache:
    """Cut the stamps of these alerts once, a file of 1024 at a time.

    Parameters
    ----------
    folder : Path
        Of caches; a cache of the same alerts that is there is used.
    archive : Archive
    image : ImageInputs
        Alerts in the archive's order, so that a file reads neighbouring row groups.
    profile : Profile
    """
    identity = [profile.digest(), archive.snapshot.logical_digest, image.candid.tolist()]
    own = folder / f"stamps-{json_digest(identity)[:16]}"
    if not (own / _USABLE).exists():
        own.mkdir(parents=True, exist_ok=True)
        usable = [
            _build_shard(own / _shard_name(i), archive, _slice(image, i), profile)
            for i in range(-(-len(image.candid) // SHARD))
        ]
        _save(own / _USABLE, np.concatenate([np.empty(0, bool), *usable]))
    return StampCache(own)


def _build_shard(file: Path, archive: Archive, image: ImageInputs, profile: Profile) -> np.ndarray:
    if file.exists():
        images = np.load(file, mmap_mode="r")
    else:
        images = stamp_reader(archive, image, profile)(image.candid)
        _save(file, images)
    return np.isfinite(images).all(axis=(1, 2, 3))


def _slice(image: ImageInputs, number: int) -> ImageInputs:
    part = slice(number * SHARD, (number + 1) * SHARD)
    return ImageInputs(image.candid[part], image.hash64[part], image.metadata[part], np.empty(0, np.int32))


def _shard_name(number: int) -> str:
    return f"{number:06d}.npy"


def _save(file: Path, values: np.ndarray) -> None:
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    with beside.open("wb") as out:
        np.save(out, values)
    beside.replace(file)
