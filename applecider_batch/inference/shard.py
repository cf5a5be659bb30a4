"""Inference of one shard: batches of every modality through their ports, with bounded work in flight.

A *port* stands for the networks of one modality.  It is anything with ``submit(batch) -> handle`` and
``result(handle) -> answer``: here :class:`LocalPort`, in the engine a pool of actors.  At most ``in_flight``
batches of a modality are under way, so memory does not grow with the shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from applecider_batch.features.cutouts import make_cutouts
from applecider_batch.inference.anomaly_reference import AnomalyReference
from applecider_batch.inference.batches import (
    Batch,
    cut,
    cut_by_length,
    pad_sequences,
    spectra_input,
    wire_dtype,
)
from applecider_batch.inference.calibration import Calibration
from applecider_batch.inference.fusion import MODALITIES
from applecider_batch.inference.marginal import marginalise
from applecider_batch.logs import get_logger

IN_FLIGHT = 2
PIECE = 256
"""Stamps read at once: 40 MB, small enough for the processor's caches to help."""

_log = get_logger(__name__)

CutoutReader = Callable[[np.ndarray], np.ndarray]


class Port(Protocol):
    """Where batches of one modality go."""

    def submit(self, batch: Batch) -> Any:
        """Hand a batch in; returns at once or when it is done."""

    def result(self, handle: Any) -> dict[str, Any]:
        """Answer of :meth:`applecider_batch.inference.predictor.Predictor.run` for that batch."""


class LocalPort:
    """A predictor in this process; ``before`` is called ahead of every batch and may raise to stop."""

    def __init__(self, predictor: Any, before: Callable[[], None] | None = None) -> None:
        self._predictor, self._before = predictor, before

    def submit(self, batch: Batch) -> dict[str, Any]:
        """Run the batch."""
        if self._before is not None:
            self._before()
        answer: dict[str, Any] = self._predictor.run(batch)
        return answer

    def result(self, handle: dict[str, Any]) -> dict[str, Any]:
        """The answer itself."""
        return handle


@dataclass
class ShardOutputs:
    """What the networks said about a shard's items.

    Attributes
    ----------
    logits : dict of modality -> ndarray, float32, shape (n_items, 5)
        NaN where the item was not run or the network gave no finite answer.
    latents : dict of modality -> ndarray, float32, shape (n_items, D)
        NaN in the same rows; D is 0 where nothing was run.
    energies : dict of modality -> ndarray, float32, shape (n_items,)
        -logsumexp of the network's own logits; NaN in the same rows.
    absent : dict of modality -> ndarray, bool, shape (n_items,)
        True where an item was not run because it has no usable input (an event-less light curve, damaged
        stamps).
    batches : dict of modality -> int
        Batches run.
    degraded : bool
        A batch had to be halved for lack of memory.
    calibration : Calibration
        Temperatures to apply when rows are assembled.
    reference : AnomalyReference or None
        What anomaly scores are fitted on and compared with.
    """

    logits: dict[str, np.ndarray] = field(default_factory=dict)
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    energies: dict[str, np.ndarray] = field(default_factory=dict)
    absent: dict[str, np.ndarray] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    degraded: bool = False
    calibration: Calibration = field(default_factory=Calibration)
    reference: AnomalyReference | None = None


def infer(
    prepared: Any,
    cutouts: CutoutReader,
    ports: Mapping[str, Port],
    *,
    batch_size: Mapping[str, int],
    dtype: str = "float32",
    in_flight: int = IN_FLIGHT,
    calibration: Calibration | None = None,
    reference: AnomalyReference | None = None,
    picture_size: int | None = None,
) -> ShardOutputs:
    """Run all items of a shard through the networks of their modality.

    Parameters
    ----------
    prepared : features.inputs.Prepared
    cutouts : callable, candids int64 (m,) -> float32 (m, C, S, S)
        Decoded and cut stamps; a candid without stamps gives NaN.
    ports : mapping of modality -> Port
        Only modalities in it are run.
    batch_size : mapping of modality -> int
    dtype : str
        Of the plan; decides the dtype in which tensors travel.
    in_flight : int
        Batches of a modality under way at once.
    calibration : Calibration, optional
    reference : AnomalyReference, optional
        Both are handed on with the outputs.
    picture_size : int, optional
        Pixels a side of the pictures that the network of spectra reads; None: it reads their flux.

    Returns
    -------
    ShardOutputs
    """
    outputs = ShardOutputs(calibration=calibration or Calibration(), reference=reference)
    lanes = []
    for modality in MODALITIES:
        if modality in ports:
            count, batches = _batches(
                modality, prepared, cutouts, batch_size[modality], wire_dtype(dtype), picture_size
            )
            lanes.append(_Lane(modality, count, batches, ports[modality], in_flight))
    # Round robin: every modality keeps its own actors busy while the next batch of another one is prepared.
    # Images come last: when stamps are read for them, the others' batches are under way.
    busy = sorted(lanes, key=lambda lane: lane.modality == "image")
    while busy:
        for lane in busy:
            lane.fill()
        busy = [lane for lane in busy if lane.collect()]
    for lane in lanes:
        (logits, latents), energies, absent = lane.arrays(), lane.energies, lane.absent
        if lane.modality == "spectra":
            # An item is a spectrum; one without a redshift went through at several.
            tried = prepared.spectra
            logits, latents, energies = marginalise(logits, latents, energies, tried.redshift, tried.offsets)
            absent = absent[tried.offsets[:-1]]
        outputs.logits[lane.modality], outputs.latents[lane.modality] = logits, latents
        outputs.energies[lane.modality] = energies
        outputs.absent[lane.modality] = absent
        outputs.batches[lane.modality] = lane.batches_run
        outputs.degraded |= lane.degraded
    return outputs


class _Lane:
    """The batches of one modality: those to come, those under way, the answers."""

    def __init__(
        self,
        modality: str,
        count: int,
        batches: Iterator[tuple[np.ndarray, Batch]],
        port: Port,
        in_flight: int,
    ) -> None:
        self.modality, self.batches_run, self.degraded = modality, 0, False
        self._batches, self._port, self._in_flight = batches, port, in_flight
        self._pending: deque[tuple[np.ndarray, Any]] = deque()
        self.absent = np.ones(count, bool)
        self.energies = np.full(count, np.nan, np.float32)
        self._logits = np.full((count, 5), np.nan, np.float32)
        self._latents: np.ndarray | None = None

    def fill(self) -> None:
        while len(self._pending) < self._in_flight:
            following = next(self._batches, None)
            if following is None:
                return
            items, batch = following
            self._pending.append((items, self._port.submit(batch)))

    def collect(self) -> bool:
        """Take the oldest answer; False when there is nothing left to wait for."""
        if not self._pending:
            return False
        items, handle = self._pending.popleft()
        answer = self._port.result(handle)
        self._logits[items] = answer["logits"]
        self.energies[items] = answer["energy"]
        self.absent[items] = False
        if self._latents is None:
            shape = (len(self._logits), answer["latent"].shape[1])
            self._latents = np.full(shape, np.nan, np.float32)
        self._latents[items] = answer["latent"]
        self.batches_run += 1
        self.degraded |= bool(answer["degraded"])
        return True

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        if self._latents is None:
            return self._logits, np.empty((len(self._logits), 0), np.float32)
        return self._logits, self._latents


def _batches(
    modality: str,
    prepared: Any,
    cutouts: CutoutReader,
    batch_size: int,
    wire: np.dtype,
    picture_size: int | None,
) -> tuple[int, Iterator[tuple[np.ndarray, Batch]]]:
    """Number of items and the iterator of (item numbers, batch)."""
    if modality == "photometry":
        offsets = np.asarray(prepared.photometry.offsets)
        return len(offsets) - 1, _photometry(prepared.photometry, offsets, batch_size)
    if modality == "image":
        return len(prepared.image.candid), _images(prepared.image, cutouts, batch_size, wire)
    flux = prepared.spectra.flux
    return len(flux), _spectra(flux, batch_size, wire, picture_size)


def _photometry(photometry: Any, offsets: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    summary = getattr(photometry, "curve_summary", None)
    for length, items in cut_by_length(np.diff(offsets), batch_size):
        batch = pad_sequences(photometry.values, offsets, items, length)
        if summary is not None:
            batch["summary"] = summary.values[items]
        yield items, batch


def _spectra(
    flux: np.ndarray, batch_size: int, wire: np.dtype, picture_size: int | None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Spectra on the profile's grid, or their pictures: these are drawn when their batch is due."""
    for items in cut(len(flux), batch_size):
        x = spectra_input(flux[items], picture_size)
        yield items, {"x": x.astype(wire) if picture_size is None else x}


def _images(
    image: Any, cutouts: CutoutReader, batch_size: int, wire: np.dtype
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Image batches; a stamp shared by neighbours is cut once, items without usable stamps left out."""
    kept: dict[int, np.ndarray] = {}
    for items in cut(len(image.candid), batch_size):
        candids = np.asarray(image.candid)[items]
        wanted = list(dict.fromkeys(candids.tolist()))
        missing = np.array([c for c in wanted if c not in kept], np.int64)
        fresh = dict(zip(missing.tolist(), cutouts(missing), strict=True)) if len(missing) else {}
        kept = {c: fresh[c] if c in fresh else kept[c] for c in wanted}
        stacked = np.stack([kept[c] for c in candids.tolist()])
        usable = ~np.isnan(stacked).all(axis=(1, 2, 3))
        if usable.any():
            metadata = np.asarray(image.metadata)[items[usable]].astype(np.float32)
            yield items[usable], {"image": stacked[usable].astype(wire), "metadata": metadata}


class StampCutouts:
    """Reads stamps from the archive in larger pieces than a batch and cuts them for a profile.

    Parameters
    ----------
    read_stamps : callable, candids -> pyarrow.Table
        Rows of the stamps table of those candids, in any order.
    make_cutouts : callable, (stamps table) -> float32 (n, C, S, S)
        One cutout per row, same order.
    shape : tuple of int
        (C, S, S) of an absent stamp's NaN cutout.
    candids : ndarray, int64, shape (n,)
        All candids of the shard in the order in which they will be asked for.
    piece : int
        Stamps read at once.
    """

    def __init__(
        self,
        read_stamps: Callable[[np.ndarray], pa.Table],
        make_cutouts: Callable[[pa.Table], np.ndarray],
        shape: tuple[int, int, int],
        candids: np.ndarray,
        piece: int = PIECE,
    ) -> None:
        self._read, self._make, self._shape, self._piece = read_stamps, make_cutouts, shape, piece
        self._order = list(dict.fromkeys(np.asarray(candids).tolist()))
        self._position = {candid: number for number, candid in enumerate(self._order)}
        self._kept: dict[int, np.ndarray] = {}

    def __call__(self, candids: np.ndarray) -> np.ndarray:
        """Cutouts (m, C, S, S) of the candids, float32."""
        wanted = np.asarray(candids).tolist()
        missing = [c for c in wanted if c not in self._kept]
        if missing:
            start = min(self._position[c] for c in missing)
            stop = max(start + self._piece, max(self._position[c] for c in missing) + 1)
            self._kept = {c: self._kept[c] for c in wanted if c in self._kept}
            self._load([c for c in self._order[start:stop] if c not in self._kept])
        return np.stack([self._kept[c] for c in wanted])

    def _load(self, candids: list[int]) -> None:
        table = self._read(np.array(candids, np.int64))
        made = self._cut(table)
        absent = np.full(self._shape, np.nan, np.float32)
        self._kept.update(dict.fromkeys(candids, absent))
        self._kept.update(zip(table.column("candid").to_pylist(), made, strict=True))

    def _cut(self, table: pa.Table) -> np.ndarray | list[np.ndarray]:
        try:
            return self._make(table)
        except (ValueError, TypeError, IndexError, KeyError, pa.ArrowException) as error:
            # One unreadable stamp must not take its neighbours along.
            _log.warning(
                "Stamps of %d alerts could not be cut together (%s); cutting them one by one.",
                table.num_rows,
                error,
            )
            return [self._cut_one(table.slice(row, 1)) for row in range(table.num_rows)]

    def _cut_one(self, row: pa.Table) -> np.ndarray:
        try:
            return np.asarray(self._make(row)[0], np.float32)
        except (ValueError, TypeError, IndexError, KeyError, pa.ArrowException):
            return np.full(self._shape, np.nan, np.float32)


def stamp_reader(archive: Any, image: Any, profile: Any) -> StampCutouts:
    """Cutouts of image items, read from an archive when they are asked for.

    Parameters
    ----------
    archive : archive.read.Archive
    image : features.prepared.ImageInputs
        ``candid`` and ``hash64`` of the items, in the order in which they will be asked for.
    profile : features.profiles.Profile
    """
    hashes = dict(zip(image.candid.tolist(), image.hash64.tolist(), strict=True))

    def read(candids: np.ndarray) -> pa.Table:
        own = [hashes[c] for c in candids.tolist()]
        return archive.read_stamps(min(own), max(own) + 1, candids.tolist())

    shape = (profile.image_channels, profile.image_size, profile.image_size)
    return StampCutouts(read, lambda table: make_cutouts(table, profile), shape, image.candid)
