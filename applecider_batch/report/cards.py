"""A candidate's card: what the page shows of one episode, as plain values for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from applecider_batch.catalog.columns import SHORT_NAMES
from applecider_batch.catalog.latent_neighbours import LatentNeighbour
from applecider_batch.features.quality import describe
from applecider_batch.inference.anomaly_reference import describe as describe_reason
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS
from applecider_batch.report.candidates import Candidate
from applecider_batch.report.light_curve import light_curve_svg
from applecider_batch.report.spectrum import spectrum_svg
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES, GATES

MODALITY_WORDS = {"photometry": "light curve", "image": "image + metadata", "spectra": "spectrum"}
_FACTORS = ("transient", "anomaly", "quality", "detections", "history")
_CUTS = ("ipac", "ztfrest", "boom", "fink")

Pairs = list[tuple[str, str]]


def card(candidate: Candidate, simulated: bool, has_archive: bool) -> dict[str, Any]:
    """Everything that the template reads of one candidate."""
    row = candidate.row
    name = row["objectId"]
    spectrum = "" if candidate.spectrum is None else spectrum_svg(*candidate.spectrum, f"Spectrum of {name}")
    mags = [row[key] for key in ("mag_peak_g", "mag_peak_r") if row[key] is not None]
    return {
        "id": f"{name}-{row['episode']}",
        "row": row,
        "rank": candidate.rank,
        "label": row["label"] if candidate.listed else None,
        "score": row["score"] if candidate.listed else None,
        "peak": min(mags, default=None),
        "kind": row["class_top1"] or "none",
        "said": row["class_top1"] or words(row["gate"] or "failed"),
        "curve": _curve(candidate),
        "spectrum": spectrum,
        "stamps": candidate.stamps,
        "stamps_seen": candidate.stamps_of is None or candidate.stamps_of == row["candid_image"],
        "forced": candidate.curve is not None and bool(candidate.curve.forced.any()),
        "modalities": [_probabilities("fused", row, "prob"), *(_modality(row, m) for m in MODALITIES)],
        "strip": [_strip(r) for r in candidate.horizons],
        "available": [MODALITY_WORDS[m] for m in MODALITIES if row["modality_mask"] & MODALITY_BITS[m]],
        "latents": [
            (MODALITY_WORDS[m], _votes(candidate.latent_neighbours[m]), candidate.latent_neighbours[m])
            for m in MODALITIES if m in candidate.latent_neighbours
        ],
        "crossmatches": [_crossmatch(match) for match in candidate.crossmatches],
        "flags": describe(row["quality_flags"] or 0),
        "reasons": describe_reason(row["anomaly_reason"] or 0),
        "links": [] if simulated else links(name, row["ra"], row["dec"]),
        "facts": ([("Ranking", _ranking(row))] if candidate.listed else []) + _judgement(row),
        "below": _observed(candidate),
        "no_archive": not has_archive,
    }  # fmt: skip


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed digits, a dash for null and NaN, a real minus sign."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def words(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def horizon_words(label: str) -> str:
    """A horizon's label as words."""
    return "full history" if label == "full" else f"{label} d"


def _curve(candidate: Candidate) -> str:
    row, curve = candidate.row, candidate.curve
    if curve is None or not len(curve) + len(curve.limit_jd):
        return ""
    days = [float(r["horizon_days"]) for r in candidate.horizons if r["horizon_days"] is not None]
    title = f"Light curve of {row['objectId']}"
    if row["t0"] is not None:
        return light_curve_svg(curve, row["t0"], days, title)
    start = float(np.concatenate([curve.jd, curve.limit_jd]).min())
    return light_curve_svg(curve, start, [], title, zero="the first point")


def _probabilities(label: str, row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values = [row[f"{prefix}_{key}"] for key in CLASS_KEYS]
    known = all(value is not None and np.isfinite(value) for value in values)
    top = int(np.argmax(values)) if known else -1
    return {"label": label, "probs": values if known else None, "top": top, "why": "not available"}


def _modality(row: Mapping[str, Any], modality: str) -> dict[str, Any]:
    return _probabilities(MODALITY_WORDS[modality], row, f"prob_{SHORT_NAMES[modality]}")


def _strip(row: Mapping[str, Any]) -> dict[str, Any]:
    label = "full" if row["horizon_days"] is None else f"{row['horizon_days']:g} d"
    given = _probabilities(label, row, "prob")
    if row["gate"] != GATES[0]:
        given |= {"probs": None, "why": words(row["gate"] or row["error_code"] or "failed")}
    return {**given, "n_det": row["n_det"], "complete": row["horizon_complete"]}


def _votes(neighbours: Sequence[LatentNeighbour]) -> str:
    """How many of them have which label, the most frequent first."""
    counts = Counter(neighbour.label for neighbour in neighbours)
    return ", ".join(f"{count} {label}" for label, count in counts.most_common())


def _crossmatch(match: Mapping[str, Any]) -> str:
    when = "" if match["dt"] is None else f", {number(match['dt'], 1)} d after t0"
    inside = "" if match["in_window"] else ", another event"
    kind = match["type"] or "no type"
    return f"{match['name'] or 'no name'} ({kind}) at {number(match['sep'])}″{when}{inside}; {match['list']}"


def _judgement(row: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """What was said of it and by which run: titles with pairs of a name and a value."""
    gate, reason = words(row["gate"] or "failed"), words(row["gate_reason"] or row["error_code"] or "–")
    judgement = [
        ("gate", f"{gate} ({reason})"),
        ("entropy / JSD", f"{number(row['entropy'])} / {number(row['modality_jsd'])}"),
        ("anomaly", _anomaly(row)),
        ("cut presets", _cuts(row)),
    ]
    run = [("run", f"{row['run_id']}, shard {row['shard_id']}"), ("model set", str(row["model_set_id"]))]
    return [("Judgement", judgement), ("Origin", run)]


def _observed(candidate: Candidate) -> list[tuple[str, Pairs]]:
    """What was seen of it and around it, in the same form."""
    row = candidate.row
    redshift, source = row["redshift_used"], row["redshift_source"] or "no source"
    seen = f"{row['n_det'] or 0} ({row['n_neg'] or 0} negative), {row['n_nondet'] or 0} limits"
    observations = [
        ("position", f"{number(row['ra'], 5)}°, {number(row['dec'], 5)}°"),
        ("galactic b", f"{number(row['galactic_b'], 1)}°"),
        ("t0", f"JD {number(row['t0'], 3)}"),
        ("detections", seen),
        ("peak mag", f"g {number(row['mag_peak_g'])}, r {number(row['mag_peak_r'])}"),
        ("rb / drb max", f"{number(row['rb_max'])} / {number(row['drb_max'])}"),
        ("image packet", _packet(candidate)),
        (
            "redshift",
            "–" if redshift is None else f"{redshift:.4f} ({source})",
        ),
    ]
    around = [
        ("known status", _known(row)),
        ("nearest PS1", f"{number(row['distpsnr1'], 1)}″, sgscore {number(row['sgscore1'])}"),
        ("siblings in 2″", ", ".join(candidate.siblings) or "none"),
        *(_nearby(row) if candidate.listed else []),
    ]
    return [("Observations", observations), ("Surroundings", around)]


def _ranking(row: Mapping[str, Any]) -> Pairs:
    """Why it stands where it does in the list of candidates."""
    first = row["first_horizon"]
    factors = ", ".join(f"{name} {number(row[f'score_{name}'])}" for name in _FACTORS)
    pairs = [
        ("score", f"{number(row['score'])}: {factors}"),
        ("first said so", "at no horizon" if first is None else horizon_words(first)),
    ]
    if row["prob_interesting"] is not None:
        pairs.append(("by your labels", number(row["prob_interesting"])))
    return pairs


def _nearby(row: Mapping[str, Any]) -> Pairs:
    near = zip(*(row[f"neighbour_{key}"] for key in ("objectId", "sep", "class", "status")), strict=True)
    texts = [
        f"{n} at {number(sep, 1)}″ ({words(kind or 'no class')}, {words(s)})" for n, sep, kind, s in near
    ]
    return [("nearby", "; ".join(texts) or "none")]


def _packet(candidate: Candidate) -> str:
    row = candidate.row
    if row["candid_image"] is not None:
        return f"{row['candid_image']}, {number(row['image_age_days'], 1)} d old"
    shown = candidate.stamps_of
    return "none seen by a network" + ("" if shown is None else f"; stamps of {shown}")


def _cuts(row: Mapping[str, Any]) -> str:
    said = {True: "passed", False: "failed", None: "–"}
    return ", ".join(f"{name} {said[row[f'cut_{name}']]}" for name in _CUTS)


def _known(row: Mapping[str, Any]) -> str:
    """The status, and the deciding known source with its separation and time."""
    status = words(row["known_status"] or "–")
    if row["xm_tns_name"] is None:
        return status
    when = "" if row["xm_tns_dt"] is None else f", {number(row['xm_tns_dt'], 1)} d after t0"
    kind = row["xm_tns_type"] or "no type"
    return f"{status}: {row['xm_tns_name']} ({kind}) at {number(row['xm_tns_sep'])}″{when}"


def _anomaly(row: Mapping[str, Any]) -> str:
    """p-value, what it was compared with, and the flag; a dash without a comparison."""
    if row["anomaly_pvalue"] is None:
        return "–"
    flag = ("not flagged", "flagged at 1 %", "flagged at 0.1 %")[row["anomaly_flag"]]
    compared = f"{row['anomaly_n_ref']} known: {row['anomaly_ref_group']}"
    return f"p {number(row['anomaly_pvalue'], 4)}, {flag} ({compared})"


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
        found += [
            ("SNAD", f"https://ztf.snad.space/search/{ra:.6f}%20{dec:.6f}/3"),
            ("TNS", f"https://www.wis-tns.org/search?ra={ra:.6f}&decl={dec:.6f}&radius=3&coords_unit=arcsec"),
            (
                "Legacy",
                f"https://www.legacysurvey.org/viewer?ra={ra:.6f}&dec={dec:.6f}&layer=ls-dr10&zoom=16",
            ),
        ]
    return found


def class_filters(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Values and words of the class filter: one for episodes without a class only where there is any."""
    rest = [("none", "no class")] if any(c["kind"] == "none" for c in cards) else []
    return [*((name, name) for name in CLASSES), *rest]
