"""What the stages work on: real packets where a data folder is given, a simulated survey otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

CLI = [sys.executable, "-c", "from applecider_batch.cli.main import main; main()"]
MIX = Path(__file__).parents[1] / "mix.json"


def command(*arguments: str) -> dict[str, Any]:
    """Run a verb of the command line and return its answer."""
    line = [*CLI, *arguments, "--format", "json"]
    done = subprocess.run(line, capture_output=True, check=False, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@dataclass(frozen=True)
class Inputs:
    """Files in a working folder, made when first asked for.

    Attributes
    ----------
    work : Path
        Kept between the stages of one run.
    data : Path or None
        Folder with ``alerts/archive`` and ``lightcurves/ztf_lightcurves.parquet``.
    """

    work: Path
    data: Path | None

    @property
    def kind(self) -> str:
        """``real`` or ``simulated``."""
        return "simulated" if self.data is None else "real"

    @cached_property
    def mix(self) -> dict[str, Any]:
        """The fixed mix of objects that end-to-end figures are for."""
        mix: dict[str, Any] = json.loads(MIX.read_text())
        return mix

    def survey(self, times: int = 1) -> Path:
        """A simulated survey of the mix, or of so many times its objects."""
        folder = self.work / ("survey" if times == 1 else f"survey-{times}")
        if not folder.exists():
            wanted = self.mix["simulate"] | {"objects": times * self.mix["simulate"]["objects"]}
            options = [f"--{name}={value}" for name, value in wanted.items()]
            command("simulate", str(folder), *options, "-q")
        return folder

    def mixed(self, times: int = 1) -> str:
        """That survey, ingested."""
        folder = self.work / ("simulated" if times == 1 else f"simulated-{times}")
        if not folder.exists():
            survey = self.survey(times)
            extra = [word for path in sorted(survey.glob("spectra*")) for word in ("--spectra", str(path))]
            command("ingest", str(survey / "alerts"), "--archive", str(folder), "-q", *extra)
        return str(folder)

    @cached_property
    def simulated_archive(self) -> str:
        """The survey of the mix, ingested."""
        return self.mixed()

    @cached_property
    def nights(self) -> list[Path]:
        """Nightly tarballs: real ones, or the simulated survey's."""
        folder = self.survey() / "alerts" if self.data is None else self.data / "alerts" / "archive"
        return sorted(folder.glob("*.tar.gz"))

    @cached_property
    def packets(self) -> list[bytes]:
        """Packets of those nights, at most 2,000, as they lie in the tarballs."""
        found: list[bytes] = []
        for night in self.nights:
            with tarfile.open(night) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    if stream is not None and len(found) < 2000:
                        found.append(stream.read())
        return found

    @cached_property
    def archive(self) -> str:
        """An archive of the nights alone."""
        folder = self.work / "archive"
        if self.data is None:
            return self.simulated_archive
        if not folder.exists():
            alerts = self.data / "alerts"
            sources = [str(alerts / name) for name in ("archive", "variants", "fink_parquet")]
            command("ingest", *sources, "--archive", str(folder), "-q")
        return str(folder)

    @cached_property
    def curves(self) -> str:
        """An archive of long light curves: the real table, or the simulated survey."""
        if self.data is None:
            return self.simulated_archive
        folder = self.work / "curves"
        if not folder.exists():
            table = self.data / "lightcurves" / "ztf_lightcurves.parquet"
            command("ingest", "--photometry", str(table), "--archive", str(folder), "-q")
        return str(folder)

    def models(self, preset: str) -> str:
        """A set of untrained networks of a preset's sizes: speed does not depend on weights."""
        folder = self.work / f"models-{preset}"
        if not folder.exists():
            from benchmarks.stages.networks import write_set

            write_set(folder, preset)
        return str(folder)
