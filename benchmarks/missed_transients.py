"""The search for missed transients on real data, with a quarter of the known ones hidden.

    python -m benchmarks.missed_transients DATA WORK [--models SET] [--seeds 10] [--out FILE.md]

DATA is the folder of the real data, WORK a folder for archives, run and catalogues (what is there is used
again). The archive holds all real packets, and the light curves of the objects of the test part, those with
int(sha256(object_key)[8:16], 16) % 4 == 0, with the positions of the label table. Without ``--models`` a
small light-curve network is trained on the other part. Then: classify, catalog build with the known list,
candidates find; and for every seed the same with a random quarter of the list's objects hidden. Sentences
about objects come from ``missed_transients_notes.toml``, written by hand after looking at them.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.candidates import FindOptions, Search
from applecider_batch.catalog.crossmatch import CrossMatcher
from applecider_batch.catalog.known import read_known
from applecider_batch.catalog.read import read_catalog
from applecider_batch.engine.api import classify
from applecider_batch.engine.completeness import measure_completeness
from applecider_batch.report.recovery import recovery_figure
from applecider_batch.taxonomy import to_class5
from benchmarks.__main__ import CLI
from benchmarks.gate_table import kind_of

ALERTS = ("archive", "variants", "avro", "fink_parquet")
HORIZONS: tuple[float | None, ...] = (3.0, 10.0, 30.0, None)
TOPS = (20, 50, 100)
NOTES = Path(__file__).with_name("missed_transients_notes.toml")
KNOWN = "known_transients/known_transients.parquet"
LABELS = "labels/labels.parquet"
REPORTED = ("known", "late")


def fraction(key: str, digits: slice) -> int:
    """Hex digits of the SHA-256 of a key, modulo 4: a quarter of all keys has 0."""
    return int(hashlib.sha256(key.encode()).hexdigest()[digits], 16) % 4


def prepare(data: Path, work: Path, models: str | None) -> tuple[str, str]:
    """The archive to search and the model set."""
    objects = pl.read_parquet(data / "lightcurves/ztf_objects.parquet").select("objectId", "object_key")
    test = objects.filter(pl.Series([fraction(key, slice(8, 16)) == 0 for key in objects["object_key"]]))
    places = pl.read_parquet(data / LABELS).select("objectId", "ra", "dec")
    curves = pl.read_parquet(data / "lightcurves/ztf_lightcurves.parquet")
    mine = curves.join(test.select("objectId"), on="objectId").join(places, on="objectId", how="left")
    work.mkdir(parents=True, exist_ok=True)
    mine.write_parquet(work / "curves.parquet")
    archive = str(work / "archive")
    files = sorted(
        str(path) for folder in ALERTS for path in (data / "alerts" / folder).iterdir() if path.is_file()
    )
    ingest(files, archive, photometry=[str(work / "curves.parquet")])
    if models is None:
        models, training = str(work / "models"), str(work / "training")
        ingest([], training, photometry=[str(data / "lightcurves/ztf_lightcurves.parquet")])
        given = ["--archive", training, "--labels", str(data / LABELS), "--models", models, "--split", "hash"]
        train = ["--out", str(work / "trained"), "--preset", "compact", "--epochs", "14", "-q"]
        subprocess.run([*CLI, "train", "photometry", *given, *train], check=True)
        subprocess.run([*CLI, "models", "fit-anomaly", *given, "--horizons", "3,10,30,full"], check=True)
    return archive, models


def catalogue(run: str, work: Path, name: str, known: pl.DataFrame) -> str:
    """A catalogue of the run with this list of known transients."""
    path, url = work / f"known-{name}.parquet", str(work / f"catalogue-{name}")
    known.write_parquet(path)
    build_catalog(run, url, known=[read_known(str(path))])
    return url


def ranked(url: str, objects: set[str]) -> pl.DataFrame:
    """All candidates of a catalogue that are in a set of objects, best first."""
    table, _ = Search(url, FindOptions(top=1_000_000)).run()
    frame = pl.DataFrame(pl.from_arrow(table))
    return frame.filter(pl.col("objectId").is_in(list(objects))).with_columns(
        rank=pl.int_range(1, pl.len() + 1)
    )


def reason(row: dict[str, Any], top: int) -> str:
    """Why a hidden transient is not in the first ``top``."""
    if row["t0"] is None:
        return "no t0"
    if row["gate"] != "in_scope":
        return f"gate: {row['gate']} ({row['gate_reason']})"
    if row["prob_top1"] is None:
        return "no probabilities (too few points for a network)"
    if row["class_top1"] in ("CV", "AGN"):
        return f"called {row['class_top1']}"
    if row["n_det"] - row["n_neg"] < 5:
        return "ranked lower, with fewer than 5 detections"
    return f"ranked below {top}"


class Experiment:
    """Catalogue with the whole list, kinds of objects, and the objects that trained the networks."""

    def __init__(self, data: Path, work: Path, run: str) -> None:
        self.work, self.run = work, run
        self.known = pl.read_parquet(data / KNOWN)
        self.full_url = catalogue(run, work, "full", self.known)
        self.full = pl.DataFrame(read_catalog(self.full_url, horizon="full"))
        index = pl.read_parquet(data / "alerts/alert_index.parquet")
        self.kinds = {
            r["objectId"]: kind_of(r["simbad"], r["vsx_type"], r["class5"])
            for r in index.iter_rows(named=True)
        }
        labelled = pl.read_parquet(data / LABELS).select("objectId", "object_key", "class5")
        for name, _, label in labelled.iter_rows():
            if label is not None:
                self.kinds[name] = kind_of(None, None, label)
        self.trained = set(self.full.filter(pl.col("in_training_set"))["objectId"])
        self.packets = set(self.full.filter(pl.col("candid_first").is_not_null())["objectId"])

    def hide(self, seed: int, objects: set[str]) -> dict[str, Any]:
        """Hide a quarter of the list and look for it again among some objects."""
        hidden = pl.Series([fraction(f"{seed}:{key}", slice(0, 8)) == 0 for key in self.known["object_key"]])
        url = catalogue(self.run, self.work, "hidden", self.known.filter(~hidden))
        now = pl.DataFrame(read_catalog(url, horizon="full"))
        rows = now.with_columns(before=self.full["known_status"], listed=self.full["xm_tns_type"]).filter(
            pl.col("objectId").is_in(list(objects))
        )
        listed = pl.Series([to_class5(t) not in ("CV", "AGN") for t in rows["listed"]])
        gone = rows.filter(
            pl.col("before").is_in(REPORTED) & (pl.col("known_status") == "unreported") & listed
        )
        fresh = gone.filter(~pl.col("objectId").is_in(list(self.trained)))
        found = ranked(url, objects)
        rank = dict(zip(found["objectId"], found["rank"], strict=True))
        names = set(fresh["objectId"])
        returned = {top: sum(rank.get(name, top + 1) <= top for name in names) for top in TOPS}
        lost: Counter[str] = Counter()
        for row in fresh.iter_rows(named=True):
            if rank.get(row["objectId"], TOPS[-1] + 1) > TOPS[-1]:
                lost[reason(row, TOPS[-1])] += 1
        first = Counter(
            "hidden transient" if name in names
            else "transient that trained the network" if name in set(gone["objectId"])
            else self.kinds.get(name, "no type")
            for name in found["objectId"].head(TOPS[-1])
        )  # fmt: skip
        return {"eligible": len(names), "candidates": found.height, "returned": returned, "lost": lost,
                "first": first}  # fmt: skip

    def chance(self, seeds: int) -> list[int]:
        """Episodes with a source in the window within 3 arcsec, when all are moved by 30 to 60 arcsec."""
        matcher = CrossMatcher([read_known(str(self.work / "known-full.parquet"))])
        rows = self.full.filter(pl.col("ra").is_not_null() & pl.col("t0").is_not_null())
        counts = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            offset, angle = rng.uniform(30, 60, rows.height) / 3600, rng.uniform(0, 2 * np.pi, rows.height)
            dec = np.clip(rows["dec"].to_numpy() + offset * np.sin(angle), -90, 90)
            ra = rows["ra"].to_numpy() + offset * np.cos(angle) / np.cos(np.deg2rad(dec))
            found = matcher.match(ra % 360, dec, rows["t0"].to_numpy(), rows["jd_last"].to_numpy())
            counts.append(len(np.unique(found.episode[found.in_window])))
        return counts


def mean(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def hidden_tables(results: list[dict[str, Any]]) -> list[str]:
    """Markdown: what returned, what was lost, and what the first hundred are."""
    eligible = [r["eligible"] for r in results]
    candidates = mean([r["candidates"] for r in results])
    lines = [
        f"Hidden and eligible: {mean(eligible)} objects a seed, among {candidates} candidates.", "",
        "| first | hidden ones among them | of the eligible | of the list's places |", "|---|---|---|---|",
    ]  # fmt: skip
    for top in TOPS:
        got = [r["returned"][top] for r in results]
        shares = [100 * g / max(e, 1) for g, e in zip(got, eligible, strict=True)]
        lines.append(f"| {top} | {mean(got)} | {mean(shares)} % | {mean([100 * g / top for g in got])} % |")
    for title, key in ((f"not in the first {TOPS[-1]}, by reason", "lost"),
                       (f"what the first {TOPS[-1]} are", "first")):  # fmt: skip
        names = sorted({n for r in results for n in r[key]}, key=lambda n: -sum(r[key][n] for r in results))
        lines += ["", f"| {title} | objects a seed |", "|---|---|"]
        lines += [f"| {name} | {mean([r[key][name] for r in results])} |" for name in names]
    return lines


def look(experiment: Experiment, notes: dict[str, str]) -> list[str]:
    """Markdown: the first twenty of the real search, each with its sentence."""
    found = ranked(experiment.full_url, experiment.packets).head(20)
    lines = ["| # | object | score | class (prob.) | at 3 / 10 / 30 d | n | peak g, r | drb or rb | "
             "PS1 ″ (star) | type | TNS |", "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    said = []
    for row in found.iter_rows(named=True):
        replay = " / ".join(name or "–" for name in row["replay_class"][:3])
        peak = ", ".join("–" if row[m] is None else f"{row[m]:.1f}" for m in ("mag_peak_g", "mag_peak_r"))
        real = row["drb_median"] if row["drb_median"] is not None else row["rb_max"]
        host = "–" if row["distpsnr1"] is None else f"{row['distpsnr1']:.1f} ({row['sgscore1'] or 0:.2f})"
        kind = experiment.kinds.get(row["objectId"], "no type")
        eligible = "eligible" if row["tns_eligible"] else "no"
        lines.append(
            f"| {row['rank']} | {row['objectId']} | {row['score']:.2f} | {row['class_top1']} "
            f"({row['prob_top1']:.2f}) | {replay} | {row['n_det']} | {peak} | "
            f"{'–' if real is None else f'{real:.2f}'} | {host} | {kind} | {eligible} |"
        )
        note = notes.get(row["objectId"], "not looked at.").format(n=row["n_det"])
        said.append(f"{row['rank']}. **{row['objectId']}**: {note}")
    return [*lines, "", *said]


def recovery(archive: str, models: str, data: Path, work: Path, figure: Path) -> list[str]:
    """Markdown: the selection function, and its figure beside the page."""
    found = measure_completeness(archive, models, str(data / LABELS), str(work / "completeness"))
    figure.write_bytes(
        recovery_figure(found["recovery"], "Recovered injections (prob_transient >= 0.5, full history)")
    )
    stages = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in found["stages"].items())
    lines = [
        f"{found['light_curves']} light curves that trained no network, {found['sites']} sites, "
        f"{found['packets']:,} packets. {found['note']}", "", f"How far they came: {stages}. Lost:", "",
        *(f"- {reason}: {count}" for reason, count in found["lost_at"].items()), "",
        f"![Recovery]({figure.name})", "",
        "| by | bin | injected | with an alert | in scope | recovered | share (95 %) | right class |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['by'].replace('_', ' ')} | {row['bin']} | {row['injected']} | {row['alerts']} "
        f"| {row['in_scope']} | {row['recovered']} "
        f"| {row['share']:.2f} ({row['share_low']:.2f}–{row['share_high']:.2f}) "
        f"| {row['right_class']} |"
        for row in found["recovery"]
    ]
    return lines


def main() -> None:
    """Run the experiment and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--models")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("docs/missed_transients.md"))
    asked = parser.parse_args()
    archive, models = prepare(asked.data, asked.work, asked.models)
    run = classify(archive, models, str(asked.work / "run"), horizons=HORIZONS, progress=False)
    experiment = Experiment(asked.data, asked.work, run["run"])
    everything = set(experiment.full["objectId"])
    both = {
        name: [experiment.hide(seed, objects) for seed in range(asked.seeds)]
        for name, objects in (("packets", experiment.packets), ("all", everything))
    }
    chance = experiment.chance(asked.seeds)
    notes = tomllib.loads(NOTES.read_text(encoding="utf-8")) if NOTES.exists() else {}
    full = experiment.full
    status = Counter(full["known_status"])
    placed = full.filter(pl.col("ra").is_not_null() & pl.col("t0").is_not_null()).height
    intro = Path(__file__).with_name("missed_transients_head.md").read_text(encoding="utf-8")
    page = [
        intro.rstrip(), "", "## The catalogue", "",
        f"{full.height:,} episodes of {full['objectId'].n_unique():,} objects, {len(experiment.packets):,} "
        f"of them with packets; model set `{full['model_set_id'][0]}`. Status with the whole list: "
        + ", ".join(f"{name} {count:,}" for name, count in sorted(status.items())) + ".", "",
        f"Chance: moved by 30 to 60″ in a random direction, {mean(chance)} of {placed:,} placed episodes "
        f"match a source in the window ({asked.seeds} seeds).", "",
        "## A quarter of the list hidden: objects with packets", "", *hidden_tables(both["packets"]), "",
        "## A quarter of the list hidden: everything", "", *hidden_tables(both["all"]), "",
        "## The first twenty of the real search", "", *look(experiment, notes), "",
        "## The selection function", "",
        *recovery(archive, models, asked.data, asked.work, asked.out.with_name("missed_transients.png")),
    ]  # fmt: skip
    asked.out.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page[1:]))


if __name__ == "__main__":
    main()
