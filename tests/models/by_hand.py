"""The second way from a packet to a network's input: plain loops, as the golden README describes it.

It shares nothing with the pipeline but the packets.  Real spectra are given to objects of the archive; they
need not be theirs to be numbers.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.io import fits
from torch import Tensor

from applecider_batch.archive.ingest import ingest

NIGHTS = 6
N_SPECTRA = 4
NINE = ["AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE"]
NINE_TO_FIVE = {"AGN": 3, "CV": 2, "TDE": 4} | {n: 0 if n[1] in "abc" else 1 for n in NINE if n[0] == "I"}
MEAN, STD = np.float32([2.0, 1.0, 2.5, 0.1]), np.float32([1.0, 1.0, 0.5, 0.2])
PHOTOMETRY = {"photometry": {"mean": MEAN.tolist(), "std": STD.tolist()}}
FIELDS = [
    "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "nmtchps", "sharpnr", "scorr", "ra", "dec",
    "diffmaglim", "sky", "ndethist", "ncovhist", "sigmapsf", "chinr", "magpsf",
]  # fmt: skip


@dataclass(frozen=True)
class Sky:
    """The archive, its objects known from one packet, and the spectra given to some of them."""

    url: str
    packets: dict[str, dict[str, Any]]
    spectra: dict[str, dict[str, Any]]


def make_sky(shared_data: Path, folder: Path) -> Sky:
    """Ingest the last nights of real packets, with real spectra given to some of the objects."""
    import fastavro

    tarballs = sorted((shared_data / "alerts" / "archive").glob("*.tar.gz"))[-NIGHTS:]
    packets: dict[str, list[dict[str, Any]]] = {}
    for tarball in tarballs:
        with tarfile.open(tarball) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    for packet in fastavro.reader(io.BytesIO(file.read())):
                        packets.setdefault(packet["objectId"], []).append(packet)
    single = {name: found[0] for name, found in sorted(packets.items()) if len(found) == 1}
    rows = pq.read_table(
        shared_data / "spectra" / "spectra.parquet",
        columns=["wavelength", "flux", "redshift", "flux_kind", "class5"],
    ).slice(0, 400)
    kept = [r for r in rows.to_pylist() if r["redshift"] and "flat" not in (r["flux_kind"] or "")]
    given = dict(zip(single, kept[:: len(kept) // N_SPECTRA][:N_SPECTRA], strict=False))
    table = [
        {"objectId": n, **{k: r[k] for k in ("wavelength", "flux", "redshift")}} for n, r in given.items()
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "spectra.parquet")
    ingest([str(t) for t in tarballs], str(folder / "archive"), spectra=[str(folder / "spectra.parquet")])
    return Sky(str(folder / "archive"), single, given)


# --- the second way: from a packet to a network's input, one number at a time


def merged_events(packet: dict[str, Any]) -> list[tuple[float, int, float, float]]:
    """(jd, fid, flux, error) of the events of a packet's history, in time order."""
    seen, points = set(), []
    now = packet["candidate"]["jd"]
    # Of two detections in one exposure upstream keeps the first of the packet's list; the archive, where
    # packets of several sources meet, has no such order: it keeps the alert's own, then the smaller candid.
    history = [p for p in packet["prv_candidates"] or [] if p["candid"] is not None]
    for p in [packet["candidate"], *sorted(history, key=lambda p: p["candid"])]:
        key = (p["fid"], round(p["jd"], 5))
        if p["magpsf"] is not None and key not in seen and now - 30 <= p["jd"] <= now:
            seen.add(key)
            flux = 10 ** (-0.4 * (p["magpsf"] - 23.9))
            points.append((p["jd"], p["fid"], flux, p["sigmapsf"] / (2.5 / math.log(10)) * flux))
    events = []
    for fid in (1, 2, 3):
        group: list[tuple[float, int, float, float]] = []
        band = sorted(p for p in points if p[1] == fid)
        for number, p in enumerate(band):
            group.append(p)
            if number + 1 == len(band) or band[number + 1][0] - group[0][0] > 0.5:
                weights = [1 / (g[3] + 1e-8) for g in group]
                jd, flux, error = (
                    sum(w * g[i] for w, g in zip(weights, group, strict=True)) / sum(weights)
                    for i in (0, 2, 3)
                )
                events.append((jd, fid, flux, error))
                group = []
    return sorted(events)


def photometry_of(packet: dict[str, Any]) -> tuple[Tensor, ...]:
    rows, events = [], merged_events(packet)
    before = events[0][0]
    for jd, fid, flux, error in events:
        flux32 = max(np.float32(flux), np.float32(1e-6))
        four = [math.log1p(jd - events[0][0]), math.log1p(jd - before), np.log10(flux32)]
        four.append(error / math.log(10) / float(flux32))
        rows.append(
            [*((np.float32(four) - MEAN) / (STD + np.float32(1e-8))), *(float(fid == f) for f in (1, 2, 3))]
        )
        before = jd
    return torch.tensor(np.float32(rows))[None], torch.ones(1, len(rows), dtype=torch.bool)


def metadata_of(packet: dict[str, Any]) -> Tensor:
    c, events = packet["candidate"], merged_events(packet)
    brightest = max(events, key=lambda e: e[2])  # the first of equals
    values = {"ra": c["ra"] / 180 - 1, "dec": c["dec"] / 90}
    row = [values.get(name, c.get(name)) for name in FIELDS]
    row += [c["ncovhist"] - c["ndethist"], c.get("classtar"), c["fid"]]
    row += [c["jd"] - brightest[0], brightest[0] - events[0][0], c["jd"] - events[0][0]]
    row += [-2.5 * math.log10(brightest[2]), -2.5 * math.log10(min(e[2] for e in events))]
    return torch.tensor(
        [[-999.0 if v is None or not math.isfinite(v) else v for v in row]], dtype=torch.float32
    )


def image_of(packet: dict[str, Any], profile: str) -> Tensor:
    """Stamps from the first pixel on; the archive's with L2 norm 1, 1e-9 outside, and the radial channel."""
    archive = profile == "upstream-archive"
    out = np.full((3, 63, 63), 1e-9 if archive else 0.0, np.float32)
    for channel, name in enumerate(("Science", "Template", "Difference")):
        data = gzip.decompress(packet[f"cutout{name}"]["stampData"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy on the packets' headers
            with fits.open(io.BytesIO(data)) as hdus:
                stamp = np.nan_to_num(np.asarray(hdus[0].data, np.float32), nan=0.0)
        norm = np.linalg.norm(stamp) if archive else 1
        out[channel, : stamp.shape[0], : stamp.shape[1]] = stamp / (norm or 1)
    if archive:
        radial = [[[math.hypot(y - 31, x - 31) / math.hypot(31, 31) for x in range(63)] for y in range(63)]]
        out = np.concatenate([out, np.float32(radial)])
    return torch.from_numpy(out)[None]


def spectrum_of(spectrum: dict[str, Any], profile: str) -> Tensor:
    wave, flux = (np.asarray(spectrum[k], np.float64) for k in ("wavelength", "flux"))
    if profile == "upstream-archive":
        wave = wave / (1 + spectrum["redshift"])
        grid = np.linspace(3850, 8500, 4096)
        y = np.interp(grid, wave, flux)
        inside = (grid >= wave[0]) & (grid <= wave[-1]) & (y != 0)
        y = np.where(inside, (y - y[inside].mean()) / y[inside].std(), 0.0)
    else:
        grid = np.arange(4500.0, 7981.0)
        y = np.interp(grid, wave, flux)
        for end, far in ((0, grid < wave[0]), (-1, grid > wave[-1])):
            a, b = (0, 1) if end == 0 else (-2, -1)
            y[far] = flux[end] + (grid[far] - wave[end]) * (flux[b] - flux[a]) / (wave[b] - wave[a])
        y = (y - y.mean()) / np.median(np.abs(y - np.median(y)))
    return torch.tensor(y[None, None], dtype=torch.float32)


def five_of(logits: np.ndarray, classes: list[str]) -> np.ndarray:
    """The network's own five logits, or the logarithms of summed probabilities of its nine classes."""
    if len(classes) == 5:
        return logits
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    out = np.zeros(5)
    for name, value in zip(classes, p, strict=True):
        out[NINE_TO_FIVE[name]] += value
    return np.log(out)
