"""Small tables in the archive's schemas, for the tests of this room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.digest import hash64
from applecider_batch.features.cutouts import STAMPS
from applecider_batch.schema import load_table

JD0 = 2459000.5
_ALERT = {
    "fid": 2, "isdiffpos": 1, "magpsf": 18.0, "sigmapsf": 0.1, "ra": 150.0, "dec": 20.0, "rb": 0.9,
    "drb": 0.99, "ndethist": 3, "ncovhist": 40, "sgscore1": 0.1, "distpsnr1": 1.0, "programid": 1,
    "schemavsn": "4.02", "nbad": 0, "fwhm": 2.0, "elong": 1.05, "magdiff": 0.0, "n_prv": 0, "n_fp": 0,
    "stamp_status": 0, "completeness": 0, "packet_digest": "0", "source_id": "test", "publisher": "ZTF",
}  # fmt: skip
_POINT = {
    "fid": 2, "origin": 0, "is_detection": True, "isdiffpos": 1, "magpsf": 18.0, "sigmapsf": 0.1, "ra": 150.0,
    "dec": 20.0, "rb": 0.9, "pid": None,
}  # fmt: skip


@dataclass(frozen=True)
class FakeShard:
    """What prepare_shard needs of a shard."""

    objects: list[str]
    alerts: pa.Table
    photometry: pa.Table
    spectra: pa.Table


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows in a schema of the contract; what a row leaves out is null."""
    schema, rows = load_table(name).arrow, list(rows)
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.name == "hash64":
            arrays.append(pa.array(hash64([row["objectId"] for row in rows]), pa.uint64()))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


def alert(objectId: str, jd: float, candid: int, **fields: Any) -> dict[str, Any]:
    """An alert that is eligible unless the fields say otherwise."""
    return {**_ALERT, "objectId": objectId, "jd": jd, "candid": candid, **fields}


def point(objectId: str, jd: float, **fields: Any) -> dict[str, Any]:
    """A positive detection known at its own jd unless the fields say otherwise."""
    return {**_POINT, "objectId": objectId, "jd": jd, "known_jd": jd, **fields}


def limit(objectId: str, jd: float, **fields: Any) -> dict[str, Any]:
    """An upper limit of a packet's history."""
    empty = {"is_detection": False, "isdiffpos": None, "magpsf": None, "sigmapsf": None, "rb": None}
    return point(
        objectId, jd, **{"origin": 1, "diffmaglim": 20.5, "ra": None, "dec": None, **empty, **fields}
    )


def forced(objectId: str, jd: float, flux: float, error: float = 1.0, **fields: Any) -> dict[str, Any]:
    """A forced point whose zero-point makes its numbers µJy."""
    numbers = {"forcediffimflux": flux, "forcediffimfluxunc": error, "magzpsci": 23.9, "procstatus": "0"}
    empty = {"isdiffpos": None, "magpsf": None, "sigmapsf": None, "rb": None, "ra": None, "dec": None}
    return point(objectId, jd, **{"origin": 2, **empty, **numbers, **fields})


def shard(
    alerts: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]] | None = None,
    spectra: Sequence[Mapping[str, Any]] = (),
) -> FakeShard:
    """A shard of these rows; without ``points`` every alert brings its own point and nothing else."""
    if points is None:
        same = ("fid", "isdiffpos", "magpsf", "sigmapsf", "ra", "dec", "rb", "ssdistnr", "candid")
        points = [point(a["objectId"], a["jd"], **{k: a.get(k) for k in same}) for a in alerts]
    names = {row["objectId"] for row in (*alerts, *points)}
    order = sorted((int(h), name) for name, h in zip(sorted(names), hash64(sorted(names)), strict=True))
    return FakeShard(
        [name for _, name in order],
        table("alerts", alerts),
        table("photometry", points),
        table("spectra", spectra),
    )


def spectrum(objectId: str, spec_id: str, jd: float | None, **fields: Any) -> dict[str, Any]:
    """A smooth spectrum from 3600 to 9200 Angstrom."""
    wavelength = np.arange(3600.0, 9200.0, 4.0)
    values = {
        "wavelength": wavelength.tolist(),
        "flux": (1.0 + 0.3 * np.sin(wavelength / 200.0)).tolist(),
        "redshift": 0.05,
        "redshift_source": "test",
        "flux_kind": "flux",
        "object_name": objectId,
        "source_id": "test",
    }
    return {**values, "objectId": objectId, "spec_id": spec_id, "jd": jd, **fields}


def stamps_table(stamps: Sequence[Sequence[np.ndarray | None]]) -> pa.Table:
    """A stamps table of (science, template, difference) images, None where one is missing."""
    rows = []
    for number, images in enumerate(stamps):
        row: dict[str, Any] = {"objectId": f"ZTF{number}", "jd": JD0, "candid": number, "stamp_status": 0}
        row["packet_digest"] = "0"
        for name, image in zip(STAMPS, images, strict=True):
            if image is not None:
                row |= {f"cutout{name}": image.ravel().tolist(), f"height{name}": image.shape[0]}
                row[f"width{name}"] = image.shape[1]
        rows.append(row)
    return table("stamps", rows)
