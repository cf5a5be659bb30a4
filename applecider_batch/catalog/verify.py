"""``catalog verify``: every promise of a catalogue, checked again from its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.anomaly import QValues, contradictions
from applecider_batch.catalog.columns import SHORT_NAMES, floats
from applecider_batch.catalog.content import ContentDigest
from applecider_batch.catalog.layers import all_files, layers
from applecider_batch.catalog.run_folder import first_disorder
from applecider_batch.catalog.siblings import Siblings
from applecider_batch.catalog.store import iter_rows, open_catalog, whole_objects
from applecider_batch.catalog.summary import FULL, Summary, horizon_label
from applecider_batch.digest import hash64
from applecider_batch.inference.fusion import MODALITY_BITS
from applecider_batch.schema import load_table
from applecider_batch.spread import ProgressLike
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES, GATES

#: float32 probabilities: five of them sum to 1 within this.
TOLERANCE = 2e-6
_CHUNK = 1 << 22


def verify_catalog(
    url: str, *, storage_options: Mapping[str, Any] | None = None, progress: ProgressLike | None = None
) -> dict[str, Any]:
    """Check a catalogue against itself.

    Checked are: size and sha256 of every part; schema and nulls; order and uniqueness of (objectId, episode,
    horizon_days); exactly one row for every horizon of an episode, one row alone for an object without t0;
    probabilities that sum to 1, fused = mean over the modalities in the mask, masks that match the columns;
    class_top1 only in scope and equal to the largest probability; no probabilities on failed rows; anomaly
    flags and q-values that follow from their p-values; sibling groups; the counts of ``catalog.json``;
    ``content_sha256``.

    Parameters
    ----------
    url : str
    progress : ProgressLike, optional
        Counts rows.

    Returns
    -------
    dict
        ``ok`` bool, ``content_sha256``, ``rows``, ``objects``, ``episodes``, ``parts``, ``partial``,
        ``problems`` (sentences, at most a few of each kind).

    Raises
    ------
    UserError
        If the folder is not a catalogue or a part cannot be read at all.
    """
    store, info = open_catalog(url, storage_options)
    problems = _Problems()
    if progress is not None:
        progress.expect(info["rows"])
    _check_files(store, info, problems)
    summary, content, siblings = Summary(info["identity"].get("cuts")), ContentDigest(), Siblings()
    qvalues = QValues()
    horizons = [np.inf if name == FULL else float(name) for name in info["horizons"]]
    last_row: pa.Table | None = None
    schema = load_table("catalogue")
    for table in whole_objects(iter_rows(store, info)):
        if table.column_names != schema.names or not table.schema.equals(schema.arrow, check_metadata=False):
            problems.add("schema", "The columns are not those of the schema 'catalogue'.")
            break
        problem = first_disorder(table if last_row is None else pa.concat_tables([last_row, table]))
        if problem:
            problems.add("order", f"Rows are not unique and sorted: {problem}.")
        last_row = table.slice(table.num_rows - 1)
        for check in (_check_identity, _check_probabilities, _check_classes):
            check(table, problems)
        problems.rows(
            "anomaly",
            table,
            contradictions(table),
            lambda where: (
                f"p-value, flag and reference of the anomaly scores contradict each other: {where}."
            ),
        )
        _check_horizons(table, horizons, problems)
        summary.update(table)
        content.update(table)
        siblings.update(table)
        qvalues.update(table)
        if progress is not None:
            progress.update(table.num_rows)
    else:  # every table has the schema's columns
        _check_siblings(store, info, siblings, problems)
        _check_qvalues(store, info, qvalues, problems)
    _check_counts(info, summary, problems)
    if content.hexdigest() != info["content_sha256"]:
        problems.add(
            "content", f"content_sha256 is {content.hexdigest()}, catalog.json says {info['content_sha256']}."
        )
    return {
        "ok": not problems.sentences,
        "content_sha256": content.hexdigest(),
        "rows": summary.rows,
        "objects": summary.objects,
        "episodes": summary.episodes,
        "parts": len(info["parts"]),
        "partial": info["partial"],
        "problems": problems.sentences,
    }


def _check_siblings(store: Store, info: Mapping[str, Any], siblings: Siblings, problems: _Problems) -> None:
    columns = ("hash64", "objectId", "episode", "horizon_days", "sibling_group")
    for table in iter_rows(store, info, columns) if siblings.find() else ():
        siblings.name(table)
    for table in iter_rows(store, info, columns):
        said, is_so = (pc.fill_null(t.column("sibling_group"), "") for t in (table, siblings.annotate(table)))
        problems.rows(
            "siblings",
            table,
            pc.not_equal(said, is_so).to_numpy(),
            lambda where: f"sibling_group is not that of the positions: {where}.",
        )


def _check_qvalues(store: Store, info: Mapping[str, Any], qvalues: QValues, problems: _Problems) -> None:
    if qvalues.finish() != info["anomaly_tests"]:
        problems.add("tests", "The numbers of anomaly tests are not those of catalog.json.")
    keys = ("hash64", "objectId", "episode", "horizon_days")
    for table in iter_rows(store, info, list(dict.fromkeys((*keys, *QValues.COLUMNS, "anomaly_qvalue")))):
        said, is_so = (floats(t, "anomaly_qvalue") for t in (table, qvalues.annotate(table)))
        problems.rows(
            "qvalues",
            table,
            ~((said == is_so) | (np.isnan(said) & np.isnan(is_so))),
            lambda where: f"anomaly_qvalue does not follow from the p-values: {where}.",
        )


class _Problems:
    """Sentences, at most three of each kind."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._seen: dict[str, int] = {}

    def add(self, kind: str, sentence: str) -> None:
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= 3:
            self.sentences.append(sentence)

    def rows(self, kind: str, table: pa.Table, bad: np.ndarray, say: Callable[[str], str]) -> None:
        """One sentence for the first bad row of a table."""
        if bad.any():
            row = table.slice(int(np.flatnonzero(bad)[0]), 1)
            horizon = horizon_label(row["horizon_days"][0].as_py())
            key = f"{row['objectId'][0]}, episode {row['episode'][0]}, {horizon}"
            self.add(kind, say(f"{int(bad.sum())} rows, first ({key})"))


def _check_files(store: Store, info: Mapping[str, Any], problems: _Problems) -> None:
    for part in all_files(info):
        digest, size = hashlib.sha256(), 0
        try:
            with store.fs.open(store.path(part["file"]), "rb") as file:
                while data := file.read(_CHUNK):
                    digest.update(data)
                    size += len(data)
        except FileNotFoundError:
            problems.add("file", f"The part {part['file']} is missing.")
            continue
        if size != part["bytes"] or digest.hexdigest() != part["sha256"]:
            problems.add(
                "file", f"The part {part['file']} was changed: size or sha256 differ from catalog.json."
            )


def _block(table: pa.Table, prefix: str) -> np.ndarray:
    """(n, 5) float64, NaN where null."""
    return np.stack([floats(table, f"{prefix}_{key}") for key in CLASS_KEYS], axis=1)


def _check_identity(table: pa.Table, problems: _Problems) -> None:
    for column in load_table("catalogue").columns:
        if not column.nullable and table.column(column.name).null_count:
            problems.add("null", f"The column {column.name} holds nulls.")
    hashes = table.column("hash64").to_numpy()
    wrong = hashes != hash64(table.column("objectId"))
    problems.rows("hash64", table, wrong, lambda where: f"hash64 is not the objectId's: {where}.")
    gate_ok = pc.fill_null(pc.is_in(table.column("gate"), pa.array(GATES)), False).to_numpy()
    failed = table.column("error_code").is_valid().to_numpy()
    problems.rows(
        "gate", table, ~gate_ok & ~failed, lambda where: f"The gate is not one of {GATES}: {where}."
    )


def _check_probabilities(table: pa.Table, problems: _Problems) -> None:
    mask = table.column("modality_mask").to_numpy().astype(np.int64)
    count = table.column("n_modalities").to_numpy()
    total, present_count = np.zeros((len(mask), len(CLASSES))), np.zeros(len(mask), np.int64)
    for modality, bit in MODALITY_BITS.items():
        probs = _block(table, f"prob_{SHORT_NAMES[modality]}")
        present = (mask & bit) > 0
        _check_sum(table, probs, present, f"the {modality} probabilities", problems)
        total += np.where(present[:, None], np.nan_to_num(probs), 0.0)
        present_count += present
    fused = _block(table, "prob")
    _check_sum(table, fused, mask > 0, "the fused probabilities", problems)
    problems.rows(
        "count", table, count != present_count, lambda w: f"n_modalities is not that of the mask: {w}."
    )
    uncalibrated = (
        table.column("calibration_id").is_null().to_numpy() & table.column("prior_id").is_null().to_numpy()
    )
    mean = total / np.maximum(present_count, 1)[:, None]
    off = uncalibrated & (mask > 0) & (np.abs(np.nan_to_num(fused) - mean).max(axis=1) > TOLERANCE)
    problems.rows(
        "fused", table, off, lambda w: f"The fused probabilities are not the mean of the modalities: {w}."
    )


def _check_sum(
    table: pa.Table, probs: np.ndarray, present: np.ndarray, what: str, problems: _Problems
) -> None:
    known = np.isfinite(probs).all(axis=1)
    partly = np.isfinite(probs).any(axis=1) != known
    problems.rows(
        "mask", table, (known != present) | partly, lambda w: f"modality_mask does not match {what}: {w}."
    )
    off = known & ((np.abs(probs.sum(axis=1) - 1.0) > TOLERANCE) | (probs < 0).any(axis=1))
    problems.rows("sum", table, off, lambda w: f"The sum of {what} is not 1: {w}.")


def _check_classes(table: pa.Table, problems: _Problems) -> None:
    fused = _block(table, "prob")
    known = np.isfinite(fused).all(axis=1)
    named = table.column("class_top1").is_valid().to_numpy()
    in_scope = pc.fill_null(pc.equal(table.column("gate"), "in_scope"), False).to_numpy()
    problems.rows(
        "scope",
        table,
        named != (in_scope & known),
        lambda w: f"class_top1 must be there exactly in scope: {w}.",
    )
    position = pc.fill_null(pc.index_in(table.column("class_top1"), pa.array(CLASSES)), -1).to_numpy()
    chosen = np.where(
        position >= 0, np.take_along_axis(fused, np.maximum(position, 0)[:, None], 1)[:, 0], np.nan
    )
    lower = named & ((position < 0) | (chosen < fused.max(axis=1)))
    problems.rows("top", table, lower, lambda w: f"class_top1 is not the most probable class: {w}.")
    top = floats(table, "prob_top1")
    wrong = (np.isfinite(top) != known) | (known & (np.abs(top - fused.max(axis=1)) > 0))
    problems.rows("top1", table, wrong, lambda w: f"prob_top1 is not the largest probability: {w}.")
    without_t0 = table.column("t0").is_null().to_numpy() & named
    problems.rows("t0", table, without_t0, lambda w: f"A row without t0 has a class: {w}.")


def _check_horizons(table: pa.Table, horizons: list[float], problems: _Problems) -> None:
    """Every episode has every horizon once; an object without t0 has one row, over its full history."""
    episode = table.column("episode").to_numpy()
    names = table.column("objectId").combine_chunks()
    new = np.ones(len(episode), bool)
    new[1:] = (episode[1:] != episode[:-1]) | pc.not_equal(names[1:], names[:-1]).to_numpy(
        zero_copy_only=False
    )
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(episode)))
    without_t0 = table.column("t0").is_null().to_numpy()
    days = pc.fill_null(table.column("horizon_days"), np.inf).to_numpy()
    planned = np.where(without_t0, np.isinf(days), np.isin(days, horizons))
    expected = np.where(without_t0[starts], 1, len(horizons))
    bad = np.repeat(counts != expected, counts) | ~planned
    problems.rows("horizons", table, bad, lambda w: f"An episode has not exactly one row per horizon: {w}.")


def _check_counts(info: Mapping[str, Any], summary: Summary, problems: _Problems) -> None:
    for name, value in summary.as_dict().items():
        if info.get(name) != value:
            problems.add(
                f"count {name}", f"catalog.json says {name} = {info.get(name)}, the rows say {value}."
            )
    stored = sum(part["rows"] for layer in layers(info) for part in layer["parts"])
    if stored - sum(delta["rows_superseded"] for delta in info.get("deltas", ())) != summary.rows:
        problems.add("rows", "The rows of the parts do not add up to those read.")
