"""``candidates drafts``: reports for TNS and SkyPortal as files.  Nothing is ever sent.

::

    OUT/tns_bulk_report.json              {"at_report": {"0": {...}, "1": {...}}}
    OUT/skyportal_classifications.json    a list of payloads for POST /api/classification

Drafted are candidates that are ``tns_eligible`` and not simulated; every draft is checked against the
documented layout (:mod:`.draft_layouts`) before anything is written.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.draft_layouts import check_skyportal, check_tns
from applecider_batch.errors import InternalError, UserError
from applecider_batch.storage import Store, store_of
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES

TNS_FILE, SKYPORTAL_FILE = "tns_bulk_report.json", "skyportal_classifications.json"
#: at_type of TNS: 1 possible supernova, 4 nuclear transient.
AT_TYPES = {"SN I": "1", "SN II": "1", "TDE": "4"}
#: TNS's numbers of ZTF's filters and camera, and of AB magnitudes.
_FILTERS, _CAMERA, _AB, _EXPTIME = {1: "110", 2: "111", 3: "112"}, "196", "1", "30"
_CLASS_WORDS = {"SN I": "Type I", "SN II": "Type II", "TDE": "Tidal Disruption Event"}
_FORCED = 2


def read_settings(url: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Who reports, from a TOML file.

    ``[tns]`` holds ``reporting_group_id``, ``discovery_data_source_id`` (48 is ZTF) and ``reporter``;
    ``[skyportal]`` holds ``taxonomy_id``, ``group_ids`` and, where that taxonomy has other words,
    ``classification = {"SN I" = "Type I", ...}``.  Of the two tables one may be absent.

    Raises
    ------
    UserError
        If the file is absent, no TOML, or a value is missing or of the wrong kind.
    """
    store, name = store_of(url, storage_options)
    try:
        given = tomllib.loads(store.read_bytes(name).decode())
    except FileNotFoundError:
        raise UserError(f"The settings '{url}' are not there.") from None
    except ValueError as error:
        raise UserError(f"The settings '{url}' are no TOML: {error}.") from error
    wanted = {
        "tns": {"reporting_group_id": int, "discovery_data_source_id": int, "reporter": str},
        "skyportal": {"taxonomy_id": int, "group_ids": list},
    }
    if not given.keys() & wanted.keys():
        raise UserError(f"The settings '{url}' have neither a table [tns] nor [skyportal].")
    for table, keys in wanted.items():
        for key, kind in keys.items():
            if table in given and not isinstance(given[table].get(key), kind):
                raise UserError(
                    f"The settings '{url}' need {table}.{key} as {kind.__name__}, and have "
                    f"{given[table].get(key)!r}."
                )
    return given


def write_drafts(
    candidates_url: str,
    archive_url: str,
    settings_url: str,
    out: str,
    *,
    top: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draft reports of the candidates in a file.

    Parameters
    ----------
    candidates_url : str
        Parquet or JSON of ``candidates find`` or ``label``.
    archive_url : str
        The archive, for the photometry of the discovery.
    settings_url : str
        As :func:`read_settings`.
    out : str
        Folder to write.
    top : int, optional
        Only the first so many candidates.

    Returns
    -------
    dict
        Keys as ``candidates drafts`` in ``schemas/answers.json``.

    Raises
    ------
    UserError
        If something cannot be read, or the networks are untrained.
    """
    table, found = read_candidates(candidates_url, storage_options)
    settings = read_settings(settings_url, storage_options)
    if not found["trained"]:
        raise UserError(
            f"The candidates '{candidates_url}' come from untrained networks; they are nothing to report.",
            hint="Classify with trained networks first.",
        )
    archive = Archive.open(archive_url, storage_options)
    left: Counter[str] = Counter()
    reports: list[dict[str, Any]] = []
    payloads: list[dict[str, Any]] = []
    for row in table.slice(0, top).to_pylist():
        reason = _unfit(row)
        points = None if reason else _detections(archive, row)
        if points is not None and not points.num_rows:
            reason = "no_photometry"
        if reason or points is None:
            left[reason or "no_photometry"] += 1
            continue
        if "tns" in settings:
            reports.append(_tns_report(row, points, _limit(archive, row), settings["tns"]))
        if "skyportal" in settings:
            payloads.append(_skyportal_payload(row, settings["skyportal"]))
    document = {"at_report": {str(number): report for number, report in enumerate(reports)}}
    problems = [*check_tns(document), *(p for payload in payloads for p in check_skyportal(payload))]
    if problems:
        raise InternalError(f"A draft does not have the documented layout: {problems[0]}.")
    store, files = Store(out, storage_options), []
    for name, asked, content in (
        (TNS_FILE, "tns" in settings, document), (SKYPORTAL_FILE, "skyportal" in settings, payloads)
    ):  # fmt: skip
        if asked:
            store.write_json_atomic(name, content)
            files.append(name)
    drafted = max(len(reports), len(payloads))
    return {"out": out, "files": files, "candidates": drafted + sum(left.values()), "drafted": drafted,
            "left_out": dict(sorted(left.items())), "sent": False, "run_id": found["run_id"]}  # fmt: skip


def _unfit(row: Mapping[str, Any]) -> str | None:
    if row["simulated"]:
        return "simulated"
    if row["known_status"] != "unreported":
        return str(row["known_status"])
    if not row["tns_eligible"] or row["class_top1"] not in AT_TYPES:
        return "not_tns_eligible"
    return None if row["label"] != "no" else "labelled_no"


def _photometry(archive: Archive, row: Mapping[str, Any]) -> pa.Table:
    """The object's ZTF points up to the row's wall, forced ones left out, by jd."""
    points = archive.read_photometry(row["hash64"], row["hash64"] + 1)
    keep = pc.and_(
        pc.equal(points.column("objectId"), row["objectId"]),
        pc.less_equal(points.column("known_jd"), row["as_of_jd"]),
    )
    keep = pc.and_(keep, pc.not_equal(points.column("origin"), _FORCED))
    keep = pc.and_(keep, pc.is_null(points.column("survey")))
    return points.filter(pc.and_(keep, pc.is_in(points.column("fid"), pa.array(list(_FILTERS), pa.int8()))))


def _detections(archive: Archive, row: Mapping[str, Any]) -> pa.Table:
    """Positive detections from the discovery (t0) on: the first, the brightest and the last."""
    points = _photometry(archive, row)
    good = pc.and_(points.column("is_detection"), pc.is_valid(points.column("magpsf")))
    good = pc.and_(good, pc.greater(pc.fill_null(points.column("isdiffpos"), 1), 0))
    points = points.filter(pc.and_(good, pc.greater_equal(points.column("jd"), row["t0"]))).sort_by("jd")
    if not points.num_rows:
        return points
    brightest = pc.index(points.column("magpsf"), pc.min(points.column("magpsf"))).as_py()
    return points.take(pa.array(sorted({0, brightest, points.num_rows - 1})))


def _limit(archive: Archive, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last upper limit before the discovery."""
    points = _photometry(archive, row)
    limits = pc.and_(pc.invert(points.column("is_detection")), pc.is_valid(points.column("diffmaglim")))
    before = points.filter(pc.and_(limits, pc.less(points.column("jd"), row["t0"]))).sort_by("jd")
    if not before.num_rows:
        return None
    last: dict[str, Any] = before.slice(before.num_rows - 1).to_pylist()[0]
    return last


def _date(jd: float) -> str:
    from astropy.time import Time

    return str(Time(jd, format="jd").iso)


def _remarks(row: Mapping[str, Any]) -> str:
    chances = ", ".join(
        f"{name} {row[f'prob_{key}']:.2f}" for name, key in zip(CLASSES, CLASS_KEYS, strict=True)
    )
    kind = "calibrated" if row["calibrated"] else "uncalibrated"
    return (
        f"Found in archival ZTF alerts with AppleCiDEr (applecider-batch {row['pipeline_version']}, run "
        f"{row['run_id'][:12]}). Machine classification, no spectroscopic type; {kind} probabilities: "
        f"{chances}."
    )


def _tns_report(
    row: Mapping[str, Any], points: pa.Table, limit: Mapping[str, Any] | None, who: Mapping[str, Any]
) -> dict[str, Any]:
    common = {"flux_units": _AB, "instrument_value": _CAMERA, "exptime": _EXPTIME, "observer": "Robot"}
    if limit is None:
        non_detection = {"archiveid": "0", "archival_remarks": "No ZTF upper limit before the discovery."}
    else:
        non_detection = {
            **common, "obsdate": _date(limit["jd"]), "limiting_flux": f"{limit['diffmaglim']:.3f}",
            "filter_value": _FILTERS[limit["fid"]], "comments": "", "archiveid": "", "archival_remarks": "",
        }  # fmt: skip
    group = {
        str(number): {
            **common, "obsdate": _date(point["jd"]), "flux": f"{point['magpsf']:.3f}",
            "flux_error": "" if point["sigmapsf"] is None else f"{point['sigmapsf']:.3f}",
            "limiting_flux": "" if point["diffmaglim"] is None else f"{point['diffmaglim']:.3f}",
            "filter_value": _FILTERS[point["fid"]], "comments": "",
        }
        for number, point in enumerate(points.to_pylist())
    }  # fmt: skip
    return {
        "ra": {"value": f"{row['ra']:.6f}", "error": "", "units": "deg"},
        "dec": {"value": f"{row['dec']:+.6f}", "error": "", "units": "deg"},
        "reporting_group_id": str(who["reporting_group_id"]),
        "discovery_data_source_id": str(who["discovery_data_source_id"]),
        "reporter": who["reporter"],
        "discovery_datetime": group["0"]["obsdate"],
        "at_type": AT_TYPES[row["class_top1"]],
        "host_name": "", "host_redshift": "", "transient_redshift": "",
        "internal_name": row["objectId"],
        "remarks": _remarks(row),
        "non_detection": non_detection,
        "photometry": {"photometry_group": group},
    }  # fmt: skip


def _skyportal_payload(row: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    words = {**_CLASS_WORDS, **where.get("classification", {})}
    return {
        "obj_id": row["objectId"],
        "classification": words[row["class_top1"]],
        "taxonomy_id": where["taxonomy_id"],
        "probability": round(float(row["prob_top1"]), 6),
        "ml": True,
        "origin": f"applecider-batch {row['pipeline_version']} {row['run_id'][:12]}",
        "group_ids": where["group_ids"],
        "vote": False,
        "label": False,
    }
