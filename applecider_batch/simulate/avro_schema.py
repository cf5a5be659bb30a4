"""Avro schemas 3.3 and 4.02 of ZTF alert packets, written out as short field lists.

Names, order and types are those of https://github.com/ZwickyTransientFacility/ztf-avro-alert; the long
descriptions are left out, so a simulated packet is about 20 kB smaller than a real one.
"""

from __future__ import annotations

import json
from typing import Any

# name:type, type one of d(ouble) f(loat) i(nt) l(ong) s(tring); "?" = nullable with default null,
# "!" = nullable without default, "0" = the odd int-or-null field of 3.3 with default 0.
# shared head of candidate and prv_candidate
_POINT = "jd:d fid:i pid:l diffmaglim:f? pdiffimfilename:s? programpi:s? programid:i"
_SHAPE = (
    "chipsf:f? magap:f? sigmagap:f? distnr:f? magnr:f? sigmagnr:f? chinr:f? sharpnr:f? sky:f? magdiff:f? "
    "fwhm:f? "
    "classtar:f? mindtoedge:f? magfromlim:f? seeratio:f? aimage:f? bimage:f? aimagerat:f? bimagerat:f? "
    "elong:f? "
    "nneg:i? nbad:i? rb:f? ssdistnr:f? ssmagnr:f? ssnamenr:s? sumrat:f? magapbig:f? sigmagapbig:f?"
)
_PLACE = "tblid:l? nid:i? rcid:i? field:i? xpos:f? ypos:f?"


def _ps1(k: int) -> str:
    return f"sgmag{k}:f? srmag{k}:f? simag{k}:f? szmag{k}:f? sgscore{k}:f? distpsnr{k}:f?"


CANDIDATE = (
    f"{_POINT} candid:l isdiffpos:s {_PLACE} ra:d dec:d magpsf:f sigmapsf:f {_SHAPE} ranr:d decnr:d "
    f"{_ps1(1)} "
    "ndethist:i ncovhist:i jdstarthist:d? jdendhist:d? scorr:d? tooflag:i0 objectidps1:l? objectidps2:l? "
    f"{_ps1(2)} objectidps3:l? {_ps1(3)} nmtchps:i rfid:l jdstartref:d jdendref:d nframesref:i rbversion:s "
    "dsnrms:f? ssnrms:f? dsdiff:f? magzpsci:f? magzpsciunc:f? magzpscirms:f? nmatches:i clrcoeff:f? "
    "clrcounc:f? "
    "zpclrcov:f? zpmed:f? clrmed:f? clrrms:f? neargaia:f? neargaiabright:f? maggaia:f? maggaiabright:f? "
    "exptime:f? "
    "drb:f? drbversion:s"
)
PRV_CANDIDATE = (
    f"{_POINT} candid:l! isdiffpos:s! {_PLACE} ra:d! dec:d! magpsf:f! sigmapsf:f! {_SHAPE} ranr:d! "
    "decnr:d! scorr:d? "
    "magzpsci:f? magzpsciunc:f? magzpscirms:f? clrcoeff:f? clrcounc:f? rbversion:s"
)
FP_HIST = (
    "field:i? rcid:i? fid:i pid:l rfid:l sciinpseeing:f? scibckgnd:f? scisigpix:f? magzpsci:f? "
    "magzpsciunc:f? "
    "magzpscirms:f? clrcoeff:f? clrcounc:f? exptime:f? adpctdif1:f? adpctdif2:f? diffmaglim:f? "
    "programid:i jd:d "
    "forcediffimflux:f? forcediffimfluxunc:f? procstatus:s? distnr:f? ranr:d decnr:d magnr:f? sigmagnr:f? "
    "chinr:f? "
    "sharpnr:f?"
)
_TYPES = {"d": "double", "f": "float", "i": "int", "l": "long", "s": "string"}
DOC = "simulated by applecider-batch in the format of ZTF alert packets"


def field_names(spec: str) -> list[str]:
    """Names of a field list, in order."""
    return [item.split(":")[0] for item in spec.split()]


def _fields(spec: str, version: str) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    for item in spec.split():
        name, code = item.split(":")
        kind = _TYPES[code[0]]
        mark = code[1:]
        if mark == "":
            fields.append({"name": name, "type": kind})
        elif mark == "!":
            fields.append({"name": name, "type": ["null", kind]})
        elif mark == "0" and version.startswith("3"):
            fields.append({"name": name, "type": [kind, "null"], "default": 0})
        else:
            fields.append({"name": name, "type": ["null", kind], "default": None})
    return fields


def record_schema(name: str, spec: str, version: str) -> dict[str, Any]:
    """Avro record ``ztf.alert.NAME`` of a field list."""
    return {
        "type": "record", "version": version, "doc": DOC, "name": f"ztf.alert.{name}",
        "fields": _fields(spec, version),
    }  # fmt: skip


def alert_schema(version: str) -> dict[str, Any]:
    """The whole packet's schema for version ``"3.3"`` or ``"4.02"``."""
    cutout = {
        "type": "record", "version": version, "doc": DOC, "name": "ztf.alert.cutout",
        "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
    }  # fmt: skip

    def history(field: str, name: str, spec: str) -> dict[str, Any]:
        items = record_schema(name, spec, version)
        return {"name": field, "type": ["null", {"type": "array", "items": items}], "default": None}

    fields: list[dict[str, Any]] = [
        {"name": "schemavsn", "type": "string"},
        {"name": "publisher", "type": "string"},
        {"name": "objectId", "type": "string"},
        {"name": "candid", "type": "long"},
        {"name": "candidate", "type": record_schema("candidate", CANDIDATE, version)},
        history("prv_candidates", "prv_candidate", PRV_CANDIDATE),
    ]
    if version.startswith("4"):
        fields.append(history("fp_hists", "fp_hist", FP_HIST))
    fields.append({"name": "cutoutScience", "type": ["null", cutout], "default": None})
    for name in ("cutoutTemplate", "cutoutDifference"):
        fields.append({"name": name, "type": ["null", "ztf.alert.cutout"], "default": None})
    return {"type": "record", "version": version, "doc": DOC, "name": "ztf.alert", "fields": fields}


def schema_json(version: str) -> bytes:
    """Canonical text of :func:`alert_schema`, as it stands in a packet's header."""
    return json.dumps(alert_schema(version), separators=(",", ":")).encode()
