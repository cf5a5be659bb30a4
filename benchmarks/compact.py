"""Make the packaged model set ``compact``: one command from data to set, seeded, resumable (``make models``).

    python -m benchmarks.compact WORK [--data DATA] [--device cpu] [--install]

WORK is a folder for everything on the way; what is done there is not done again. DATA is the folder of the
real data; without it the set learns from simulation alone, and its card says so. Commands of
``applecider-batch`` are printed before they run:

1. simulate a survey; ingest it, and with it the real packets, light curves and spectra;
2. train: light curves on real and simulated objects; spectra on real ones, then on both; stamps on simulated;
3. temperatures on real validation objects, and the anomaly reference;
4. judge it on test objects, and what real and simulated data alone are worth; write the card.

Test objects, ``int(sha256(object_key)[8:16], 16) % 4 == 0``, are in no training and no calibration.
``--install`` puts the set where the package looks for it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch

from applecider_batch.errors import EXIT_SET_ASIDE
from applecider_batch.models.importing import put_network
from applecider_batch.models.manifest import MANIFEST, PACKAGED
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.models.seeding import PACKAGED_GATE
from applecider_batch.storage import Store
from applecider_batch.taxonomy import CLASSES, to_class10
from applecider_batch.training.spectra import finish_spectra, fit_spectra
from benchmarks.__main__ import CLI
from benchmarks.compact_card import write_card
from benchmarks.compact_judge import complete_and_judge
from benchmarks.real_spectra import CONTENDERS, RULE, load

SURVEY = {"objects": 4000, "nights": 100, "seed": 20}
#: Options of the trainings.
TRAININGS: dict[str, tuple[str, ...]] = {
    "photometry": ("--network", "tabular_ensemble", "--classes", "ten", "--epochs", "30"),
    "spectra": ("--network", "resnet1d", "--epochs", "4"),
    "image": ("--epochs", "20"),
}
#: Trained on one kind of data alone, to say what it is worth.
ALONE = ("simulated", "real")
SPECTRA_ALONE = "32"  # epochs, as `real_spectra` takes; the set itself goes on from there
PACKETS = ("archive", "variants", "avro", "fink_parquet")
HALVED = ("resnet1d", "astrominn_compact")


class Making:
    """The steps; each leaves something that tells the next call that it is done."""

    def __init__(self, work: Path, data: Path | None, device: str) -> None:
        self.work, self.data, self.device = work, data, device
        self.archive, self.models = str(work / "archive"), str(work / "compact")
        work.mkdir(parents=True, exist_ok=True)

    def command(self, *arguments: str, allowed: tuple[int, ...] = (0,)) -> None:
        """Run a command of applecider-batch, shown before."""
        print("+ applecider-batch", *arguments, flush=True)
        done = subprocess.run([*CLI, *arguments], check=False, stdout=subprocess.DEVNULL)
        if done.returncode not in allowed:
            raise SystemExit(done.returncode)

    def survey(self) -> None:
        """Simulate and ingest."""
        place = self.work / "survey"
        if not (place / "simulation.json").exists():
            self.command("simulate", str(place), *_options(SURVEY))
        files = ["--spectra", str(place / "spectra.parquet")]
        if self.data:
            files += ["--photometry", str(self.data / "lightcurves/ztf_lightcurves.parquet")]
            files += ["--spectra", str(self.data / "spectra/spectra.parquet")]
        done = self.work / "ingested"
        if not done.exists():
            nights = [str(place / "alerts"), *(packets(self.data) if self.data else [])]
            self.command(
                "ingest", *nights, "--archive", self.archive, *files, "-q", allowed=(0, EXIT_SET_ASIDE)
            )
            done.touch()

    def labels(self) -> None:
        """``labels.parquet``, and the simulated and the real half of it."""
        truth = pl.read_parquet(self.work / "survey/truth.parquet").filter(pl.col("class").is_in(CLASSES))
        made = truth.select(
            "objectId",
            object_key="objectId",
            class10=pl.col("type").map_elements(to_class10, pl.String),
            class5="class",
            source=pl.lit("simulated"),
        )
        parts = {"simulated": made, **({"real": real_labels(self.data)} if self.data else {})}
        for name, part in {**parts, "labels": pl.concat(parts.values()).sort("objectId")}.items():
            part.write_parquet(self.work / f"{name}.parquet")

    def train(self, what: str, labels: str, models: str, *more: str) -> None:
        """Train a network into a set, if it was not."""
        out = self.work / f"{what}-{labels}"
        made = Path(models, MANIFEST).exists() and what in ModelSet.load(models, check_weights=False).networks
        if not made or not (out / "training.json").exists():
            where = ["--archive", self.archive, "--labels", str(self.work / f"{labels}.parquet")]
            where += ["--models", models, "--split", "hash", "--device", self.device, "--out", str(out)]
            self.command("train", what, *where, "--preset", "compact", *TRAININGS[what], *more)

    def real_spectra(self) -> str:
        """A set with a ResNet-1D of the real spectra alone, as ``benchmarks.real_spectra`` trains it."""
        assert self.data is not None
        work = self.work / "real_spectra"
        if not (work / "models").exists():
            archive, labels, data = load(self.data, work)
            preset, store = CONTENDERS["ResNet-1D"], Store(work / "resnet-1d")
            trained = fit_spectra(data, store, preset, progress=True)
            finish_spectra(store, str(work / "models"), trained, preset, data, archive, labels, RULE)
        return str(work / "models")

    def networks(self) -> None:
        """The three networks; large ones are stored in half precision."""
        done = self.work / "trained"
        if done.exists():
            return
        self.train("photometry", "labels", self.models)
        if self.data:
            self.train("spectra", "labels", self.models, "--start", self.real_spectra())
        else:
            self.train("spectra", "labels", self.models)
        self.train("image", "simulated", self.models)
        store = Store(self.models)
        for entry in ModelSet.load(self.models).entries:
            state = entry.state_dict()
            if entry.name in HALVED:
                state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
            card, names = replace(entry.card, notes=self.note(entry.modality)), entry.training_ids()
            put_network(store, card, state, "paper", default=True, replace=True, training_ids=names)
        update_files(self.models, gate=PACKAGED_GATE.read_bytes())
        done.touch()

    def note(self, modality: str) -> str:
        """What a network's card must say."""
        if modality == "image" or not self.data:
            return "Trained on a simulated survey alone; see the set's README.md for its worth on real data."
        return "Trained on real and simulated objects; see the set's README.md."

    def run(self) -> None:
        """All steps."""
        self.survey()
        self.labels()
        self.networks()
        alone: dict[str, dict[str, str]] = {}
        if self.data:
            sets = {name: str(self.work / f"only-{name}") for name in ALONE}
            for name, models in sets.items():
                self.train("photometry", name, models)
            self.train("spectra", "simulated", sets["simulated"], "--epochs", SPECTRA_ALONE)
            alone = {"photometry": sets, "spectra": {**sets, "real": self.real_spectra()}}
        write_card(self.work, complete_and_judge(self.work, self.data, alone), SURVEY)
        self.command("models", "verify", self.models)


def packets(data: Path) -> list[str]:
    """Real packets: they say how far the archive reaches, and give some objects stamps to be tested on."""
    return sorted(str(p) for name in PACKETS for p in (data / "alerts" / name).iterdir() if p.is_file())


def real_labels(data: Path) -> pl.DataFrame:
    """Objects with a light curve or a spectrum; those of two classes are left out."""
    names = ["objectId", "object_key", "class10", "class5", "source"]
    curves = pl.read_parquet(data / "lightcurves/ztf_objects.parquet").select(names)
    spectra = pl.read_parquet(data / "spectra/spectra.parquet", columns=["object", *names[1:4]])
    spectra = spectra.rename({"object": "objectId"}).with_columns(source=pl.lit("spectrum")).select(names)
    both = pl.concat([curves, spectra]).filter(pl.col("class5").is_in(CLASSES))
    return both.filter(pl.col("class10").n_unique().over("objectId") == 1).unique(
        "objectId", keep="first", maintain_order=True
    )


def _options(values: dict[str, int]) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def main() -> None:
    """Make the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--install", action="store_true")
    asked = parser.parse_args()
    making = Making(asked.work, asked.data, asked.device)
    making.run()
    if asked.install:
        shutil.rmtree(PACKAGED / "compact", ignore_errors=True)
        shutil.copytree(making.models, PACKAGED / "compact")


if __name__ == "__main__":
    main()
