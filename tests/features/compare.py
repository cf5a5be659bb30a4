"""Prepared rows with their inputs as bytes, for comparisons that allow nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from applecider_batch.digest import row_digests
from applecider_batch.features.curve_summary import DIRECT_NAMES
from applecider_batch.features.inputs import Prepared
from applecider_batch.features.prepared import CurveSummary

Key = tuple[Any, ...]


def row_bytes(
    prepared: Prepared, keep: Callable[[dict[str, Any]], bool] = lambda row: True
) -> dict[Key, tuple]:
    """Key of each row that is kept -> digest of its columns, and the bytes of each of its inputs."""
    out: dict[Key, tuple] = {}
    digests = row_digests(prepared.rows)
    offsets = prepared.photometry.offsets
    for number, row in enumerate(prepared.rows.to_pylist()):
        if not keep(row):
            continue
        phot, img, spec = (
            x.row_index[number] for x in (prepared.photometry, prepared.image, prepared.spectra)
        )
        inputs = (
            prepared.photometry.values[offsets[phot] : offsets[phot + 1]].tobytes() if phot >= 0 else None,
            _summary_bytes(prepared.photometry.curve_summary, phot),
            (int(prepared.image.candid[img]), prepared.image.metadata[img].tobytes()) if img >= 0 else None,
            (prepared.spectra.spec_id[spec], prepared.spectra.flux[spec].tobytes()) if spec >= 0 else None,
        )
        out[row["objectId"], row["episode"], row["horizon_days"]] = (digests[number], *inputs)
    return out


def _summary_bytes(summary: CurveSummary | None, item: int) -> tuple[bytes, bytes] | None:
    if summary is None or item < 0:
        return None
    limits = summary.limits[summary.offsets[item] : summary.offsets[item + 1]]
    return limits.tobytes(), summary.values[item].tobytes()


def assert_consistent(prepared: Prepared) -> None:
    """What must hold for every prepared shard."""
    rows = prepared.rows
    n = rows.num_rows
    for part, items in (
        (prepared.photometry, len(prepared.photometry.offsets) - 1),
        (prepared.image, len(prepared.image.candid)),
        (prepared.spectra, len(prepared.spectra.spec_id)),
    ):
        assert part.row_index.shape == (n,)
        assert part.row_index.dtype == np.int32
        # Every item belongs to a row, and no row points beyond the items.
        assert set(part.row_index.tolist()) - {-1} == set(range(items))
    assert np.isfinite(prepared.photometry.values).all()
    assert (np.diff(prepared.photometry.offsets) > 0).all()
    if (summary := prepared.photometry.curve_summary) is not None:
        assert len(summary.offsets) == len(summary.values) + 1 == len(prepared.photometry.offsets)
        assert summary.offsets[-1] == len(summary.limits)
        assert np.isfinite(summary.limits).all()
        assert np.isfinite(summary.values[:, len(DIRECT_NAMES) :]).all()
    assert np.isfinite(prepared.image.metadata).all()
    assert np.isfinite(prepared.spectra.flux).all()
    infinity = float("inf")
    order = [
        (
            r["hash64"],
            r["objectId"],
            r["episode"],
            infinity if r["horizon_days"] is None else r["horizon_days"],
        )
        for r in rows.select(["hash64", "objectId", "episode", "horizon_days"]).to_pylist()
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
