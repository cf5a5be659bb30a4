"""``report``: one HTML page about a catalogue that works offline, without any request.

Style, script, figures (SVG) and stamps (PNG) are inlined; a Content-Security-Policy in the page forbids the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa

from applecider_batch.catalog.candidate_files import is_list, read_candidates, read_list
from applecider_batch.catalog.candidates import evidence_of
from applecider_batch.catalog.funnel import STEPS, funnel_table, totals
from applecider_batch.catalog.latent_neighbours import has_latents
from applecider_batch.catalog.store import RUN_FILE, open_catalog
from applecider_batch.errors import UserError
from applecider_batch.inference.calibration import pattern_name
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS
from applecider_batch.report.candidates import add_context, add_observations, select
from applecider_batch.report.cards import card, class_filters, horizon_words, number
from applecider_batch.report.reliability import BINS, reliability_svg
from applecider_batch.report.sky_map import sky_map_svg
from applecider_batch.report.truth import Comparison, compare, read_truth
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES, GATES
from applecider_batch.training.metrics import calibration_bins, expected_calibration_error

PER_CLASS = 12
_TEMPLATES = ("page.css", "page.js")


def write_report(
    catalog_url: str,
    archive_url: str | None,
    out_html: str | Path,
    *,
    candidates: str | None = None,
    truth: str | None = None,
    per_class: int = PER_CLASS,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report page.

    Parameters
    ----------
    catalog_url : str
        The catalogue's folder.
    archive_url : str or None
        The archive the run read, for light curves, stamps and spectra; None leaves them out.
    out_html : str or Path
        The file to write.
    candidates : str, optional
        File of `candidates find` or `candidates label` (Parquet or JSON), or any list of objects (CSV, ECSV):
        its episodes are shown in its order, instead of the most probable of each class.
    truth : str, optional
        Table with objectId and a class: adds a confusion matrix and a reliability diagram, and labels the
        nearest latents.
    per_class : int
        Candidates shown of each class.

    Returns
    -------
    dict
        ``out, bytes, candidates, not_in_catalogue, trained, simulated, partial``.

    Raises
    ------
    UserError
        If the catalogue, the archive, the candidates or the truth table cannot be read, or the candidates are
        those of another catalogue (of a list: if none of its objects is in the catalogue).
    """
    store, info = open_catalog(catalog_url, storage_options)
    reference = reference_horizon(info)
    listed, missing, reference = _listed(catalog_url, candidates, reference, storage_options)
    known = None if truth is None else read_truth(truth, storage_options)
    selection = select(store, info, reference, per_class, listed)
    add_context(store, info, reference, selection.candidates, known)
    if archive_url is not None:
        from applecider_batch.archive.read import Archive

        shown = selection.candidates
        add_observations(Archive.open(archive_url, storage_options), shown)
        if shown and not any(c.curve or c.stamps or c.spectrum for c in shown):
            raise UserError(
                f"The archive '{archive_url}' holds nothing of the {len(shown)} objects of the page; "
                f"the catalogue '{catalog_url}' was made from another.",
                hint="Give the archive that 'status RUN' names, or leave --archive out.",
            )
    simulated = info["simulated_rows"] > 0
    cards = [card(c, simulated, archive_url is not None) for c in selection.candidates]
    context = {
        "info": info,
        "title": f"applecider-batch · run {info['run_id'][:12]}",
        "simulated": simulated,
        "identity": _identity(info),
        "reference": horizon_words(reference),
        "tiles": _tiles(info),
        "funnel": _funnel(info),
        "class_counts": _class_counts(info),
        "patterns": _patterns(info),
        "sky": sky_map_svg(selection.sky_in_scope, selection.sky_rest),
        "run": _run_statistics(store, info),
        "truth": None if known is None else _truth(compare(store, info, reference, known)),
        "classes": CLASSES,
        "cards": cards,
        "filters": class_filters(cards),
        "missing": missing,
        "has_latents": has_latents(info),
        "per_class": per_class,
        "listed": listed is not None,
    }
    page = render(context).encode()
    target = Path(out_html)
    Store(str(target.parent), storage_options).write_atomic(target.name, page)
    return {
        "out": str(out_html),
        "bytes": len(page),
        "candidates": len(selection.candidates),
        "not_in_catalogue": len(missing),
        "trained": info["trained"],
        "simulated": simulated,
        "partial": info["partial"],
    }


def _listed(
    catalog_url: str, url: str | None, horizon: str, storage_options: Mapping[str, Any] | None
) -> tuple[pa.Table | None, list[str], str]:
    """The candidates to show (None: the best of each class), those of a list not found, and the horizon."""
    if url is None:
        return None, [], horizon
    if not is_list(url):
        table, found = read_candidates(url, storage_options)
        return table, [], found["horizon"]
    listed = read_list(url, storage_options)
    table, missing = evidence_of(catalog_url, listed, storage_options=storage_options)
    if missing and not table.num_rows:
        raise UserError(
            f"None of the {len(missing)} objects of the list '{url}' is in the catalogue '{catalog_url}', "
            f"for example {missing[0]}.",
            hint="Give a list of objectIds of this catalogue, or its catalogue.",
        )
    return table, missing, horizon


def render(context: Mapping[str, Any]) -> str:
    """The page from its values; everything that comes from data is escaped."""
    import jinja2
    from markupsafe import Markup

    folder = resources.files("applecider_batch.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["number"] = number
    environment.filters["data"] = lambda value: "" if number(value) == "–" else value
    inline = {name: Markup((folder / name).read_text(encoding="utf-8")) for name in _TEMPLATES}
    return environment.get_template("page.html.j2").render({**context, "inline": inline, "svg": Markup})


def reference_horizon(info: Mapping[str, Any]) -> str:
    """The horizon by which candidates are ranked: ``full`` where it was planned, else the longest."""
    return str(info["horizons"][-1])


def _identity(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = info["identity"]
    pairs = [
        ("run", info["run_id"]),
        ("snapshot", _short(given.get("snapshot", "unknown"))),
        ("model set", _short(given.get("models", given.get("model_set", "unknown")))),
        ("horizons", ", ".join(horizon_words(h) for h in info["horizons"])),
        ("content_sha256", info["content_sha256"]),
    ]
    if "pipeline_version" in given:
        pairs.append(("applecider-batch", str(given["pipeline_version"])))
    return pairs


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_short(entry)}" for key, entry in sorted(value.items()))
    return str(value)


def _tiles(info: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    last = totals(info["funnel_by_year"])
    return [
        ("objects", info["objects"], f"{info['episodes']:,} episodes"),
        ("rows", info["rows"], f"{len(info['horizons'])} horizons"),
        ("in scope", last["in_scope"], "episodes that passed the gate"),
        ("classified", last["classified"], "in scope, with a usable modality"),
        ("set aside", info["rows_in_error"], "rows with an error code"),
        ("shards", info["shards_committed"], f"of {info['shards']:,} planned"),
    ]


def _funnel(info: Mapping[str, Any]) -> dict[str, Any]:
    rows = funnel_table(info["funnel_by_year"])
    top = max(rows[0]["left"], 1)
    bars = [
        {
            "step": row["cut"].replace("_", " "),
            "left": row["left"],
            "percent": 100.0 * row["left"] / top,
            "lost": row["removed"],
            "by": (row["because"] or "").replace("_", " "),
        }
        for row in rows
    ]
    return {"bars": bars, "years": info["funnel_by_year"], "steps": list(STEPS)}


def _class_counts(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for label in info["horizons"]:
        counts = info["classes"].get(label, dict.fromkeys((*CLASSES, "rows"), 0))
        classified = sum(counts[name] for name in CLASSES)
        cells = [(counts[name], counts[name] / classified if classified else 0.0) for name in CLASSES]
        rows.append({"horizon": horizon_words(label), "cells": cells, "rows": counts["rows"]})
    return rows


def _patterns(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    masks = {int(mask): count for mask, count in info["modality_masks"].items()}
    total = max(sum(masks.values()), 1)
    return [
        {
            "name": pattern_name(mask).replace("+", " + ") or "none",
            "marks": [bool(mask & MODALITY_BITS[name]) for name in MODALITIES],
            "count": count,
            "percent": 100.0 * count / total,
        }
        for mask, count in sorted(masks.items(), key=lambda item: -item[1])
    ]


def _run_statistics(store: Store, info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run's own record says; nothing where the catalogue has none, or is of several runs."""
    if "release" in info or not store.exists(RUN_FILE):
        return []
    run = store.read_json(RUN_FILE)
    pairs = [
        ("sessions", f"{run['sessions']:,}"),
        ("executors", ", ".join(run["executors"])),
        ("seconds at work", f"{run['seconds']:,.1f}"),
        ("objects per second", f"{run['objects_per_s']:,.1f}"),
    ]
    pairs += [(f"seconds in {step}", f"{value:,.1f}") for step, value in run["seconds_by_step"].items()]
    return pairs


def _truth(found: Comparison) -> dict[str, Any]:
    rows = found.confusion
    said = {name for _, counts in rows for name in counts}
    columns = [name for name in (*CLASSES, *GATES, "failed") if name in said or name in CLASSES]
    lines = []
    for name, counts in rows:
        total = sum(counts.values())
        cells = [(counts.get(column, 0), counts.get(column, 0) / total, column == name) for column in columns]
        lines.append({"name": name, "cells": cells, "total": total})
    bins = calibration_bins(found.label, found.prob, BINS)
    classified = len(found.label)
    return {
        "columns": columns,
        "rows": lines,
        "trained_on": found.trained_on,
        "classified": classified,
        "ece": expected_calibration_error(found.label, found.prob, BINS) if classified else None,
        "reliability": reliability_svg(bins, "Reliability diagram") if classified else "",
    }
