"""Running the verbs as Ray jobs, through Ray's job API against a head started with ``ray start --head``.

The job's working directory holds the entry points of ``jobs/`` with this very package and its schemas, which
Ray carries to the cluster; what the package depends on has to be installed there (an image, not
``runtime_env`` pip).  The submission id follows from the verb, its arguments and the submitter's folder, so
the same submission is found again while it runs, and resumes what it left when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from applecider_batch.digest import json_digest
from applecider_batch.engine.ray_cluster import set_environment
from applecider_batch.errors import EXIT_TERMINATED, ClusterError, UsageError
from applecider_batch.logs import get_logger
from applecider_batch.schema import jobs_folder, schemas_folder

VERBS: tuple[str, ...] = ("ingest", "compact", "classify", "catalog-build", "update", "train")
FOLDER_VARIABLE = "APPLECIDER_BATCH_JOB_FOLDER"
POLL_SECONDS = 1.0
AGENT_SECONDS = 90.0
# Verbs that hand their work to other processes of the cluster. Training computes where it runs and is given a
# node that has a CPU (a head without workload has none).
SPREADING: tuple[str, ...] = ("ingest", "compact", "classify", "catalog-build", "update")

_log = get_logger(__name__)


def submit(
    verb: str,
    arguments: Sequence[str],
    address: str,
    *,
    follow: bool = True,
    python: str | None = None,
) -> dict[str, Any]:
    """Run a verb as a Ray job.

    Parameters
    ----------
    verb : str
        One of :data:`VERBS`.
    arguments : sequence of str
        The verb's own command-line options.  Relative paths are the submitter's where the cluster has that
        folder.
    address : str
        Ray's job server, for example ``http://127.0.0.1:8265``.
    follow : bool
        Write the job's log to stderr until it ends.
    python : str, optional
        Interpreter on the cluster; by default this one's path.

    Returns
    -------
    dict
        ``submission_id, address, verb, attached`` (whether it was under way already), ``status, stop`` (the
        command that ends the job) and, where it was followed to the end, ``exit_code`` and ``result`` (the
        verb's own answer).

    Raises
    ------
    UsageError
        For an unknown verb.
    ClusterError
        If the job server cannot be reached or refuses.
    """
    if verb not in VERBS:
        raise UsageError(f"The verb '{verb}' cannot be submitted; allowed are {', '.join(VERBS)}.")
    client = _client(address)
    submission_id, attached = _submission_id(client, verb, arguments)
    if not attached:
        words = [python or sys.executable, f"{verb.replace('-', '_')}.py", *arguments]
        attached = not _submitted(client, submission_id, verb, words)
    if attached:
        _log.info("The job %s is under way already; nothing new was submitted.", submission_id)
    answer: dict[str, Any] = {
        "submission_id": submission_id,
        "address": address,
        "verb": verb,
        "attached": attached,
        "stop": f"ray job stop {submission_id} --address {address}",
    }
    if not follow:
        return {**answer, "status": str(_asked(client.get_job_status, submission_id).value)}
    _log.info("The job goes on without this process; what ends it: %s", answer["stop"])
    with warnings.catch_warnings():
        # Ray 2.60 gives aiohttp an option that newer ones deprecate.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.run(_follow(client, submission_id))
    info = _ended(client, submission_id)
    return {
        **answer,
        "status": str(info.status.value),
        "exit_code": _exit_code(info),
        "result": last_document(_asked(client.get_job_logs, submission_id)),
    }


def _submitted(client: Any, submission_id: str, verb: str, words: Sequence[str]) -> bool:
    """Hand the job in; False if another process has just handed in the same."""
    resources = {} if verb in SPREADING else {"entrypoint_num_cpus": 1}
    if resources and not {"cuda", "--device=cuda"}.isdisjoint(words):
        resources["entrypoint_num_gpus"] = 1
    with working_folder() as folder:
        try:
            _asked(
                client.submit_job,
                entrypoint=shlex.join(words),
                submission_id=submission_id,
                runtime_env={"working_dir": str(folder), "env_vars": {FOLDER_VARIABLE: os.getcwd()}},
                metadata={"verb": verb},
                **resources,
            )
        except ClusterError as error:
            if "already exists" not in str(error):
                raise
            return False
    return True


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """A folder with the entry points, the package and its schemas, laid out as a checkout is."""
    ignored = shutil.ignore_patterns("__pycache__", "_data")
    with tempfile.TemporaryDirectory(prefix="acb-submit-") as name:
        folder = Path(name)
        package = Path(__file__).resolve().parents[1]
        shutil.copytree(package, folder / package.name, ignore=ignored)
        shutil.copytree(schemas_folder(), folder / "schemas")
        shutil.copytree(jobs_folder(), folder, ignore=ignored, dirs_exist_ok=True)
        yield folder


def _client(address: str) -> Any:
    """Ray's job client; the token that this user's Ray clusters demand goes along."""
    set_environment()
    known = (Path.home() / ".ray" / "auth_token").exists()
    if known or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    for talker in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(talker).setLevel(logging.WARNING)
    url = address if "://" in address else f"http://{address}"
    try:
        return JobSubmissionClient(url)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _refused(address, error) from error


def _asked(call: Any, *arguments: Any, **options: Any) -> Any:
    """Ask the job server; a head that has just started has no agent for a while and is asked again."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return call(*arguments, **options)
        except (ConnectionError, RuntimeError, OSError) as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise _refused(None, error) from error
        time.sleep(POLL_SECONDS)


def _refused(where: str | None, error: Exception) -> ClusterError:
    text = str(error).strip().splitlines()
    hint = (
        "Give the URL of the job server that 'ray start --head' printed, for example http://127.0.0.1:8265."
    )
    if "uthentication" in str(error) or "Unauthorized" in str(error):
        hint = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on the cluster."
    server = f"Ray's job server at '{where}'" if where else "Ray's job server"
    return ClusterError(f"{server} refused: {text[0] if text else error!r}.", hint=hint)


def _submission_id(client: Any, verb: str, arguments: Sequence[str]) -> tuple[str, bool]:
    """The id to use, and whether its job is under way; the id of a job that ended is not used again."""
    base = f"acb-{verb}-{json_digest([verb, list(arguments), os.getcwd()])[:12]}"
    jobs = {job.submission_id: job.status for job in _asked(client.list_jobs) if job.submission_id}
    number = 1
    while True:
        name = base if number == 1 else f"{base}-{number}"
        if name not in jobs:
            return name, False
        if not jobs[name].is_terminal():
            return name, True
        number += 1


async def _follow(client: Any, submission_id: str) -> None:
    """Pass the job's log on to stderr while it runs."""
    from aiohttp import ClientError

    try:
        async for text in client.tail_job_logs(submission_id):
            sys.stderr.write(text)
            sys.stderr.flush()
    except (RuntimeError, OSError, ClientError) as error:
        # The log broke off; how the job ends is asked for separately.
        _log.warning("The log of %s broke off: %s", submission_id, error)


def _ended(client: Any, submission_id: str) -> Any:
    """The job's information once it has ended."""
    while True:
        info = _asked(client.get_job_info, submission_id)
        if info.status.is_terminal():
            return info
        time.sleep(POLL_SECONDS)


def _exit_code(info: Any) -> int:
    """Exit code of the verb; Ray knows it unless the job was stopped or never ran."""
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code:
        return int(info.driver_exit_code) if info.driver_exit_code > 0 else 128 - int(info.driver_exit_code)
    return EXIT_TERMINATED if info.status.value == "STOPPED" else 1


def last_document(log: str) -> dict[str, Any] | None:
    """The last JSON object that starts on a line of its own in a job's log, None where there is none."""
    lines = log.splitlines()
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].startswith("{"):
            try:
                found, _ = json.JSONDecoder().raw_decode("\n".join(lines[start:]))
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None
