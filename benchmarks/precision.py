"""What the fast ways of computing change in a catalogue: nothing that counts.

    python -m benchmarks.precision ARCHIVE [--models compact] [--device cpu]

The same archive is classified by a run as it is (float32: batches of one length, fused blocks), by eager
float32 with every light curve padded to 257 events, and by runs in half precision. Each is compared with the
eager one: the largest difference of a probability, rows whose most probable class changes, and how many of
the 100 first candidates are the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidates import FindOptions, find_candidates
from applecider_batch.catalog.read import read_table
from applecider_batch.engine.api import classify
from applecider_batch.inference.batches import LENGTH_BUCKETS, cut_by_length

HORIZONS = (3.0, 10.0, 30.0, None)
TOP = 100
KEYS = ["objectId", "episode", "horizon_days"]
CLASSES = ("sni", "snii", "cv", "agn", "tde")
ANSWERS = {"fused": "prob", "light curves": "prob_phot", "image": "prob_img", "spectra": "prob_spec"}


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Networks as they are written, light curves padded to the most events there can be."""
    padded = partial(cut_by_length, buckets=LENGTH_BUCKETS[-1:])
    with (
        mock.patch("applecider_batch.models.fused.fuse_blocks", lambda module: module),
        mock.patch("applecider_batch.inference.shard.cut_by_length", padded),
    ):
        yield


def rows_and_candidates(
    archive: str, models: str, folder: Path, dtype: str, device: str
) -> tuple[pl.DataFrame, set[str]]:
    """The catalogue's rows, and the objects that are its first candidates."""
    run, catalog = str(folder / "run"), str(folder / "catalogue")
    classify(archive, models, run, horizons=HORIZONS, dtype=dtype, device=device, progress=False)
    build_catalog(run, catalog)
    out = str(folder / "candidates.parquet")
    find_candidates(catalog, out, FindOptions(top=TOP, include_unchecked=True))
    names = [f"{prefix}_{name}" for prefix in ANSWERS.values() for name in CLASSES]
    table = pl.DataFrame(read_table(catalog, [*KEYS, *names, "class_top1"]))
    return table.sort(KEYS, nulls_last=True), set(pl.read_parquet(out)["objectId"].to_list())


def compared(
    what: str, one: tuple[pl.DataFrame, set[str]], plain: tuple[pl.DataFrame, set[str]]
) -> list[str]:
    """Lines of the table: one of the ways beside the eager one."""
    rows, same = one[0], plain[0]
    assert rows.select(KEYS).equals(same.select(KEYS), null_equal=True)
    lines = []
    for title, prefix in ANSWERS.items():
        names = [f"{prefix}_{name}" for name in CLASSES]
        ours, theirs = (frame.select(names).to_numpy().astype(np.float64) for frame in (rows, same))
        here = np.isfinite(theirs).all(axis=1)
        assert (here == np.isfinite(ours).all(axis=1)).all()
        if not here.any():
            continue
        difference = np.abs(ours[here] - theirs[here]).max()
        changed = int((ours[here].argmax(axis=1) != theirs[here].argmax(axis=1)).sum())
        shared = f"{len(one[1] & plain[1])} of {len(plain[1])}" if title == "fused" else ""
        share = 100 * (1 - changed / here.sum())
        lines.append(
            f"| {what} | {title} | {here.sum():,} | {difference:.1e} | {changed} ({share:.3f} %) | {shared} |"
        )
    return lines


def main() -> None:
    """Classify in every way and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive")
    parser.add_argument("--models", default="compact")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:

        def way(title: str, dtype: str) -> tuple[pl.DataFrame, set[str]]:
            folder = Path(name) / title
            folder.mkdir()
            return rows_and_candidates(arguments.archive, arguments.models, folder, dtype, arguments.device)

        with eager():
            plain = way("eager", "float32")
        print(
            "| compared with eager float32 | answer | rows | largest difference | another class first | ",
            end="",
        )
        print(f"the {TOP} first candidates shared |\n|---|---|---|---|---|---|")
        for dtype in ("float32", "bfloat16", "float16"):
            lines = compared(dtype, way(dtype, dtype), plain)
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
