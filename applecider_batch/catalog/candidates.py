"""``candidates find``: the transients that nobody reported, best first, with what speaks for each.

Passes over the catalogue in bounded memory: one over the few columns that decide scores every episode at the
reference horizon (:mod:`.ranking`) and keeps the best; one collects their rows at all horizons, from the row
groups that hold them; one over positions finds their neighbours.
Only episodes with ``known_status = unreported`` are missed transients; unchecked ones are taken in on request
only, and the answer says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.catalog.candidate_files import Listed, write_candidates
from applecider_batch.catalog.columns import equals, floats
from applecider_batch.catalog.known import KINDS
from applecider_batch.catalog.neighbours import RADIUS_ARCSEC, neighbour_columns
from applecider_batch.catalog.ranking import COLUMNS, FORMULA, prob_transient, score_rows
from applecider_batch.catalog.read import check_horizon, one_row_per_episode
from applecider_batch.catalog.store import iter_rows, open_catalog
from applecider_batch.catalog.summary import horizon_label
from applecider_batch.catalog.table_files import check_ending
from applecider_batch.digest import hash64_one
from applecider_batch.errors import UsageError, UserError
from applecider_batch.features.quality import describe
from applecider_batch.inference.anomaly_reference import describe as describe_reason
from applecider_batch.schema import load_table
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS_KEYS, GATES

TOP = 500
THRESHOLD = 0.5
#: Columns that decide whether an episode is a candidate, and where it ranks.
_SCORED = (
    "hash64", "objectId", "episode", "horizon_days", "t0", "error_code", "known_status", "gate", "prob_top1",
    *COLUMNS,
)  # fmt: skip
_TIES = [("hash64", "ascending"), ("objectId", "ascending"), ("episode", "ascending")]
_SHOWN = ("rank", "objectId", "episode", "score", "class_top1", "prob_top1", "first_horizon", "n_det")
_SHOWN_ROWS = 20


@dataclass(frozen=True)
class FindOptions:
    """What is looked for.

    Attributes
    ----------
    horizon : float, "full" or None
        Reference horizon of the ranking; None: the catalogue's last (``full`` where it was planned).
    top : int
        Candidates to keep.
    threshold : float
        Of ``prob_transient``, for ``first_horizon``.
    neighbour_radius_arcsec : float
        Within which other objects of the catalogue are listed.
    include_unchecked : bool
        Take in episodes that no list could be asked about.
    """

    horizon: float | str | None = None
    top: int = TOP
    threshold: float = THRESHOLD
    neighbour_radius_arcsec: float = RADIUS_ARCSEC
    include_unchecked: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"--top must be at least 1, and is {self.top}.")
        if not 0 < self.threshold <= 1:
            raise UsageError(f"--threshold is a probability in (0, 1], and is {self.threshold:g}.")
        if not 0 < self.neighbour_radius_arcsec <= 3600:
            raise UsageError(
                f"--neighbour-radius must be in (0, 3600] arcsec, and is {self.neighbour_radius_arcsec:g}."
            )


#: An episode: objectId and its number.
Key = tuple[str, int]
#: A learned ranking: probability of a yes for rows of the catalogue, shape (n,).
Learned = Callable[[pa.Table], np.ndarray]


def find_candidates(
    catalog_url: str,
    out: str,
    options: FindOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the ranked missed transients of a catalogue.

    Parameters
    ----------
    catalog_url : str
        The catalogue's folder.
    out : str
        File to write, schema ``candidates``: ``.parquet``, ``.csv`` or ``.json``.
    options : FindOptions, optional

    Returns
    -------
    dict
        Keys as ``candidates find`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        No catalogue, a catalogue that was matched with no list (unless unchecked ones are asked for), no such
        horizon, or another file ending.
    """
    check_ending(out)
    search = Search(catalog_url, options or FindOptions(), storage_options)
    table, answer = search.run()
    write_candidates(table, out, answer, storage_options)
    return {"out": out, **answer}


def evidence_of(
    catalog_url: str, listed: Sequence[Listed], *, storage_options: Mapping[str, Any] | None = None
) -> tuple[pa.Table, list[str]]:
    """The evidence for episodes of a user's own list, in its order, whatever their gate or status.

    Returns
    -------
    table : pyarrow.Table
        Schema ``candidates``; scores are NaN without probabilities.
    missing : list of str
        Objects of the list that the catalogue does not have, or not with that episode.
    """
    search = Search(catalog_url, FindOptions(include_unchecked=True), storage_options)
    return search.listed(listed)


class Search:
    """One search in a catalogue; ``candidates label`` runs the same with a learned ranking."""

    def __init__(
        self, catalog_url: str, options: FindOptions, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.options = options
        self.store: Store
        self.info: dict[str, Any]
        self.store, self.info = open_catalog(catalog_url, storage_options)
        asked = self.info["horizons"][-1] if options.horizon is None else options.horizon
        self.horizon = str(asked) if options.horizon is None else check_horizon(self.info, asked)
        if self.info["crossmatch"] is None and not options.include_unchecked:
            raise UserError(
                f"The catalogue '{catalog_url}' was matched with no list of known transients, so none of its "
                "episodes can be called missed.",
                hint="Build it with --known FILE, or take all in with --include-unchecked.",
            )

    def episodes(self, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
        """One row per episode: that of the reference horizon, or the only one of an object without t0.

        With the columns that decide, and those asked for.
        """
        for table in iter_rows(self.store, self.info, list(dict.fromkeys([*_SCORED, *columns]))):
            yield one_row_per_episode(table, self.horizon)

    def wanted(self, rows: pa.Table) -> tuple[np.ndarray, Counter[str]]:
        """Which rows are candidates, bool (n,), and how many were left out for which reason."""
        keep = np.ones(rows.num_rows, bool)
        left: Counter[str] = Counter()

        def cut(reason: str, good: np.ndarray) -> None:
            nonlocal keep
            left[reason] += int((keep & ~good).sum())
            keep = keep & good

        cut("failed", rows.column("error_code").is_null().to_numpy())
        cut("no_t0", rows.column("t0").is_valid().to_numpy())
        for status in ("known", "late", "out_of_window"):
            cut(status, ~equals(rows, "known_status", status))
        if not self.options.include_unchecked:
            cut("unchecked", ~equals(rows, "known_status", "unchecked"))
        for gate in GATES[1:]:
            cut(gate, ~equals(rows, "gate", gate))
        cut("no_probabilities", np.isfinite(floats(rows, "prob_top1")))
        return keep, left

    def run(
        self, learned: Learned | None = None, columns: Sequence[str] = ()
    ) -> tuple[pa.Table, dict[str, Any]]:
        """The candidates (schema ``candidates``) and the answer about them.

        ``columns`` are those that a learned ranking reads.
        """
        best, counts, left = self._best(learned, columns)
        table = self._evidence(best)
        crossmatch = self.info["crossmatch"] or {"kinds_checked": [], "lists": []}
        unchecked = int(equals(table, "known_status", "unchecked").sum())
        lists = [f"{entry['kind']}:{entry['list']}" for entry in crossmatch["lists"]]
        missing = [kind for kind in KINDS if kind not in crossmatch["kinds_checked"]]
        answer = {
            "candidates": table.num_rows,
            "eligible": counts["eligible"],
            "episodes": counts["episodes"],
            "horizon": self.horizon,
            "left_out": {reason: n for reason, n in left.items() if n},
            "lists_checked": lists,
            "kinds_not_checked": missing,
            "unchecked": unchecked,
            "tns_eligible": int(equals(table, "tns_eligible", True).sum()),
            "trained": self.info["trained"],
            "calibrated": bool(table.num_rows) and bool(equals(table, "calibrated", True).all()),
            "partial": self.info["partial"],
            "threshold": self.options.threshold,
            "formula": FORMULA,
            "note": _note(lists, missing, unchecked),
            "run_id": self.info["run_id"],
            "content_sha256": self.info["content_sha256"],
            "first": table.select(_SHOWN).slice(0, _SHOWN_ROWS).to_pylist(),
        }
        return table, answer

    def listed(self, listed: Sequence[Listed]) -> tuple[pa.Table, list[str]]:
        """As :func:`evidence_of`."""
        hashes = np.unique(np.array([hash64_one(entry.object_id) for entry in listed], np.uint64))
        objects = pa.array([entry.object_id for entry in listed], pa.string())
        there: dict[str, dict[int, tuple[int, float]]] = {}
        for table in iter_rows(self.store, self.info, list(_SCORED), hashes=hashes):
            rows = one_row_per_episode(table, self.horizon)
            rows = rows.filter(pc.is_in(rows.column("objectId"), value_set=objects))
            scores = score_rows(rows).total
            for (name, episode), position, score in zip(
                _keys(rows), rows.column("hash64").to_pylist(), scores, strict=True
            ):
                there.setdefault(name, {})[episode] = (position, float(score))
        chosen: dict[Key, tuple[int, float, str | None]] = {}
        missing = []
        for entry in listed:
            episodes = there.get(entry.object_id, {})
            wanted = sorted(episodes) if entry.episode is None else [entry.episode]
            if not set(wanted) & set(episodes):
                which = "" if entry.episode is None else f" (episode {entry.episode})"
                missing.append(f"{entry.object_id}{which}")
                continue
            for episode in wanted:
                chosen.setdefault((entry.object_id, episode), (*episodes[episode], entry.label))
        best = pa.table({
            "hash64": pa.array([position for position, _, _ in chosen.values()], pa.uint64()),
            "objectId": pa.array([name for name, _ in chosen], pa.string()),
            "episode": pa.array([episode for _, episode in chosen], pa.int16()),
            "score": pa.array([score for _, score, _ in chosen.values()], pa.float64()),
            "prob_interesting": pa.nulls(len(chosen), pa.float64()),
        })  # fmt: skip
        table = self._evidence(best)
        at = table.schema.get_field_index("label")
        labels = pa.array([label for _, _, label in chosen.values()], pa.string())
        return table.set_column(at, table.schema.field(at), labels), missing

    def _best(
        self, learned: Learned | None, columns: Sequence[str]
    ) -> tuple[pa.Table, Counter[str], Counter[str]]:
        """The keys and scores of the best, in order, and the counts of the rest."""
        schema = load_table("catalogue").arrow
        keys = ["hash64", "objectId", "episode"]
        best = pa.schema([schema.field(name) for name in keys]).empty_table()
        for name in ("score", "prob_interesting"):
            best = best.append_column(name, pa.array([], pa.float64()))
        order = [("prob_interesting", "descending"), ("score", "descending"), *_TIES]
        counts: Counter[str] = Counter()
        left: Counter[str] = Counter()
        for rows in self.episodes(columns):
            keep, why = self.wanted(rows)
            counts["episodes"] += rows.num_rows
            counts["eligible"] += int(keep.sum())
            left.update(why)
            mine = rows.filter(pa.array(keep))
            liked = pa.nulls(mine.num_rows, pa.float64()) if learned is None else pa.array(learned(mine))
            score = pa.array(score_rows(mine).total)
            mine = mine.select(keys).append_column("score", score).append_column("prob_interesting", liked)
            best = pa.concat_tables([best, mine]).sort_by(order).slice(0, self.options.top).combine_chunks()
        return best, counts, left

    def _evidence(self, best: pa.Table) -> pa.Table:
        n = best.num_rows
        keys = _keys(best)
        rows = self._rows_of(best)
        reference = one_row_per_episode(rows, self.horizon)
        place = {key: at for at, key in enumerate(_keys(reference))}
        chosen = reference.take(pa.array([place[key] for key in keys], pa.int64()))
        parts = score_rows(chosen)
        columns: dict[str, Any] = {name: chosen.column(name) for name in chosen.column_names}
        columns |= {name: best.column(name) for name in ("score", "prob_interesting")}
        columns |= {
            "rank": np.arange(1, n + 1, dtype=np.int32),
            "score_transient": parts.transient,
            "score_anomaly": parts.anomaly,
            "score_quality": parts.quality,
            "score_detections": parts.detections,
            "score_history": parts.history,
            "prob_transient": prob_transient(chosen),
            "quality": _meanings(chosen, "quality_flags", describe),
            "anomaly_reasons": _meanings(chosen, "anomaly_reason", describe_reason),
        }
        columns |= self._replay(rows, keys)
        columns |= neighbour_columns(
            chosen, self._neighbour_tables(), radius_arcsec=self.options.neighbour_radius_arcsec
        )
        return load_table("candidates").conform(pa.table(columns))

    def _neighbour_tables(self) -> Iterator[pa.Table]:
        names = ["objectId", "ra", "dec", "t0", "horizon_days", "gate", "class_top1", "known_status"]
        for table in iter_rows(self.store, self.info, names):
            yield one_row_per_episode(table, self.horizon)

    def _rows_of(self, best: pa.Table) -> pa.Table:
        """All rows, at every horizon, of the objects chosen."""
        hashes, objects = np.unique(best.column("hash64").to_numpy()), pc.unique(best.column("objectId"))
        tables = [load_table("catalogue").empty()]
        for table in iter_rows(self.store, self.info, hashes=hashes):
            tables.append(table.filter(pc.is_in(table.column("objectId"), value_set=objects)))
        return pa.concat_tables(tables).combine_chunks()

    def _replay(self, rows: pa.Table, keys: Sequence[Key]) -> dict[str, Any]:
        """What each row said at every horizon, and the first horizon that passed the threshold."""
        names = ["objectId", "episode", "horizon_days", "horizon_complete", "gate", "class_top1", "prob_top1",
                 *(f"prob_{key}" for key in CLASS_KEYS)]  # fmt: skip
        found: dict[Key, list[dict[str, Any]]] = {key: [] for key in keys}
        chance = pa.array(prob_transient(rows), pa.float32(), from_pandas=True)
        for row in rows.select(names).append_column("prob_transient", chance).to_pylist():
            if (row["objectId"], row["episode"]) in found:
                found[row["objectId"], row["episode"]].append(row)
        lists: dict[str, list[list[Any]]] = {}

        def collect(name: str, value: Callable[[dict[str, Any]], Any]) -> None:
            lists[f"replay_{name}"] = [[value(row) for row in found[key]] for key in keys]

        collect("horizon", lambda row: horizon_label(row["horizon_days"]))
        collect("complete", lambda row: "yes" if row["horizon_complete"] else "no")
        collect("gate", itemgetter("gate"))
        collect("class", itemgetter("class_top1"))
        collect("prob", itemgetter("prob_top1"))
        for name in ("prob_transient", *(f"prob_{key}" for key in CLASS_KEYS)):
            collect(name, itemgetter(name))
        schema = load_table("candidates").arrow
        columns: dict[str, Any] = {
            name: pa.array(values, schema.field(name).type) for name, values in lists.items()
        }
        columns["first_horizon"] = pa.array([self._first(found[key]) for key in keys], pa.string())
        return columns

    def _first(self, rows: list[dict[str, Any]]) -> str | None:
        for row in rows:  # by horizon, full last
            chance = row["prob_transient"]
            if row["gate"] == GATES[0] and chance is not None and chance >= self.options.threshold:
                return horizon_label(row["horizon_days"])
        return None


def _keys(rows: pa.Table) -> list[Key]:
    return list(zip(rows.column("objectId").to_pylist(), rows.column("episode").to_pylist(), strict=True))


def _meanings(rows: pa.Table, name: str, describe: Callable[[int], list[str]]) -> pa.Array:
    """The bits of a mask in words."""
    return pa.array([describe(bits or 0) for bits in rows.column(name).to_pylist()], pa.list_(pa.string()))


def _note(lists: list[str], missing: list[str], unchecked: int) -> str:
    """One sentence about what 'missed' rests on."""
    if not lists:
        return "No list of known transients was asked: none of these is known to be missed."
    text = f"Unreported in {', '.join(lists)}"
    if missing:
        text += f"; no list of kind {', '.join(missing)} was given"
    if unchecked:
        text += f"; {unchecked} of the candidates could not be checked (known_status = unchecked)"
    return f"{text}."
