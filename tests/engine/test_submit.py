"""Jobs through Ray's job API, and the cluster file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import ClientConnectionError

from applecider_batch import __version__
from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.cli.main import run
from applecider_batch.engine import api
from applecider_batch.engine import submit as submit_module
from applecider_batch.engine.submit import VERBS, last_document, submit, working_folder
from applecider_batch.errors import ClusterError, UsageError
from applecider_batch.models.model_set import ModelSet
from applecider_batch.schema import jobs_folder
from applecider_batch.simulate import simulate
from tests.archive.trees import tree
from tests.engine.conftest import Inputs

ROOT = Path(__file__).resolve().parents[2]


class Head(NamedTuple):
    """A head of our own and where it listens."""

    jobs: str
    gcs: str
    environment: dict[str, str]

    def submit(
        self, verb: str, arguments: list[str], folder: Path, follow: bool = True
    ) -> tuple[dict[str, Any], str]:
        """``submit`` by its command, in a process that knows this head's token alone: answer and stderr."""
        code = "from applecider_batch.cli.main import main; main()"
        words = ["submit", verb, "--address", self.jobs, "--format", "json", *arguments]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, *(["--follow"] if follow else [])],
            env=self.environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == answer.get("exit_code", 0), done.stderr
        return answer, done.stderr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """``ray start --head`` that demands a token, on free ports, ended by its own process id."""
    gcs, dashboard = free_port(), free_port()
    folder = Path(f"/tmp/acb-test-{os.getpid()}")
    folder.mkdir()
    token = tmp_path_factory.mktemp("auth") / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={gcs}"),
        *("--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={dashboard}"),
        *(f"--temp-dir={folder}", "--object-store-memory=200000000", "--disable-usage-stats"),
        *(f"--ray-client-server-port={free_port()}", "--node-ip-address=127.0.0.1"),
        # The agent gives up for good where another Ray on this machine holds its usual port.
        f"--dashboard-agent-listen-port={free_port()}",
    ]
    # Earlier tests in this process leave a token of their own, which would go before the head's.
    environment = {**os.environ, **ours, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_AUTH_TOKEN", None)
    log = folder / "head.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", environment)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):  # Ray on a busy machine may take its time to end
        process.wait(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
def test_classify_as_a_job(head: Head, inputs: Inputs, tmp_path: Path) -> None:
    # Relative paths are the submitter's, also in the workers, whose folder is the shipped package's.
    for name, there in (("archive", inputs.archive), ("models", inputs.models)):
        (tmp_path / name).symlink_to(there)
    arguments = ["--archive", "archive", "--models", "models", "--run", "run", "--horizons", "10,full"]
    arguments += ["--objects-per-shard", "1", "--workers", "1", "--device", "cpu"]
    first, _ = head.submit("classify", arguments, tmp_path, follow=False)
    again, said = head.submit("classify", arguments, tmp_path, follow=False)
    assert (first["attached"], again["attached"]) == (False, True)
    assert again["submission_id"] == first["submission_id"]
    assert "under way already" in said
    # Cancelled in the middle from the run folder alone, and resumed by submitting the same again.
    run = str(tmp_path / "run")
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run").glob("commits/shard-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert api.status(run)["state"] == "running"
    assert api.cancel(run)["cancelled"]
    while api.status(run)["driver"] is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert 0 < api.status(run)["shards_committed"] < api.status(run)["shards"]
    answer, said = head.submit("classify", arguments, tmp_path)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
    assert answer["submission_id"] == f"{first['submission_id']}-2"
    assert answer["result"]["state"] == "complete"
    assert answer["result"]["run_id"] == api.status(run)["run_id"]
    states = [s["state"] for s in api.status(run)["sessions"]]
    assert states == ["start", "working", "interrupted", "start", "working", "complete"]
    # Its catalogue, over the head's nodes as in this process; the name has two words.
    answer, said = head.submit("catalog", ["build", "run", "--out", "catalogue"], tmp_path)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
    build_catalog(run, str(tmp_path / "here"))
    assert tree(tmp_path / "catalogue") == tree(tmp_path / "here")
    # Another selection into the same run is refused, and the job tells so.
    refused, said = head.submit("classify", [*arguments, "--horizons", "3"], tmp_path)
    assert (refused["status"], refused["exit_code"]) == ("FAILED", 4)
    assert "what differs: the horizons" in said


@pytest.mark.ray
@pytest.mark.slow
def test_ingest_and_training_as_jobs(head: Head, inputs: Inputs, tmp_path: Path) -> None:
    survey = simulate(tmp_path / "survey", n_objects=12, n_nights=4, seed=5)
    nights = [str(night) for night in survey["nights"]]
    answer, said = head.submit("ingest", [*nights, "--archive", "there"], tmp_path)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
    here = ingest(nights, str(tmp_path / "here"))
    assert answer["result"] == json.loads(json.dumps(here))
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    answer, said = head.submit("compact", ["there", "--full"], tmp_path)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
    assert answer["result"] == json.loads(json.dumps(compact(str(tmp_path / "here"), full=True)))
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    # The same weights as a training in this process.
    names = Archive.open(inputs.archive).object_names(0, 1 << 64)
    classes = [("SN I", "SN II")[number % 2] for number in range(len(names))]
    pq.write_table(pa.table({"objectId": names, "class5": classes}), tmp_path / "labels.parquet")
    weights = []
    for place in ("there", "here"):
        shutil.copytree(inputs.models, tmp_path / f"models-{place}")
        line = ["photometry", "--archive", inputs.archive, "--labels", str(tmp_path / "labels.parquet")]
        line += ["--models", str(tmp_path / f"models-{place}"), "--out", str(tmp_path / f"out-{place}")]
        line += ["--preset", "compact", "--epochs", "1", "--validation", "0.4", "-q"]
        if place == "there":
            answer, said = head.submit("train", line, tmp_path)
            assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
        else:
            assert run(["train", *line, "--format", "json"]) == 0
        entry = ModelSet.load(str(tmp_path / f"models-{place}")).defaults["photometry"]
        weights.append(entry.card.weights_sha256)
    assert weights[0] == weights[1]
    assert weights[0] != ModelSet.load(inputs.models).defaults["photometry"].card.weights_sha256


#: Stops the ingest under way, as ``ray job stop`` does, when a file is there, and waits for its end.
_STOP = """
import glob, sys, time
from ray.job_submission import JobSubmissionClient
address, pattern = sys.argv[1:]
client = JobSubmissionClient(address)
print("ready", flush=True)
end = time.monotonic() + 120
while not glob.glob(pattern, include_hidden=True):
    assert time.monotonic() < end, "nothing came"
    time.sleep(0.01)
(job,) = (each.submission_id for each in client.list_jobs() if each.status.value == "RUNNING")
client.stop_job(job)
while not (status := client.get_job_status(job)).is_terminal():
    time.sleep(0.1)
print(job, status.value)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_an_ingest_cancelled_from_the_cluster_and_submitted_again(head: Head, tmp_path: Path) -> None:
    survey = simulate(tmp_path / "survey", n_objects=12, n_nights=4, seed=5)
    nights = [str(night) for night in survey["nights"]]
    curves = []
    for number in range(20):  # a snapshot each, after the packets
        curves.append(str(tmp_path / f"curve-{number:02}.csv"))
        Path(curves[-1]).write_text(
            f"objectId,jd,band,mag,mag_err\nX{number},{2459000.5 + number},g,18,0.1\n"
        )
    line = [*nights, "--archive", "there", "--workers", "1", "-q"]
    line += [word for curve in curves for word in ("--photometry", curve)]
    stop = subprocess.Popen(
        [sys.executable, "-c", _STOP, head.jobs, str(tmp_path / "there" / ".spill-*" / "*.rows")],
        env=head.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with stop:
        assert stop.stdout is not None
        assert stop.stdout.readline() == "ready\n"
        first, _ = head.submit("ingest", line, tmp_path, follow=False)
        assert stop.stdout.readline() == f"{first['submission_id']} STOPPED\n"
    assert len(list((tmp_path / "there").glob("snapshots/*"))) < 1 + len(curves)
    answer, said = head.submit("ingest", line, tmp_path)
    assert (answer["status"], answer["exit_code"]) == ("SUCCEEDED", 0), said
    assert answer["submission_id"] == f"{first['submission_id']}-2"
    ingest(nights, str(tmp_path / "here"), photometry=curves)
    assert not list((tmp_path / "there").glob(".spill-*"))
    gc(str(tmp_path / "there"), keep=100)  # files under temporary names
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_what_is_shipped_runs_by_itself(tmp_path: Path) -> None:
    with working_folder() as folder:
        usages = {}
        for verb in VERBS:
            script = str(folder / f"{verb.replace('-', '_')}.py")
            done = subprocess.run(
                [sys.executable, script, *(["spectra"] if verb == "train" else []), "--help"],
                env={**os.environ, "PYTHONPATH": "", "APPLECIDER_BATCH_JOB_FOLDER": str(tmp_path)},
                capture_output=True,
                text=True,
                check=True,
            )
            usages[verb] = done.stdout.split("[OPTIONS]")[0].split(maxsplit=1)[1].split()
        code = "import applecider_batch.schema as s; s.load_table('catalogue'); print(s.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        assert Path(done.stdout).is_relative_to(folder)
    words = {verb: usage[1:] for verb, usage in usages.items()}
    assert words == {
        "ingest": ["ingest"],
        "compact": ["archive", "compact"],
        "classify": ["classify"],
        "catalog-build": ["catalog", "build"],
        "update": ["update"],
        "train": ["train", "spectra"],
    }


class OneJob:
    """A job server at which somebody else submits the same first."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def submit_job(self, **asked: Any) -> str:
        self.asked = asked
        raise RuntimeError(
            f"status code 500: Job with submission_id {asked['submission_id']} already exists."
        )


def test_a_submission_that_somebody_was_faster_with_is_joined() -> None:
    server = OneJob()
    assert not submit_module._submitted(server, "acb-train-1", "train", ["python", "train.py", "cuda"])
    assert (server.asked["entrypoint_num_cpus"], server.asked["entrypoint_num_gpus"]) == (1, 1)
    submit_module._submitted(server, "acb-train-1", "train", ["python", "train.py", "--device=cuda"])
    assert server.asked["entrypoint_num_gpus"] == 1
    assert not submit_module._submitted(server, "acb-classify-1", "classify", ["python", "classify.py"])
    assert "entrypoint_num_cpus" not in server.asked


class BrokenLog:
    """A job server whose log breaks off at once, and whose job ends well."""

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, **asked: Any) -> str:
        return str(asked["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "talk\n"
        raise ClientConnectionError("Server disconnected")

    def get_job_info(self, job_id: str) -> Any:
        status = SimpleNamespace(value="SUCCEEDED", is_terminal=lambda: True)
        return SimpleNamespace(status=status, driver_exit_code=None)

    def get_job_logs(self, job_id: str) -> str:
        return 'talk\n{\n "a": 1\n}\n'


def test_a_log_that_breaks_off_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(submit_module, "_client", lambda address: BrokenLog())
    monkeypatch.setattr(logging.getLogger("applecider_batch"), "propagate", True)
    with caplog.at_level(logging.INFO, "applecider_batch"):
        done = submit("classify", [], "http://127.0.0.1:8265")
    assert (done["exit_code"], done["result"]) == (0, {"a": 1})
    assert f"what ends it: {done['stop']}" in caplog.text


def test_a_head_that_has_just_started_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "POLL_SECONDS", 0.01)
    asked = []

    def call(word: str) -> str:
        asked.append(word)
        if len(asked) < 3:
            raise RuntimeError("status code 500: No available agent to submit job, please try again later..")
        return "done"

    assert submit_module._asked(call, "x") == "done"
    assert asked == ["x"] * 3
    monkeypatch.setattr(submit_module, "AGENT_SECONDS", 0.0)
    asked.clear()
    with pytest.raises(ClusterError, match="No available agent"):
        submit_module._asked(call, "x")


def test_another_refusal_is_told_at_once() -> None:
    asked = []

    def call() -> None:
        asked.append(1)
        raise RuntimeError("status code 400: no")

    with pytest.raises(ClusterError, match="status code 400"):
        submit_module._asked(call)
    assert len(asked) == 1


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(UsageError, match="allowed are ingest, compact, classify"):
        submit("demo", [], "http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_an_unreachable_job_server_is_said(address: str) -> None:
    with pytest.raises(ClusterError, match="job server at") as caught:
        submit("classify", [], address.format(port=free_port()))
    assert caught.value.exit_code == 5


def test_every_verb_has_its_entry_point() -> None:
    assert {path.stem.replace("_", "-") for path in jobs_folder().glob("*.py")} == set(VERBS)


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ('talk\n{\n "a": 1\n}\n', {"a": 1}),
        ('{"old": 1}\ntalk\n{\n "a": {\n  "b": 2\n }\n}\n', {"a": {"b": 2}}),
        ("only talk\n", None),
        ("{broken\n", None),
    ],
)
def test_the_answer_is_found_in_the_log(log: str, found: Any) -> None:
    assert last_document(log) == found


def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def test_the_cluster_file_is_valid_for_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster()))
    broken = cluster()
    broken["idle_timeout"] = 5
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(broken))


def test_the_cluster_grows_and_shrinks_and_its_head_takes_no_work() -> None:
    config = cluster()
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    spot = {name for name, kind in workers.items() if "InstanceMarketOptions" in kind["node_config"]}
    gpu = {name for name, kind in workers.items() if kind["resources"]["GPU"]}
    assert gpu & spot
    assert gpu - spot
    assert spot - gpu
    assert config["idle_timeout_minutes"] > 0
    assert config["docker"]["image"]
    assert not any(
        "pip install" in command for key in config if key.endswith("commands") for command in config[key]
    )


def test_no_worker_type_can_take_more_than_the_cluster_may_grow_to() -> None:
    config = cluster()
    workers = [
        kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]
    ]
    assert sum(kind["max_workers"] for kind in workers) == config["max_workers"]
    for kind in workers:
        assert set(kind["resources"]) == {"CPU", "GPU"}
        assert kind["resources"]["CPU"] >= 1
        assert kind["node_config"]["InstanceType"]


def test_the_image_holds_what_the_package_is_made_of() -> None:
    lines = (ROOT / "Containerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], *wheel["force-include"]} <= set(copied)
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= set(copied)
    (base,) = (line for line in lines if line.startswith("FROM"))
    assert f"python:{project['project']['requires-python'].removeprefix('>=')}-" in base
    assert cluster()["docker"]["image"].endswith(f":{__version__}")
