"""Around the networks: batches of light curves, fusion of their answers, and writing the rows."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.archive.read import Archive
from applecider_batch.engine.shard_task import parquet_bytes
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.prepared import Prepared
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.answers import answer_rows
from applecider_batch.inference.batches import cut_by_length, pad_sequences
from applecider_batch.inference.calibration import Calibration
from applecider_batch.inference.fusion import MODALITIES
from benchmarks.stages import Stage
from benchmarks.stages.decoding import EVERYTHING
from benchmarks.stages.inputs import Inputs

BATCH, LONGEST, ROWS, SLOW_ROWS = 64, 257, 100_000, 2_000


def _prepared(inputs: Inputs) -> Prepared:
    archive = Archive.open(inputs.simulated_archive)
    shard = archive.read_shard(*EVERYTHING)
    jd_max = archive.snapshot.jd_max or 0.0
    return prepare_shard(shard, (3.0, 10.0, 30.0, None), get_profile("paper"), snapshot_jd_max=jd_max)


def batching(inputs: Inputs) -> Stage:
    """Light curves padded to the length of their bucket, against loops that pad to 257."""
    curves = _prepared(inputs).photometry
    values, offsets = curves.values, curves.offsets
    count = len(offsets) - 1

    def ours() -> int:
        for length, items in cut_by_length(np.diff(offsets), BATCH):
            pad_sequences(values, offsets, items, length)
        return count

    def reference() -> int:
        for start in range(0, count, BATCH):
            x = np.zeros((BATCH, LONGEST, values.shape[1]), np.float32)
            for place, item in enumerate(range(start, min(start + BATCH, count))):
                own = values[offsets[item] : offsets[item + 1]]
                x[place, : len(own)] = own
        return count

    return Stage("batching", "light curves", ours, reference, "copies", notes=[f"{count} light curves"])


def fusion(inputs: Inputs) -> Stage:
    """Mean of the modalities' probabilities, with what is missing left out; the reference goes row by row."""
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(ROWS, 5)) for name in MODALITIES}
    for values in logits.values():
        values[rng.random(ROWS) < 0.3] = np.nan

    def plain(row: int) -> np.ndarray:
        found = [logits[name][row] for name in MODALITIES if np.isfinite(logits[name][row]).all()]
        each = [np.exp(own - own.max()) / np.exp(own - own.max()).sum() for own in found]
        return np.mean(each, axis=0) if each else np.full(5, np.nan)

    def ours() -> int:
        answer_rows(logits, Calibration())
        return ROWS

    def reference() -> int:
        for row in range(SLOW_ROWS):
            plain(row)
        return SLOW_ROWS

    def same() -> None:
        fused = np.exp(answer_rows(logits, Calibration()).fused)
        np.testing.assert_allclose(fused[:200], [plain(row) for row in range(200)], rtol=1e-9)

    return Stage("fusion", "rows", ours, reference, "NumPy's exponentials", None, same)


def write(inputs: Inputs) -> Stage:
    """Rows of a shard as Parquet, against the same from Python rows."""
    rows = pa.concat_tables([_prepared(inputs).rows] * 10)
    few = rows.slice(0, 500).to_pylist()

    def ours() -> int:
        parquet_bytes(rows)
        return rows.num_rows

    def reference() -> int:
        pq.write_table(pa.Table.from_pylist(few, schema=rows.schema), io.BytesIO(), compression="zstd")
        return len(few)

    return Stage("write", "rows", ours, reference, "zstd and dictionaries of Parquet")


STAGES: tuple[Callable[[Inputs], Stage], ...] = (batching, fusion, write)
