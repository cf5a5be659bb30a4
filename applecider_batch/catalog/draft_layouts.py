"""The documented layouts of what is drafted, and a check of a document against them.

TNS: the bulk report's JSON (manual of TNS 2.0, "bulk reports"), every value a string.  SkyPortal: the body of
``POST /api/classification``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NUMBER = r"[+-]?\d+(\.\d+)?"
_MAYBE = rf"({_NUMBER})?"
_DATE = r"\d{4}-\d{2}-\d{2}(\.\d+|[ T]\d{2}:\d{2}:\d{2}(\.\d+)?)"
_ANY = r"(?s).*"
_SOME = r"(?s).*\S.*"

#: Field -> pattern of the whole value; a "?" after the name: it may be absent.
_POSITION = {"value": _NUMBER, "error?": _MAYBE, "units?": r"(deg|arcsec|)"}
_OBSERVED = {
    "obsdate": _DATE, "flux_units": r"\d+", "filter_value": r"\d+", "instrument_value": r"\d+",
    "exptime?": _MAYBE, "observer?": _ANY, "comments?": _ANY,
}  # fmt: skip
_POINT = {**_OBSERVED, "flux": _NUMBER, "flux_error?": _MAYBE, "limiting_flux?": _MAYBE}
_LIMIT = {**_OBSERVED, "limiting_flux": _NUMBER, "archiveid?": "", "archival_remarks?": _ANY}
_ARCHIVAL = {"archiveid": r"\d+", "archival_remarks": _SOME}
_REPORT: Mapping[str, Any] = {
    "ra": _POSITION, "dec": _POSITION, "reporting_group_id": r"\d+", "discovery_data_source_id": r"\d+",
    "reporter": _SOME, "discovery_datetime": _DATE, "at_type": r"[0-4]", "host_name?": _ANY,
    "host_redshift?": _MAYBE, "transient_redshift?": _MAYBE, "internal_name?": _ANY, "remarks?": _ANY,
    "non_detection": None, "photometry": None,
}  # fmt: skip
_PAYLOAD: Mapping[str, type] = {
    "obj_id": str, "classification": str, "taxonomy_id": int, "probability": float, "ml": bool, "origin": str,
    "group_ids": list, "vote": bool, "label": bool,
}  # fmt: skip


def check_tns(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a TNS bulk report, one sentence each; empty if nothing."""
    reports = document.get("at_report")
    if set(document) != {"at_report"} or not isinstance(reports, Mapping):
        return ["the document must hold at_report alone"]
    problems = []
    if set(reports) != {str(number) for number in range(len(reports))}:
        problems.append("the keys of at_report must be 0, 1, 2, ...")
    for number, report in reports.items():
        problems += [f"at_report {number}: {problem}" for problem in _check_report(report)]
    return problems


def _check_report(report: Any) -> Iterator[str]:
    yield from _check(report, _REPORT, "")
    if not isinstance(report, Mapping):
        return
    limit = report.get("non_detection")
    archival = isinstance(limit, Mapping) and bool(limit.get("archiveid"))
    yield from _check(limit, _ARCHIVAL if archival else _LIMIT, "non_detection.")
    group = report.get("photometry", {})
    group = group.get("photometry_group") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not group:
        yield "photometry.photometry_group must hold a point"
        return
    for number, point in group.items():
        yield from _check(point, _POINT, f"photometry.{number}.")
    if not any(isinstance(p, Mapping) and p.get("obsdate") == report.get("discovery_datetime")
               for p in group.values()):  # fmt: skip
        yield "no point of the photometry is that of discovery_datetime"


def _check(given: Any, layout: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{where.rstrip('.') or 'the report'} must be an object, and is {given!r}"
        return
    known = {name.rstrip("?") for name in layout}
    yield from (f"{where}{name} is not in the layout" for name in given if name not in known)
    for entry, pattern in layout.items():
        name = entry.rstrip("?")
        if name not in given:
            if not entry.endswith("?"):
                yield f"{where}{name} is missing"
        elif isinstance(pattern, Mapping):
            yield from _check(given[name], pattern, f"{where}{name}.")
        elif pattern is not None and not (
            isinstance(given[name], str) and re.fullmatch(pattern, given[name])
        ):
            yield f"{where}{name} is {given[name]!r}"


def check_skyportal(payload: Mapping[str, Any]) -> list[str]:
    """What is wrong with a SkyPortal classification; empty if nothing."""
    problems = [f"{name} is not in the layout" for name in payload if name not in _PAYLOAD]
    for name, kind in _PAYLOAD.items():
        if type(payload.get(name)) is not kind:
            problems.append(f"{name} must be {kind.__name__}, and is {payload.get(name)!r}")
    if not problems:
        if not 0 <= payload["probability"] <= 1:
            problems.append(f"probability is {payload['probability']}")
        if not payload["group_ids"] or any(type(g) is not int for g in payload["group_ids"]):
            problems.append(f"group_ids must be numbers, and is {payload['group_ids']}")
        if payload["vote"] or payload["label"]:
            problems.append("vote and label must be false")
    return problems
