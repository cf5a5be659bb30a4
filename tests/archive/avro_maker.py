"""Small real packets, written by fastavro: the schema of a packet, its record, files and tarballs of them."""

from __future__ import annotations

import copy
import gzip
import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from applecider_batch.archive.sources import Source, open_sources

POINT = [
    {"name": "jd", "type": "double"},
    {"name": "fid", "type": "int"},
    {"name": "pid", "type": "long"},
    {"name": "diffmaglim", "type": ["null", "float"], "default": None},
    {"name": "programid", "type": "int"},
]
CUTOUT = {
    "type": "record",
    "name": "ztf.alert.cutout",
    "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "ztf.alert",
    "doc": "a small packet",
    "fields": [
        {"name": "schemavsn", "type": "string"},
        {"name": "publisher", "type": "string"},
        {"name": "objectId", "type": "string"},
        {"name": "candid", "type": "long"},
        {
            "name": "candidate",
            "type": {
                "type": "record",
                "name": "ztf.alert.candidate",
                "fields": [
                    *POINT,
                    {"name": "candid", "type": "long"},
                    {"name": "isdiffpos", "type": "string"},
                    {"name": "tblid", "type": ["null", "long"], "default": None},
                    {"name": "ra", "type": "double"},
                    {"name": "dec", "type": "double"},
                    {"name": "magpsf", "type": "float"},
                    {"name": "sigmapsf", "type": "float"},
                    {"name": "rb", "type": ["null", "float"], "default": None},
                    {"name": "ssdistnr", "type": ["null", "float"], "default": None},
                    {"name": "ssnamenr", "type": ["null", "string"], "default": None},
                    {"name": "sky", "type": ["null", "float"], "default": None},
                ],
            },
        },
        {
            "name": "prv_candidates",
            "default": None,
            "type": [
                "null",
                {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "ztf.alert.prv_candidate",
                        "fields": [
                            *POINT,
                            {"name": "pdiffimfilename", "type": ["null", "string"], "default": None},
                            {"name": "candid", "type": ["null", "long"], "default": None},
                            {"name": "isdiffpos", "type": ["null", "string"], "default": None},
                            {"name": "magpsf", "type": ["null", "float"], "default": None},
                            {"name": "sigmapsf", "type": ["null", "float"], "default": None},
                            {"name": "ra", "type": ["null", "double"], "default": None},
                            {"name": "dec", "type": ["null", "double"], "default": None},
                        ],
                    },
                },
            ],
        },
        {
            "name": "fp_hists",
            "default": None,
            "type": [
                "null",
                {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "ztf.alert.fp_hist",
                        "fields": [
                            *POINT,
                            {"name": "forcediffimflux", "type": ["null", "float"], "default": None},
                            {"name": "forcediffimfluxunc", "type": ["null", "float"], "default": None},
                            {"name": "procstatus", "type": ["null", "string"], "default": None},
                            {"name": "magzpsci", "type": ["null", "float"], "default": None},
                        ],
                    },
                },
            ],
        },
        {"name": "cutoutScience", "type": ["null", CUTOUT], "default": None},
        {"name": "cutoutTemplate", "type": ["null", "ztf.alert.cutout"], "default": None},
        {"name": "cutoutDifference", "type": ["null", "ztf.alert.cutout"], "default": None},
    ],
}
JD0 = 2_459_000.5
CANDID0 = 1_234_567_890_115_015_000


def schema(**candidate_types: Any) -> dict[str, Any]:
    """The schema with candidate fields of other types (None takes a field out), new ones at the end."""
    out = copy.deepcopy(SCHEMA)
    record = out["fields"][4]["type"]
    fields = {field["name"]: field for field in record["fields"]}
    for name, kind in candidate_types.items():
        if kind is None:
            fields.pop(name)
        else:
            fields[name] = {"name": name, "type": kind}
    record["fields"] = list(fields.values())
    return out


def without(*names: str) -> dict[str, Any]:
    """The schema without some top-level fields."""
    out = copy.deepcopy(SCHEMA)
    out["fields"] = [field for field in out["fields"] if field["name"] not in names]
    return out


def fits_stamp(image: np.ndarray, *cards: str, bitpix: int = -32, zipped: bool = True) -> bytes:
    """A FITS file with ZTF's odd SIMPLE card."""
    kinds = {-32: ">f4", -64: ">f8", 16: ">i2", 32: ">i4", 8: "u1"}
    axes = image.shape[::-1]
    header = ["SIMPLE  =  T", f"BITPIX  = {bitpix:>20d}", f"NAXIS   = {len(axes):>20d}"]
    header += [f"NAXIS{i + 1}  = {n:>20d}" for i, n in enumerate(axes)]
    text = "".join(card.ljust(80) for card in [*header, *cards, "END"]).encode()
    data = image.astype(kinds[bitpix]).tobytes()
    fits = text + b" " * (-len(text) % 2880) + data + bytes(-len(data) % 2880)
    return gzip.compress(fits, mtime=0) if zipped else fits


def stamp_image(number: int = 0, shape: tuple[int, int] = (63, 63)) -> np.ndarray:
    """A stamp with noise and a NaN corner, float32."""
    image = np.random.default_rng(number).normal(100, 5, shape).astype(np.float32)
    image[0, 0] = np.nan
    return image


def record(number: int = 0, **changes: Any) -> dict[str, Any]:
    """One packet's record; ``changes`` replace top-level fields, or candidate fields as ``candidate__x``."""
    candid = CANDID0 + number
    pid = candid // 1_000_000
    stamp = fits_stamp(stamp_image(number))
    cutout = {"fileName": f"{candid}_targ_sci.fits.gz", "stampData": stamp}
    packet: dict[str, Any] = {
        "schemavsn": "4.02",
        "publisher": "ZTF (www.ztf.caltech.edu)",
        "objectId": f"ZTF20{''.join(chr(97 + number // 26**k % 26) for k in range(7))}",
        "candid": candid,
        "candidate": {
            "jd": JD0 + number,
            "fid": 1 + number % 3,
            "pid": pid,
            "diffmaglim": 20.5,
            "programid": 1,
            "candid": candid,
            "isdiffpos": "tf10"[number % 4],
            "tblid": candid % 1000,
            "ra": 10.0 + number % 300,
            "dec": -5.0,
            "magpsf": 18.25 + 0.001 * number,
            "sigmapsf": 0.125,
            "rb": 0.75,
            "ssdistnr": -999.0 if number % 2 else 3.5,
            "ssnamenr": "null" if number % 2 else "Ceres",
            "sky": -999.0,
        },
        "prv_candidates": [prv(number, back) for back in range(number % 5)] or None,
        "fp_hists": [forced(number, back) for back in range(number % 3)],
        "cutoutScience": cutout,
        "cutoutTemplate": cutout,
        "cutoutDifference": cutout,
    }
    for name, value in changes.items():
        if name.startswith("candidate__"):
            packet["candidate"][name.removeprefix("candidate__")] = value
        else:
            packet[name] = value
    return packet


def prv(number: int, back: int) -> dict[str, Any]:
    """A history entry: even ones are detections, odd ones upper limits."""
    seen = back % 2 == 0
    return {
        "jd": JD0 + number - 2.0 - back,
        "fid": 1 + back % 3,
        "pid": 1_234_000_000_000 + number * 1000 + back,
        "diffmaglim": 20.0 + back / 8,
        "programid": 1,
        "pdiffimfilename": f"ztf_{number}_{back}.fits",
        "candid": (1_234_000_000_000 + number * 1000 + back) * 1_000_000 + 15_000 if seen else None,
        "isdiffpos": "f" if seen else None,
        "magpsf": 19.5 if seen else None,
        "sigmapsf": 0.25 if seen else None,
        "ra": 10.0 if seen else None,
        "dec": -5.0 if seen else None,
    }


def forced(number: int, back: int) -> dict[str, Any]:
    """A forced point; the second one failed."""
    failed = back == 1
    return {
        "jd": JD0 + number - 1.0 - back,
        "fid": 2,
        "pid": 1_233_000_000_000 + number * 1000 + back,
        "diffmaglim": 20.5,
        "programid": 1,
        "forcediffimflux": -99999.0 if failed else -250.5,
        "forcediffimfluxunc": -99999.0 if failed else 12.5,
        "procstatus": "61" if failed else "0",
        "magzpsci": 26.25,
    }


def container(
    records: Sequence[dict[str, Any]], writer: dict[str, Any] | None = None, codec: str = "null"
) -> bytes:
    """An Avro file."""
    out = io.BytesIO()
    fastavro.writer(
        out, copy.deepcopy(writer or SCHEMA), records, codec=codec, sync_marker=b"0123456789abcdef"
    )
    return out.getvalue()


def tarball(members: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> bytes:
    """A tarball in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def opened(url: str | Path) -> Source:
    """The one source at a URL."""
    (source,) = open_sources(url)
    return source
