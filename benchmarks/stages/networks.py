"""The networks on a CPU: light curves by length, images, spectra; and whole runs over the networks alone."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from applecider_batch.archive.read import Archive
from applecider_batch.engine.api import classify
from applecider_batch.engine.serial import at_once
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.batches import Batch, cut_by_length, pad_sequences
from applecider_batch.inference.predictor import Predictor
from applecider_batch.models import build_network
from applecider_batch.models.fused import fuse_blocks
from applecider_batch.models.model_set import ModelSet, init_model_set
from benchmarks.stages import Stage
from benchmarks.stages.decoding import EVERYTHING
from benchmarks.stages.inputs import Inputs

BATCH, THREADS, LONG = 64, 1, 4
LONGEST = 257
_HORIZONS = (3.0, 10.0, 30.0, None)


def write_set(folder: Path, preset: str) -> None:
    """Untrained networks of a preset's sizes."""
    from applecider_batch.training.photometry import PRESETS as photometry
    from applecider_batch.training.spectra import PRESETS as spectra

    spectranet = spectra["spectranet", preset].config
    configs = {"cls_transformer": photometry[preset].config, "spectranet": spectranet}
    if preset == "compact":
        from applecider_batch.models.astrominn_compact import COMPACT

        configs["astrominn"] = COMPACT
    init_model_set(folder, configs=configs)


def photometry_network(inputs: Inputs) -> Stage:
    """Batches by length against batches padded to 257, on the lengths that the packets' histories have."""
    archive = Archive.open(inputs.archive)
    prepared = prepare_shard(
        archive.read_shard(*EVERYTHING),
        _HORIZONS,
        get_profile("paper"),
        snapshot_jd_max=archive.snapshot.jd_max or 0.0,
        modalities=("photometry",),
    )
    values, offsets = prepared.photometry.values, prepared.photometry.offsets
    lengths = np.diff(offsets)
    predictor = Predictor(ModelSet.load(inputs.models("paper")).defaults["photometry"], threads=2)
    items = np.flatnonzero(lengths > 0)
    few = items[:: max(1, len(items) // (4 * BATCH))][: 4 * BATCH]

    def by_length(chosen: np.ndarray) -> np.ndarray:
        out = np.full((len(lengths), 5), np.nan)
        only = np.zeros(len(lengths), np.int64)
        only[chosen] = lengths[chosen]
        for length, batch in cut_by_length(only, BATCH):
            out[batch] = predictor.run(pad_sequences(values, offsets, batch, length))["logits"]
        return out[chosen]

    def padded(chosen: np.ndarray) -> np.ndarray:
        parts = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
        runs = [predictor.run(pad_sequences(values, offsets, part, LONGEST)) for part in parts]
        return np.concatenate([run["logits"] for run in runs])

    def ours() -> int:
        by_length(items)
        return len(items)

    def reference() -> int:
        padded(few)
        return len(few)

    def same() -> None:
        np.testing.assert_allclose(by_length(few), padded(few), rtol=1e-4, atol=1e-5)

    quartiles = ", ".join(str(int(q)) for q in np.quantile(lengths[items], [0.25, 0.5, 0.75, 1]))
    note = f"{len(items)} light curves of {inputs.kind} packets; quartiles and longest: {quartiles} events"
    return Stage(
        "photometry network", "light curves", ours, reference, "matrix products", 8, same, False, [note]
    )


def image_network(_: Inputs) -> Stage:
    """ConvNeXt-Tiny at 63 pixels as a run has it, against eager float32 channels-last."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    last = torch.channels_last
    plain = build_network("paper", "convnext").eval().to(memory_format=last)
    network = fuse_blocks(copy.deepcopy(plain))  # as a run has it
    x = torch.randn(BATCH, 4, 63, 63).to(memory_format=last)

    def call(module: Any, images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = module.embed(images)
        return found

    def ours() -> int:
        call(network, x)
        return BATCH

    def reference() -> int:
        call(plain, x)
        return BATCH

    def same() -> None:
        torch.testing.assert_close(call(network, x), call(plain, x), rtol=1e-4, atol=1e-5)

    return Stage(
        "ConvNeXt-Tiny, 63 px",
        "images",
        ours,
        reference,
        "matrix products",
        1.2,
        same,
        False,
        ["two threads"],
    )


@contextlib.contextmanager
def _recorded() -> Iterator[list[tuple[Predictor, Batch]]]:
    """Batches that go through any network meanwhile, with their network."""
    kept: list[tuple[Predictor, Batch]] = []
    whole = Predictor.run

    def run(self: Predictor, batch: Batch) -> dict[str, Any]:
        kept.append((self, {name: np.copy(values) for name, values in batch.items()}))
        return whole(self, batch)

    Predictor.run = run  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        Predictor.run = whole  # type: ignore[method-assign]


def end_to_end(preset: str, times: int, inputs: Inputs) -> Stage:
    """Objects a second of a whole run over those of its networks alone, on the same batches in memory.

    The mix is one shard, of which a fast set spends as much time on loading the networks and on what comes
    before the first batch and after the last as on batches; with more objects (``times``) of the same mix, in
    shards of the mix's size, the run is as a long one.
    """
    horizons = tuple(None if h == "full" else float(h) for h in inputs.mix["horizons"])
    archive, models, run = inputs.mixed(times), inputs.models(preset), inputs.work / f"run-{preset}"
    each = inputs.mix["simulate"]["objects"]

    def classified() -> int:
        shutil.rmtree(run, ignore_errors=True)
        answer = classify(
            archive,
            models,
            str(run),
            horizons=horizons,
            threads=THREADS,
            batch_size=BATCH,
            objects_per_shard=each,
            progress=False,
        )
        return int(answer["objects"])

    with _recorded() as kept:
        objects = classified()
    # The networks get the cores in the way in which they do most: two batches at once, a thread each, are as
    # fast as two threads within each operation, or faster.
    pool = ThreadPoolExecutor(at_once("cpu", THREADS, len(os.sched_getaffinity(0))))

    def networks() -> int:
        torch.set_num_threads(THREADS)
        list(pool.map(lambda each: each[0].run(each[1]), kept))
        return objects

    start = time.perf_counter()
    networks()
    seconds = time.perf_counter() - start
    note = f"{objects} objects of the mix, {len(kept)} batches, {seconds:.1f} s in the networks alone"
    return Stage(
        f"end to end, {preset}" + (f", {times} times the mix" if times > 1 else ""),
        "objects",
        classified,
        networks,
        "the networks" if preset == "paper" else "preparing rows, reading and cutting stamps",
        0.85,
        one_core=False,
        notes=[note],
    )


STAGES: tuple[Callable[[Inputs], Stage], ...] = (
    photometry_network,
    image_network,
    functools.partial(end_to_end, "paper", 1),
    functools.partial(end_to_end, "compact", 1),
    functools.partial(end_to_end, "compact", LONG),
)
