"""``report``: one HTML page about a catalogue that works offline, without any request.

Style, script, figures (SVG) and stamps (PNG) are inlined; a Content-Security-Policy in the page forbids the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.funnel import STEPS, funnel_table, totals
from applecider_batch.catalog.store import RUN_FILE, open_catalog
from applecider_batch.features.quality import describe
from applecider_batch.inference.anomaly_reference import describe as describe_reason
from applecider_batch.inference.calibration import pattern_name
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS
from applecider_batch.report.candidates import Candidate, add_observations, select
from applecider_batch.report.light_curve import light_curve_svg
from applecider_batch.report.sky_map import sky_map_svg
from applecider_batch.report.spectrum import spectrum_svg
from applecider_batch.report.truth import confusion, read_truth
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES, GATES

PER_CLASS = 12
_MODALITY_WORDS = {"photometry": "light curve", "image": "image + metadata", "spectra": "spectrum"}
_SHORT = {"photometry": "phot", "image": "img", "spectra": "spec"}


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
        File of `candidates find` or `candidates label` (Parquet or JSON): its episodes are shown in its
        order, instead of the most probable of each class.
    truth : str, optional
        Parquet or CSV with objectId and a class: adds a confusion matrix.
    per_class : int
        Candidates shown of each class.

    Returns
    -------
    dict
        ``out, bytes, candidates, trained, simulated, partial``.

    Raises
    ------
    UserError
        If the catalogue, the archive, the candidates or the truth table cannot be read, or the candidates are
        those of another catalogue.
    """
    store, info = open_catalog(catalog_url, storage_options)
    reference = reference_horizon(info)
    listed = None if candidates is None else read_candidates(candidates, storage_options)[0]
    selection = select(store, info, reference, per_class, listed)
    if archive_url is not None:
        from applecider_batch.archive.read import Archive

        add_observations(Archive.open(archive_url, storage_options), selection.candidates)
    known = None if truth is None else read_truth(truth, storage_options)
    simulated = info["simulated_rows"] > 0
    context = {
        "info": info,
        "title": f"applecider-batch · run {info['run_id'][:12]}",
        "simulated": simulated,
        "identity": _identity(info),
        "reference": _horizon_words(reference),
        "tiles": _tiles(info),
        "funnel": _funnel(info),
        "class_counts": _class_counts(info),
        "patterns": _patterns(info),
        "sky": sky_map_svg(selection.sky_in_scope, selection.sky_rest),
        "run": _run_statistics(store),
        "confusion": _confusion_table(confusion(store, info, reference, known)) if known else None,
        "classes": CLASSES,
        "cards": [_card(c, simulated, archive_url is not None) for c in selection.candidates],
        "per_class": per_class,
        "listed": listed is not None,
        "has_archive": archive_url is not None,
    }
    page = render(context).encode()
    target = Path(out_html)
    Store(str(target.parent), storage_options).write_atomic(target.name, page)
    return {
        "out": str(out_html),
        "bytes": len(page),
        "candidates": len(selection.candidates),
        "trained": info["trained"],
        "simulated": simulated,
        "partial": info["partial"],
    }


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
    environment.filters["number"] = _number
    inline = {name: Markup((folder / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")}
    return environment.get_template("page.html.j2").render({**context, "inline": inline, "svg": Markup})


def reference_horizon(info: Mapping[str, Any]) -> str:
    """The horizon by which candidates are ranked: ``full`` where it was planned, else the longest."""
    return str(info["horizons"][-1])


def _horizon_words(label: str) -> str:
    return "full history" if label == "full" else f"{label} d"


def _number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, a dash for null, a real minus sign."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _identity(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = info["identity"]
    pairs = [
        ("run", info["run_id"]),
        ("snapshot", _short(given.get("snapshot", "unknown"))),
        ("model set", _short(given.get("models", given.get("model_set", "unknown")))),
        ("horizons", ", ".join(_horizon_words(h) for h in info["horizons"])),
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
        rows.append({"horizon": _horizon_words(label), "cells": cells, "rows": counts["rows"]})
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


def _run_statistics(store: Store) -> list[tuple[str, str]]:
    """What the run's own record says ; nothing where the catalogue has none."""
    if not store.exists(RUN_FILE):
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


def _confusion_table(rows: Sequence[tuple[str, dict[str, int]]]) -> dict[str, Any]:
    found = {name for _, counts in rows for name in counts}
    columns = [name for name in (*CLASSES, *GATES, "failed") if name in found or name in CLASSES]
    lines = []
    for name, counts in rows:
        total = sum(counts.values())
        cells = [(counts.get(column, 0), counts.get(column, 0) / total, column == name) for column in columns]
        lines.append({"name": name, "cells": cells, "total": total})
    return {"columns": columns, "rows": lines}


def _card(candidate: Candidate, simulated: bool, has_archive: bool) -> dict[str, Any]:
    row = candidate.row
    days = [float(r["horizon_days"]) for r in candidate.horizons if r["horizon_days"] is not None]
    name = row["objectId"]
    curve = ""
    if candidate.curve is not None and len(candidate.curve) + len(candidate.curve.limit_jd):
        curve = light_curve_svg(candidate.curve, row["t0"], days, f"Light curve of {name}")
    spectrum = "" if candidate.spectrum is None else spectrum_svg(*candidate.spectrum, f"Spectrum of {name}")
    return {
        "id": f"{name}-{row['episode']}",
        "row": row,
        "rank": candidate.rank,
        "curve": curve,
        "spectrum": spectrum,
        "stamps": candidate.stamps,
        "forced": candidate.curve is not None and bool(candidate.curve.forced.any()),
        "modalities": [_probabilities("fused", row, "prob"), *(_modality(row, m) for m in MODALITIES)],
        "strip": [_strip(r) for r in candidate.horizons],
        "available": [_MODALITY_WORDS[m] for m in MODALITIES if row["modality_mask"] & MODALITY_BITS[m]],
        "flags": describe(row["quality_flags"] or 0),
        "reasons": describe_reason(row["anomaly_reason"] or 0),
        "links": [] if simulated else links(name, row["ra"], row["dec"]),
        "facts": (_listing(row) if candidate.listed else []) + _facts(row),
        "no_archive": not has_archive,
    }


def _probabilities(label: str, row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = [row[f"{prefix}_{key}"] for key in CLASS_KEYS]
    known = values[0] is not None
    top = int(np.argmax(values)) if known else -1
    return {"label": label, "probs": values if known else None, "top": top}


def _modality(row: Mapping[str, Any], modality: str) -> dict[str, Any]:
    return _probabilities(_MODALITY_WORDS[modality], row, f"prob_{_SHORT[modality]}")


def _strip(row: Mapping[str, Any]) -> dict[str, Any]:
    label = "full" if row["horizon_days"] is None else f"{row['horizon_days']:g} d"
    return {**_probabilities(label, row, "prob"), "n_det": row["n_det"], "complete": row["horizon_complete"]}


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    redshift = row["redshift_used"]
    pairs = [
        ("position", f"{_number(row['ra'], 5)}, {_number(row['dec'], 5)} deg"),
        ("galactic b", f"{_number(row['galactic_b'], 1)} deg"),
        ("t0", f"JD {_number(row['t0'], 3)}"),
        ("detections", f"{row['n_det'] or 0} ({row['n_neg'] or 0} negative), {row['n_nondet'] or 0} limits"),
        ("peak mag", f"g {_number(row['mag_peak_g'])}, r {_number(row['mag_peak_r'])}"),
        ("rb / drb max", f"{_number(row['rb_max'])} / {_number(row['drb_max'])}"),
        ("nearest PS1", f"{_number(row['distpsnr1'], 1)}″, sgscore {_number(row['sgscore1'])}"),
        ("image packet", f"{row['candid_image'] or '–'}, {_number(row['image_age_days'], 1)} d old"),
        ("redshift", "–" if redshift is None else f"{redshift:.4f} ({row['redshift_source']})"),
        ("entropy / JSD", f"{_number(row['entropy'])} / {_number(row['modality_jsd'])}"),
        ("anomaly", _anomaly(row)),
        ("known status", _known(row)),
        ("gate", f"{row['gate']} ({row['gate_reason'] or '–'})"),
    ]
    return pairs


def _listing(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Why it stands where it does in the list of candidates, and what lies beside it."""
    first = row["first_horizon"]
    near = [
        f"{name} at {_number(sep, 1)}″ ({kind or 'no class'}, {status})"
        for name, sep, kind, status in zip(
            row["neighbour_objectId"],
            row["neighbour_sep"],
            row["neighbour_class"],
            row["neighbour_status"],
            strict=True,
        )
    ]
    factors = ("transient", "anomaly", "quality", "detections", "history")
    pairs = [
        (
            "score",
            f"{_number(row['score'])}: " + ", ".join(f"{f} {_number(row[f'score_{f}'])}" for f in factors),
        ),
        ("first said so", "at no horizon" if first is None else _horizon_words(first)),
    ]
    if row["prob_interesting"] is not None:
        pairs.append(("by your labels", _number(row["prob_interesting"])))
    return [*pairs, ("neighbours", "; ".join(near) or "none")]


def _known(row: Mapping[str, Any]) -> str:
    """The status, and the deciding known source with its separation and time."""
    status = str(row["known_status"] or "–").replace("_", " ")
    if row["xm_tns_name"] is None:
        return status
    when = "" if row["xm_tns_dt"] is None else f", {_number(row['xm_tns_dt'], 1)} d after t0"
    kind = row["xm_tns_type"] or "no type"
    return f"{status}: {row['xm_tns_name']} ({kind}) at {_number(row['xm_tns_sep'])}″{when}"


def _anomaly(row: Mapping[str, Any]) -> str:
    """p-value, what it was compared with, and the flag; a dash without a comparison."""
    if row["anomaly_pvalue"] is None:
        return "–"
    flag = ("not flagged", "flagged at 1 %", "flagged at 0.1 %")[row["anomaly_flag"]]
    compared = f"{row['anomaly_n_ref']} known: {row['anomaly_ref_group']}"
    return f"p {_number(row['anomaly_pvalue'], 4)}, {flag} ({compared})"


def links(name: str, ra: float | None, dec: float | None) -> list[tuple[str, str]]:
    """Pages about an object elsewhere; they are followed only when clicked."""
    found = []
    if name.startswith("ZTF"):
        found = [
            ("ALeRCE", f"https://alerce.online/object/{name}"),
            ("Fink", f"https://fink-portal.org/{name}"),
            ("Fritz", f"https://fritz.science/source/{name}"),
        ]
    if ra is not None and dec is not None:
        found.append(("SNAD", f"https://ztf.snad.space/search/{ra:.6f}%20{dec:.6f}/3"))
        found.append(
            ("TNS", f"https://www.wis-tns.org/search?ra={ra:.6f}&decl={dec:.6f}&radius=3&coords_unit=arcsec")
        )
    return found
