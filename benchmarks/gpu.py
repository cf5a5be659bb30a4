"""The networks on a GPU, the feed from decoded shards, and both together.

    python -m benchmarks.gpu [--device cuda] [--dtype float16] [--archive URL] [--readers 8] [--write]

Needs torch, NumPy, pyarrow and the compute core, which decodes stamps with lz4, deflate and numba.  Measured
are: products of large matrices, which are the ceiling; each network's items a second at the batch size that
is fastest within the memory, with its counted operations as a share of that ceiling, on a GPU also replayed
as a CUDA graph; triplets a second that N reader processes unpack and cut; and the image network fed by them
through pinned memory.  Weights are random: speed does not depend on them.  Without ``--archive`` the stamps
are noise.  ``--write`` puts the table, with date and device, into ``docs/performance.md``.  ``--device cpu``
shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from applecider_batch.archive.part_reader import PartReader
from applecider_batch.archive.parts import PartWriter
from applecider_batch.archive.stamp_blocks import COLUMNS, pack, unpack
from applecider_batch.features.cutouts import make_cutouts
from applecider_batch.features.profiles import get_profile
from applecider_batch.models import build_network
from applecider_batch.schema import load_table
from applecider_batch.storage import Store

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PAPER = get_profile("paper")
EVENTS = 32
GAIN = 1.03  # a batch twice as large has to be faster by this to be worth its memory
QUEUED = 4
Inputs = tuple[torch.Tensor, ...]


def _images(batch: int) -> torch.Tensor:
    return torch.randn(batch, PAPER.image_channels, PAPER.image_size, PAPER.image_size)


NETWORKS: dict[str, tuple[str, Callable[[int], Inputs]]] = {
    "cls_transformer": (
        f"light curves of {EVENTS} events",
        lambda b: (torch.randn(b, EVENTS, 7), torch.ones(b, EVENTS, dtype=torch.bool)),
    ),
    "astrominn": ("images", lambda b: (_images(b), torch.randn(b, len(PAPER.metadata_names)))),
    "convnext": ("images", lambda b: (_images(b),)),
    "spectranet": ("spectra", lambda b: (torch.randn(b, 1, 4096),)),
}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(call: Callable[[], Any], units: int, seconds: float, device: torch.device) -> float:
    """Units a second: the median of turns that fill the time given, at least three."""
    call()
    _wait(device)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return units / statistics.median(taken)


def ceiling(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> float:
    """Operations a second of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return rate(lambda: a @ b, 2 * size**3, seconds, device)


def fastest_batch(measure: Callable[[int], float], start: int, most: int) -> tuple[int, float]:
    """Double the batch while it gains and fits into memory; the batch and its rate."""
    best: tuple[int, float] = (start, measure(start))
    while best[0] * 2 <= most:
        try:
            found = measure(best[0] * 2)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if found < best[1] * GAIN:
            break
        best = (best[0] * 2, found)
    return best


class Network:
    """A network on the device in half precision, as a run has it there."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        module = build_network("paper", name).eval().requires_grad_(False)
        self.module = module.to(device).to(memory_format=torch.channels_last)
        self.device, self.dtype, self.make = device, dtype, NETWORKS[name][1]

    def inputs(self, batch: int) -> Inputs:
        """Random inputs on the device."""
        return tuple(x.to(self.device) for x in self.make(batch))

    @torch.inference_mode()
    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found: torch.Tensor = self.module.forward_with_latent(*inputs)[0]
        return found

    def operations(self) -> float:
        """Counted operations of one item."""
        with FlopCounterMode(display=False) as counter:
            self(*self.inputs(2))
        return counter.get_total_flops() / 2

    def replayed(self, batch: int, seconds: float) -> float | None:
        """Items a second as a CUDA graph; None where there is no GPU, or the network cannot be captured."""
        if self.device.type != "cuda":
            return None
        inputs, graph, aside = self.inputs(batch), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        try:
            with torch.cuda.stream(aside):
                self(*inputs)
            torch.cuda.synchronize(self.device)
            with torch.cuda.graph(graph):
                self(*inputs)
        except RuntimeError:
            return None
        return rate(graph.replay, batch, seconds, self.device)


def noise_part(folder: str, triplets: int) -> PartReader:
    """A part of stamps of noise."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (triplets, 63 * 63)).astype(np.float32)
    side = pa.array(np.full(triplets, 63, np.int16))
    columns: dict[str, Any] = {
        "hash64": pa.array(np.sort(rng.integers(0, 2**63, triplets).astype(np.uint64))),
        "objectId": pa.array([f"ZTF20{n:07d}" for n in range(triplets)]),
        "jd": pa.array(np.full(triplets, 2_460_000.5)),
        "candid": pa.array(np.arange(triplets)),
        "stamp_status": pa.array(np.zeros(triplets, np.int16)),
        "packet_digest": pa.array(["0" * 32] * triplets),
    }
    for name in ("Science", "Template", "Difference"):
        columns |= {f"cutout{name}": pa.array(list(pixels)), f"height{name}": side, f"width{name}": side}
    store = Store(folder)
    with PartWriter(store, "noise", "noise") as writer:
        writer.append("stamps", pack(load_table("stamps").conform(pa.table(columns))))
        return PartReader(store, writer.finish())


def parts_of(url: str) -> list[PartReader]:
    """The parts of an archive that hold stamps."""
    from applecider_batch.archive.read import Archive

    return [part for part in Archive.open(url).parts if "stamps" in part.record.tables]


def cutouts(parts: list[PartReader], reader: int, readers: int) -> Iterator[np.ndarray]:
    """Cut stamps of every reader's own row groups, again and again, half precision (n, C, S, S)."""
    groups = [(part, g) for part in parts for g in range(len(part.index("stamps").rows))]  # type: ignore[union-attr]
    mine = groups[reader::readers] or groups
    columns = [*COLUMNS, *(f"{side}{name[6:]}" for name in COLUMNS for side in ("height", "width"))]
    while True:
        for part, group in mine:
            yield make_cutouts(unpack(part.read_groups("stamps", [group], columns)), PAPER).astype(np.float16)


def _read(parts: list[PartReader], reader: int, readers: int, seconds: float, queue: Any) -> None:
    """A reader process that counts."""
    source = cutouts(parts, reader, readers)
    next(source)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(source))
    queue.put(count / (time.perf_counter() - start))


def _feed(parts: list[PartReader], reader: int, readers: int, queue: Any) -> None:
    """A reader process that hands its cutouts on through shared memory, until it is ended."""
    torch.set_num_threads(1)
    for images in cutouts(parts, reader, readers):
        queue.put(torch.from_numpy(images).share_memory_())


def feed_rate(parts: list[PartReader], readers: int, seconds: float) -> float:
    """Triplets a second that all readers unpack and cut."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=_read, args=(parts, n, readers, seconds, queue)) for n in range(readers)
    ]
    for worker in workers:
        worker.start()
    rates = [queue.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(rates))


def end_to_end(parts: list[PartReader], readers: int, network: Network, batch: int, seconds: float) -> float:
    """Triplets a second through the image network, from the archive, copies overlapped with computing."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue(QUEUED * readers)
    feeds = [
        context.Process(target=_feed, args=(parts, n, readers, queue), daemon=True) for n in range(readers)
    ]
    for feed in feeds:
        feed.start()
    metadata = torch.randn(batch, len(PAPER.metadata_names), device=network.device)

    def one() -> int:
        pieces, count = [], 0
        while count < batch:
            pieces.append(queue.get(timeout=300))
            count += len(pieces[-1])
        images = torch.cat(pieces)[:batch]
        if network.device.type == "cuda":
            images = images.pin_memory()
        on_device = images.to(network.device, non_blocking=True).float()
        network(on_device.contiguous(memory_format=torch.channels_last), metadata)
        return batch

    try:
        one()
        _wait(network.device)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += one()
        _wait(network.device)
        return count / (time.perf_counter() - start)
    finally:
        for feed in feeds:
            feed.terminate()
            feed.join()


def measure(
    device: torch.device, dtype: str, archive: str | None, readers: int, seconds: float
) -> dict[str, Any]:
    """Everything, as one document."""
    gpu, kind = device.type == "cuda", DTYPES[dtype]
    top = ceiling(device, kind, 8192 if gpu else 512, seconds)
    answer: dict[str, Any] = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if gpu else f"cpu, {torch.get_num_threads()} threads",
        "dtype": dtype,
        "ceiling_tflops": top / 1e12,
        "networks": [],
    }
    for name, (unit, _) in NETWORKS.items():
        network = Network(name, device, kind)

        def of_batch(batch: int, network: Network = network) -> float:
            inputs = network.inputs(batch)
            return rate(lambda: network(*inputs), batch, seconds, device)

        batch, found = fastest_batch(of_batch, 64 if gpu else 4, 1 << 15 if gpu else 8)
        operations, graph = network.operations(), network.replayed(batch, seconds)
        answer["networks"].append(
            {
                "network": name,
                "unit": unit,
                "batch": batch,
                "per_second": found,
                "per_second_graph": graph,
                "gflop": operations / 1e9,
                "share_of_ceiling": max(found, graph or 0) * operations / top,
            }
        )
        if name == "astrominn":
            image_batch, image_rate = batch, max(found, graph or 0)
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(archive) if archive else [noise_part(folder, 1024 if gpu else 64)]
        fed = feed_rate(parts, readers, seconds)
        whole = end_to_end(parts, readers, Network("astrominn", device, kind), image_batch, seconds)
    answer |= {
        "readers": readers,
        "stamps": "archive" if archive else "noise",
        "feed_triplets_per_second": fed,
        "end_to_end_triplets_per_second": whole,
        "end_to_end_over_smaller": whole / min(fed, image_rate),
    }
    return answer


def table(answer: dict[str, Any]) -> str:
    """The document as Markdown."""
    lines = [
        f"{answer['date']}, {answer['device']}, {answer['dtype']}; a product of matrices: "
        f"{answer['ceiling_tflops']:.1f} TFLOP/s.",
        "",
        "| network | batch | per second | as a CUDA graph | GFLOP an item | share of the ceiling |",
        "|---|---|---|---|---|---|",
    ]
    for row in answer["networks"]:
        graph = "–" if row["per_second_graph"] is None else f"{row['per_second_graph']:,.0f}"
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['per_second']:,.0f} {row['unit']} | {graph} "
            f"| {row['gflop']:.3f} | {row['share_of_ceiling']:.0%} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{answer['readers']} readers unpack and cut "
            f"{answer['feed_triplets_per_second']:,.0f} triplets/s ({answer['stamps']}); from there "
            f"through astrominn {answer['end_to_end_triplets_per_second']:,.0f}/s, "
            f"{answer['end_to_end_over_smaller']:.2f} of the smaller of the two.",
        ]
    )


def main() -> None:
    """Measure and print one JSON document; with ``--write`` the page has it, too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16")
    parser.add_argument("--archive", help="stamps of this archive instead of noise")
    parser.add_argument("--readers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --device cpu shows that the benchmark runs")
    answer = measure(device, arguments.dtype, arguments.archive, arguments.readers, arguments.seconds)
    print(json.dumps(answer, indent=1))
    if arguments.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(answer)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
