"""A command in a process of its own that SIGKILL ends at a file of one's choice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_BEGIN = "import sys; from tests.killed import end_at; end_at(*sys.argv[1:4]); del sys.argv[1:4]"


def killed(pattern: str, moment: str, *words: str, number: int = 1) -> None:
    """Run a command line that is ended so; see :func:`end_at`."""
    killed_in("from applecider_batch.cli.main import main; main()", pattern, moment, *words, number=number)


def killed_in(code: str, pattern: str, moment: str, *words: str, number: int = 1) -> None:
    """Run Python code that is ended so, with words in its ``sys.argv``; see :func:`end_at`."""
    command = [sys.executable, "-c", f"{_BEGIN}\n{code}", pattern, moment, str(number), *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def watch(call: Callable[[str, str], None]) -> dict[str, Callable[..., Any]]:
    """What gives files of a store their names and takes them, by its name in os, with calls around it.

    ``call`` gets the moment (before, after) and the file's path.
    """

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*paths: Any, **options: Any) -> None:
            call("before", str(paths[-1]))
            original(*paths, **options)
            call("after", str(paths[-1]))

        return step

    return {name: watched(getattr(os, name)) for name in ("replace", "link", "remove")}


def end_at(pattern: str, moment: str, number: str) -> None:
    """From now on this process ends itself at the n-th file that matches (as ``Path.match``).

    Just before or just after (the moment) the file gets its name or is removed.
    """
    seen = 0

    def call(now: str, path: str) -> None:
        nonlocal seen
        if now == moment and Path(path).match(pattern):
            seen += 1
            if seen == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

    for name, step in watch(call).items():
        setattr(os, name, step)
