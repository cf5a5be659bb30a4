"""Simulated against real distributions: how far apart, in numbers and pictures.

    python -m benchmarks.realism DATA WORK [--objects 800] [--nights 120] [--seed 3] [--page PAGE]

DATA is the folder of the real data, WORK a folder for archives (what is there is used again). Compared are
objects of the same class: light curves within 60 d of the first detection, alerts with their metadata, stamps
and hosts. The distance is that of Kolmogorov and Smirnov, 0 for equal and 1 for disjoint distributions. What
the network of stamps sees is compared in ``benchmarks.realism_inputs``. The tables go between two marks of a
page (docs/simulation.md), whose other text is written by hand.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from scipy.stats import ks_2samp

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import PAPER_METADATA
from applecider_batch.simulate import simulate
from applecider_batch.taxonomy import CLASSES
from benchmarks.real_images import alert_labels, real_archive
from benchmarks.realism_inputs import Inputs, network_inputs, section

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW_DAYS = {"CV": 30.0, "AGN": 30.0}  # real ones are the 30-day histories of packets
LONG_DAYS = 60.0
NIGHT = 0.5
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
ALERT_COLUMNS = (
    *(name for name in PAPER_METADATA if name not in ("ra", "dec", "age", "nnondet", "peakmag_so_far")),
    "fwhm", "elong", "rb", "drb", "magdiff", "magnr", "chipsf", "seeratio", "distnr", "neargaia",
)  # fmt: skip
FEWEST = 8
MOST_STAMPS = 1000


@dataclass(frozen=True)
class Sample:
    """One side: an archive, and the class of its objects (objectId, class5, group)."""

    archive: Archive
    labels: pl.DataFrame
    curves: pl.DataFrame

    def light_curves(self) -> pl.DataFrame:
        """Per object of a class: numbers of its detections within the window."""
        columns = ("objectId", "jd", "fid", "is_detection", "isdiffpos", "magpsf", "sigmapsf", "origin")
        table = self.archive.read_photometry(0, 1 << 64).select(columns)
        points = pl.DataFrame(table).filter(
            pl.col("is_detection")
            & (pl.col("isdiffpos").fill_null(1) > 0)
            & pl.col("magpsf").is_not_null()
            & (pl.col("origin") != 2)
        )
        points = points.join(self.curves, on="objectId").sort("objectId", "jd")
        start = pl.col("jd").min().over("objectId")
        points = points.filter(
            pl.col("jd") - start <= pl.col("class5").replace_strict(WINDOW_DAYS, default=LONG_DAYS)
        )
        return pl.DataFrame(_curve(*key, group) for key, group in points.group_by("objectId", "class5"))

    def alerts(self) -> pl.DataFrame:
        """Per alert of a class: metadata."""
        table = pl.DataFrame(self.archive.read_alerts(0, 1 << 64))
        wanted = [c for c in dict.fromkeys(ALERT_COLUMNS) if c in table.columns]
        table = table.filter((pl.col("rb") > 0.55) & (pl.col("isdiffpos") > 0))
        table = table.join(self.labels, on="objectId")
        numbers = [pl.col(c).cast(pl.Float64).replace(-999.0, None) for c in wanted]
        return table.select("objectId", "class5", "candid", *numbers)

    def stamps(self, alerts: pl.DataFrame) -> pl.DataFrame:
        """Per alert with stamps: what noise and surroundings look like."""
        table = self.archive.read_stamps(
            0, 1 << 64, alerts["candid"].sample(min(len(alerts), MOST_STAMPS), seed=0)
        )
        rows = []
        for row in table.to_pylist():
            images = [_image(row, kind) for kind in ("science", "template", "difference")]
            if all(i is not None and i.shape == (63, 63) and np.isfinite(i).all() for i in images):
                rows.append({"candid": row["candid"], **_stamp_numbers(*images)})
        return alerts.select("candid", "class5").join(pl.DataFrame(rows), on="candid")


def _curve(name: str, class5: str, points: pl.DataFrame) -> dict[str, Any]:
    jd, fid, mag, error = (points[c].to_numpy() for c in ("jd", "fid", "magpsf", "sigmapsf"))
    nights = np.unique(np.round(jd))
    color = [
        float(np.mean(mag[(fid == 1) & (np.abs(jd - t) < NIGHT)]) - m)
        for t, m in zip(jd[fid == 2], mag[fid == 2], strict=True)
        if ((fid == 1) & (np.abs(jd - t) < NIGHT)).any()
    ]
    middle = (mag > 18.5) & (mag < 19.5)
    peak = float(mag.min())
    return {
        "objectId": name,
        "class5": class5,
        "brightest magnitude": peak,
        "first magnitude": float(mag[0]),
        "detections": len(jd),
        "days from first to last detection": float(jd[-1] - jd[0]),
        "nights between detections": float(np.median(np.diff(nights))) if len(nights) > 1 else None,
        "days to the brightest": float(jd[mag.argmin()] - jd[0]) if len(jd) > 2 else None,
        "g - r, median": float(np.median(color)) if color else None,
        "g - r, change": float(color[-1] - color[0]) if len(color) > 1 else None,
        "error at 18.5 to 19.5 mag": float(np.median(error[middle])) if middle.any() else None,
        "share in g": float(np.mean(fid == 1)),
        "amplitude": float(np.ptp(mag)) if len(mag) > 1 else None,
    }


def _stamp_numbers(science: np.ndarray, template: np.ndarray, difference: np.ndarray) -> dict[str, float]:
    def spread(image: np.ndarray) -> float:
        values = image[np.isfinite(image)]
        return 1.4826 * float(np.median(np.abs(values - np.median(values))))

    noise = spread(difference)
    side = difference.shape[0] // 2
    core = difference[side - 2 : side + 3, side - 2 : side + 3]
    ring = np.concatenate([difference[:12].ravel(), difference[-12:].ravel()])
    right, here = difference[:, 1:], difference[:, :-1]
    good = np.isfinite(right) & np.isfinite(here)
    clip = np.clip(np.stack([right[good], here[good]]), -4 * noise, 4 * noise)
    return {
        "science noise / difference noise": spread(science) / noise,
        "template noise / difference noise": spread(template) / noise,
        "peak of the difference / noise": float(np.nanmax(core)) / noise,
        "outer pixels beyond 4 sigma": float(np.nanmean(np.abs(ring) > 4 * noise)),
        "correlation of neighbouring pixels": float(np.corrcoef(clip)[0, 1]),
    }


def _image(row: dict[str, Any], kind: str) -> np.ndarray | None:
    pixels, height, width = (row[f"{part}{kind.capitalize()}"] for part in ("cutout", "height", "width"))
    return None if pixels is None else np.asarray(pixels, np.float64).reshape(height, width)


def compare(real: pl.DataFrame, made: pl.DataFrame, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Distance of each column's distributions for some classes, with deciles 1, 5 and 9; farthest first."""
    rows = []
    for name in [c for c, kind in real.schema.items() if kind.is_float() or kind.is_integer()]:
        if name in ("candid",) or name not in made.columns:
            continue
        x, y = (
            t.filter(pl.col("class5").is_in(classes))[name]
            .cast(pl.Float64)
            .drop_nulls()
            .drop_nans()
            .to_numpy()
            for t in (real, made)
        )
        if min(len(x), len(y)) >= FEWEST:
            found = ks_2samp(x, y)
            real_, made_ = (np.quantile(v, [0.1, 0.5, 0.9]).tolist() for v in (x, y))
            row = {"what": name, "ks": float(found.statistic), "n": [len(x), len(y)], "values": (x, y)}
            rows.append({**row, "real": real_, "simulated": made_})
    return sorted(rows, key=lambda r: -r["ks"])


GROUPS: dict[str, tuple[str, ...]] = {
    "SN I": ("SN I",), "SN II": ("SN II",), "CV": ("CV",), "AGN": ("AGN",), "TDE": ("TDE",)
}  # fmt: skip


def prepare(data: Path, work: Path, objects: int, nights: int, seed: int) -> tuple[Sample, Sample]:
    """The real and the simulated side."""
    work.mkdir(parents=True, exist_ok=True)
    real = real_archive(data, work)
    labels = pl.read_parquet(alert_labels(data, work)).select("objectId", "class5")
    curves = pl.read_parquet(data / "lightcurves/ztf_objects.parquet").filter(pl.col("class5").is_in(CLASSES))
    survey, archive = (
        work / f"survey-{objects}-{nights}-{seed}",
        work / f"simulated-{objects}-{nights}-{seed}",
    )
    if not archive.exists():
        made = simulate(survey, n_objects=objects, n_nights=nights, seed=seed)
        ingest(made["nights"], str(archive))
    truth = pl.read_parquet(survey / "truth.parquet").filter(pl.col("class").is_not_null())
    truth = truth.select("objectId", class5="class")
    return (
        Sample(real, labels, curves.select("objectId", "class5")),
        Sample(Archive.open(str(archive)), truth, truth),
    )


def inputs(data: Path, work: Path, real: Sample, made: Sample) -> tuple[Inputs, Inputs]:
    """Both sides as the network of stamps and metadata sees them."""
    truth = work / "simulated_labels.parquet"
    made.labels.write_parquet(truth)
    return (
        network_inputs(real.archive, alert_labels(data, work), work / "inputs-real", latest=True),
        network_inputs(made.archive, str(truth), work / "inputs-simulated", latest=False),
    )


def measure(real: Sample, made: Sample) -> dict[str, list[dict[str, Any]]]:
    """All comparisons, by group of objects and kind of numbers."""
    sides = []
    for sample in (real, made):
        alerts = sample.alerts()
        sides.append(
            {"light curves": sample.light_curves(), "alerts": alerts, "stamps": sample.stamps(alerts)}
        )
    out = {}
    for kind in sides[0]:
        for group, classes in GROUPS.items():
            if found := compare(sides[0][kind], sides[1][kind], classes):
                out[f"{kind}, {group}"] = found
    return out


SHOWN = (
    ("light curves, SN I", "brightest magnitude"), ("light curves, SN I", "detections"),
    ("light curves, SN I", "nights between detections"), ("light curves, SN I", "g - r, change"),
    ("light curves, SN II", "g - r, median"), ("light curves, SN II", "amplitude"),
    ("light curves, AGN", "brightest magnitude"), ("alerts, AGN", "sgscore1"),
    ("alerts, SN I", "distnr"), ("alerts, SN I", "magnr"), ("alerts, SN I", "ncovhist"),
    ("stamps, SN I", "template noise / difference noise"),
)  # fmt: skip


def figure(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Cumulative distributions of some comparisons, real and simulated."""
    picture, axes = plt.subplots(3, 4, figsize=(11, 7), dpi=80)
    for axis, (group, what) in zip(axes.flat, SHOWN, strict=True):
        row = next(r for r in found[group] if r["what"] == what)
        for values, name, style in zip(row["values"], ("real", "simulated"), ("-", "--"), strict=True):
            axis.step(np.sort(values), np.linspace(0, 1, len(values)), style, label=name)
        low, high = np.quantile(np.concatenate(row["values"]), [0.01, 0.99])
        axis.set_xlim(low, high)
        axis.set_title(f"{group}\n{what}: {row['ks']:.2f}", fontsize=8)
        axis.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7)
    picture.tight_layout()
    picture.savefig(path)
    plt.close(picture)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: every comparison, largest distance first within its group."""
    lines = []
    for group, rows in found.items():
        lines += [
            "",
            f"### {group[0].upper()}{group[1:]}",
            "",
            "| | distance | real | simulated | numbers |",
            "|---" * 5 + "|",
        ]
        for row in rows:
            real, made = (" / ".join(f"{v:.3g}" for v in row[side]) for side in ("real", "simulated"))
            lines.append(
                f"| {row['what']} | {row['ks']:.2f} | {real} | {made} | {row['n'][0]:,}, {row['n'][1]:,} |"
            )
    return "\n".join(lines)


def write_page(found: dict[str, list[dict[str, Any]]], tables: str, page: Path) -> None:
    """Put the tables between the page's marks, and the figure beside it."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{tables}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    figure(found, page.with_suffix(".png"))


def main() -> None:
    """Compare, print the table, and put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--objects", type=int, default=800)
    parser.add_argument("--nights", type=int, default=120)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    real, made = prepare(asked.data, asked.work, asked.objects, asked.nights, asked.seed)
    found = measure(real, made)
    tables = f"{section(*inputs(asked.data, asked.work, real, made))}\n{table(found)}"
    print(tables)
    if asked.page:
        write_page(found, tables, asked.page)


if __name__ == "__main__":
    main()
