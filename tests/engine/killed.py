"""A command in a process of its own that SIGKILL ends at a file of one's choice.

``python -m tests.engine.killed PATTERN MOMENT NUMBER WORD…`` ends itself when the ``NUMBER``-th file that
matches gets its name (or loses it, in a removal), just before that or just after.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from applecider_batch.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def killed(pattern: str, moment: str, *words: str, number: int = 1) -> None:
    """Run a command line that is ended so; pattern as for ``Path.match``, moment before or after."""
    command = [sys.executable, "-m", "tests.engine.killed", pattern, moment, str(number), *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def watch(call: Callable[[str, str], None]) -> dict[str, Callable[..., Any]]:
    """What gives files of a store their names and takes them, with a call before and after, by its name.

    ``call`` gets the moment (before, after) and the file's path.
    """

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*paths: Any, **options: Any) -> None:
            call("before", str(paths[-1]))
            original(*paths, **options)
            call("after", str(paths[-1]))

        return step

    return {name: watched(getattr(os, name)) for name in ("replace", "link", "remove")}


def _end_at(pattern: str, moment: str, number: int) -> Callable[[str, str], None]:
    seen = 0

    def call(now: str, path: str) -> None:
        nonlocal seen
        if now == moment and Path(path).match(pattern):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return call


if __name__ == "__main__":
    given, when, count, *line = sys.argv[1:]
    for name, step in watch(_end_at(given, when, int(count))).items():
        setattr(os, name, step)
    sys.argv[1:] = line
    main()
