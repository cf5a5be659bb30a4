"""Processes of a real Ray cluster over a real S3 server ended with SIGKILL at random moments.

    python -m benchmarks.chaos [--rounds 20] [--objects 40] [--seed 0] [--out docs/chaos.md]

A head without CPUs and two worker nodes with fake GPUs are started with ``ray start``, each a process tree of
its own, beside moto's S3 server. A simulated survey is ingested, classified and made a catalogue once without
disturbance. Then each round does the same again into new places while processes (ingest, driver, shard
worker, model actor, node) are killed; whatever was killed is started again, nothing is cleaned up. A round is
good when its rows are those of the undisturbed run: the same ``content_sha256``, no key twice, none missing.
The exit code is 1 if a round is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos_cluster import Cluster, kill_tree
from benchmarks.flaky_s3 import s3_options, s3_server

KINDS = ("driver", "worker", "model", "node")
ROUND_SECONDS = 300.0
KILL_WITHIN_SECONDS = 2.0  # of a commit
ATTEMPTS = 5  # at a round whose run is over before its last kill; each waits a third of the last one's time
POOLS = {"image": {"size": 2, "num_gpus": 0.5}, "photometry": {"size": 1, "num_gpus": 0.5}}
SMALL: dict[str, dict[str, Any]] = {
    "cls_transformer": {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32},
    "astrominn": {"depths": [1, 1], "dims": [8, 16]},
    "spectranet": {"widths": [4, 4, 4, 4, 4], "hidden": [16, 8], "kernels": [[3, 5, 7]] * 5},
}
COMMAND = [sys.executable, "-m", "benchmarks.chaos"]


@dataclass
class Round:
    """What a round did and found."""

    number: int
    kills: list[str]
    drivers: int
    seconds: float
    failures: int
    duplicates: int
    losses: int
    same: bool

    @property
    def good(self) -> bool:
        """Whether the rows are the undisturbed run's."""
        return self.same and not self.duplicates and not self.losses


class Chaos:
    """A survey on S3, its undisturbed catalogue, and rounds of disturbance.

    Parameters
    ----------
    cluster : Cluster
    endpoint : str
        The S3 server's, with a bucket named ``bucket``.
    folder : Path
        For the survey and the model set.
    objects, nights, per_shard, seed : int
    """

    def __init__(
        self,
        cluster: Cluster,
        endpoint: str,
        folder: Path,
        objects: int,
        nights: int,
        per_shard: int,
        seed: int,
    ) -> None:
        from applecider_batch.models.model_set import init_model_set
        from applecider_batch.simulate import simulate

        self._cluster, self._endpoint, self._folder, self._per_shard = cluster, endpoint, folder, per_shard
        self._options = s3_options(endpoint)
        self._draw = random.Random(seed)
        survey = simulate(folder / "survey", n_objects=objects, n_nights=nights, seed=seed)
        self._sources = [str(Path(survey["alerts_dir"])), str(folder / "survey" / "spectra.parquet")]
        init_model_set(folder / "models", seed=2, configs=SMALL)
        start = time.monotonic()
        self._finish("ingest", "calm")
        ingested = time.monotonic()
        self._finish("classify", "calm")
        self.calm_seconds = {"ingest": ingested - start, "classify": time.monotonic() - ingested}
        self._calm, self._digest = self._catalogue("calm")
        self.objects, self.rows = len({key[0] for key in self._calm}), len(self._calm)

    def round(self, number: int, kills: Sequence[str]) -> Round:
        """Ingest, classify and build once more while processes are killed.

        A run that is over before its last kill is followed by another one that is killed sooner. The rows of
        every one must be right: the first that is not is the answer.
        """
        for attempt in range(ATTEMPTS):
            name = f"round-{number}-{attempt}"
            done = self._disturbed(number, name, kills, KILL_WITHIN_SECONDS / 3**attempt)
            if done.kills == list(kills) or not done.good:
                break
        return done

    def _disturbed(self, number: int, name: str, kills: Sequence[str], within: float) -> Round:
        """One run into new places, with each kill at most ``within`` seconds after a commit."""
        start = time.monotonic()
        drivers, killed = 1, []
        if "ingest" in kills:
            killed.append("ingest")
            ingest = self._process("ingest", name)
            time.sleep(self._draw.uniform(1.0, max(1.5, self.calm_seconds["ingest"])))
            kill_tree(ingest)
        self._finish("ingest", name)
        driver = self._process("classify", name)
        for kind in [kind for kind in kills if kind != "ingest"]:
            self._wait_for_commits(name, driver)
            time.sleep(self._draw.uniform(0.0, within))
            if driver.poll() is not None:
                break
            killed.append(kind)
            if kind == "driver":
                kill_tree(driver)
                driver, drivers = self._process("classify", name), drivers + 1
            elif kind == "node":
                self._cluster.kill_node(self._draw)
            elif victims := self._cluster.actors(kind):
                self._draw.choice(victims).kill()
        while (code := driver.wait(timeout=ROUND_SECONDS)) not in (0, 3):
            # The driver's own node may have been the one killed.
            drivers += 1
            if drivers > 5:
                raise RuntimeError(f"round {number}: the driver ends with {code} again and again")
            driver = self._process("classify", name)
        keys, digest = self._catalogue(name)
        failures = len(self._store(name).ls("failures"))
        return Round(
            number,
            killed,
            drivers,
            time.monotonic() - start,
            failures,
            len(keys) - len(set(keys)),
            len(set(self._calm) - set(keys)),
            digest == self._digest,
        )

    def _store(self, name: str) -> Any:
        from applecider_batch.storage import Store

        return Store(f"s3://bucket/{name}/run", self._options)

    def _process(self, verb: str, name: str) -> subprocess.Popen[bytes]:
        task = {
            "verb": verb,
            "archive": f"s3://bucket/{name}/archive",
            "run": f"s3://bucket/{name}/run",
            "models": str(self._folder / "models"),
            "sources": self._sources,
            "address": self._cluster.address,
            "objects_per_shard": self._per_shard,
            "storage_options": self._options,
        }
        command = [*COMMAND, "--task", json.dumps(task)]
        with (self._folder / f"{name}-{verb}.log").open("ab") as out:
            return subprocess.Popen(
                command, env=self._cluster.environment, stdout=out, stderr=out, start_new_session=True
            )

    def _finish(self, verb: str, name: str) -> None:
        process = self._process(verb, name)
        if process.wait(timeout=ROUND_SECONDS):
            raise RuntimeError((self._folder / f"{name}-{verb}.log").read_text())

    def _wait_for_commits(self, name: str, driver: subprocess.Popen[bytes]) -> None:
        """Until one more shard is committed than now, or the driver ends."""
        store, deadline = self._store(name), time.monotonic() + ROUND_SECONDS
        before = len(store.ls("commits"))
        while len(store.ls("commits")) == before and driver.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError((self._folder / f"{name}-classify.log").read_text())
            time.sleep(0.05)

    def _catalogue(self, name: str) -> tuple[list[tuple[Any, ...]], str]:
        """Row keys and content digest of the catalogue built of a run."""
        from applecider_batch.catalog.build import build_catalog
        from applecider_batch.catalog.read import read_table

        out = f"s3://bucket/{name}/catalogue"
        built = build_catalog(self._store(name).url, out, storage_options=self._options)
        table = read_table(out, ["objectId", "episode", "horizon_days"], storage_options=self._options)
        return list(zip(*(column.to_pylist() for column in table.columns), strict=True)), built[
            "content_sha256"
        ]


def plan_rounds(count: int, kills: int, seed: int) -> list[list[str]]:
    """Which kinds each round kills: every kind equally often, in random order; every other an ingest."""
    draw, bag = random.Random(seed), []
    rounds = []
    for number in range(count):
        if len(bag) < kills:
            fresh = list(KINDS)
            draw.shuffle(fresh)
            bag += fresh
        rounds.append([*(["ingest"] if number % 2 else []), *bag[:kills]])
        bag = bag[kills:]
    return rounds


def run_task(task: dict[str, Any]) -> int:
    """What a process of a round does: ingest, or classify on the cluster."""
    from applecider_batch.archive.ingest import ingest
    from applecider_batch.engine import api

    alerts, spectra = task["sources"]
    options = task["storage_options"]
    if task["verb"] == "ingest":
        ingest([alerts], task["archive"], spectra=[spectra], storage_options=options)
        return 0
    result = api.classify(
        task["archive"],
        task["models"],
        task["run"],
        horizons=(10.0, None),
        executor="ray",
        address=task["address"],
        workers=2,
        pools=POOLS,
        device="cpu",
        objects_per_shard=task["objects_per_shard"],
        storage_options=options,
        progress=False,
    )
    return 0 if result["state"] == "complete" else 3


@contextlib.contextmanager
def prepared(objects: int, nights: int, per_shard: int, seed: int) -> Iterator[Chaos]:
    """Server, cluster, survey and the undisturbed run."""
    with s3_server() as endpoint, Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        yield Chaos(cluster, endpoint, Path(folder), objects, nights, per_shard, seed)


def table(rounds: Sequence[Round]) -> str:
    """The rounds as Markdown."""
    lines = [
        "| round | killed | drivers | failed attempts | seconds | duplicates | losses | same rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.number} | {', '.join(r.kills)} | {r.drivers} | {r.failures} | {r.seconds:.0f} "
        f"| {r.duplicates} | {r.losses} | {'yes' if r.same else '**no**'} |"
        for r in rounds
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="processes killed in a round, an ingest aside")
    parser.add_argument("--objects", type=int, default=40)
    parser.add_argument("--nights", type=int, default=12)
    parser.add_argument("--objects-per-shard", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="Markdown file for the table")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        return run_task(json.loads(arguments.task))
    done: list[Round] = []
    with prepared(arguments.objects, arguments.nights, arguments.objects_per_shard, arguments.seed) as chaos:
        calm = ", ".join(f"{verb} {seconds:.0f} s" for verb, seconds in chaos.calm_seconds.items())
        print(f"undisturbed: {calm}; {chaos.objects} objects, {chaos.rows} rows", flush=True)
        for number, kills in enumerate(plan_rounds(arguments.rounds, arguments.kills, arguments.seed), 1):
            done.append(chaos.round(number, kills))
            print(table(done).splitlines()[-1], flush=True)
            if arguments.out:
                Path(arguments.out).write_text(table(done))
    good = sum(one.good for one in done)
    print(f"{good} of {len(done)} rounds gave the undisturbed rows")
    return int(good != len(done))


if __name__ == "__main__":
    sys.exit(main())
