"""Rate and memory of the cross-match: catalogue rows streamed against a list of known sources.

    python -m benchmarks.crossmatch [--rows 10000000] [--sources 200000]

Rows come in batches of 65,536 (four horizons an episode), positions are spread over ZTF's sky, a hundredth of
the episodes lie on a listed source. Made rows are not timed; reading and writing Parquet is left out.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.crossmatch import CrossMatcher
from applecider_batch.catalog.known import KnownList
from applecider_batch.catalog.store import BATCH_ROWS
from applecider_batch.schema import load_table

HORIZONS = (3.0, 10.0, 30.0, None)


def sky(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions north of -30 deg, uniform on the sphere; degrees."""
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-0.5, 1.0, n)))


def source_list(rng: np.random.Generator, n: int) -> KnownList:
    """A transient list with discoveries over seven years."""
    ra, dec = sky(rng, n)
    jd = rng.uniform(2458200, 2460800, n)
    names, types = [f"AT{i}" for i in range(n)], [None] * n
    return KnownList("benchmark", "transient", "-", ra, dec, jd, jd, jd + 1, names, types, None, 0)


def batch(rng: np.random.Generator, first: int, known: KnownList) -> pa.Table:
    """Catalogue rows with what the cross-match reads; the rest is null."""
    schema = load_table("catalogue").arrow
    n = BATCH_ROWS // len(HORIZONS)
    ra, dec = sky(rng, n)
    on_source = rng.random(n) < 0.01
    chosen = rng.integers(0, len(known), n)
    ra[on_source], dec[on_source] = known.ra[chosen[on_source]], known.dec[chosen[on_source]]
    t0 = np.where(on_source, known.jd_lo[chosen], rng.uniform(2458200, 2460800, n))

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, len(HORIZONS))

    columns = {
        "objectId": pa.array(spread(np.array([f"ZTF{first + i:012d}" for i in range(n)]))),
        "hash64": pa.array(np.arange(first, first + n, dtype=np.uint64).repeat(len(HORIZONS))),
        "episode": pa.array(np.ones(n * len(HORIZONS), np.int16)),
        "horizon_days": pa.array(list(HORIZONS) * n, pa.float64()),
        **{name: pa.array(spread(v)) for name, v in
           {"ra": ra, "dec": dec, "t0": t0, "jd_first": t0, "jd_last": t0 + 30}.items()},
        "gate": pa.array(["in_scope"] * (n * len(HORIZONS))),
        "class_top1": pa.array(["SN I"] * (n * len(HORIZONS))),
    }  # fmt: skip
    rows = n * len(HORIZONS)
    return pa.table(
        [columns[f.name] if f.name in columns else pa.nulls(rows, f.type) for f in schema],
        schema=pa.schema([f.with_nullable(True) for f in schema]),
    )


def main() -> None:
    """Stream the rows and print the rate and the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--sources", type=int, default=200_000)
    asked = parser.parse_args()
    rng = np.random.default_rng(1)
    known = source_list(rng, asked.sources)
    start = time.perf_counter()
    matcher = CrossMatcher([known])
    built = time.perf_counter() - start
    rows = hits = 0
    spent = 0.0
    while rows < asked.rows:
        table = batch(rng, rows, known)
        start = time.perf_counter()
        matched, _ = matcher.annotate_with_pairs(table)
        spent += time.perf_counter() - start
        rows += matched.num_rows
        hits += matched.num_rows - matched.column("xm_tns_name").null_count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"tree of {asked.sources:,} sources: {built:.2f} s")
    print(f"{rows:,} rows ({hits:,} with a source) in {spent:.1f} s: {rows / spent:,.0f} rows/s on one core")
    print(f"10^8 rows: {1e8 / (rows / spent) / 60:.0f} min; peak memory of the process {peak:.2f} GiB")


if __name__ == "__main__":
    main()
