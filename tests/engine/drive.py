"""A fake run in a process of its own: ``python -m tests.engine.drive EXECUTOR ARCHIVE RUN [WORKERS]``."""

from __future__ import annotations

import sys
from typing import Any

from applecider_batch.engine.driver import Driver
from applecider_batch.engine.ray_executor import RayExecutor
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.engine.serial import SerialExecutor
from applecider_batch.errors import AppleciderError
from applecider_batch.storage import Store
from tests.engine import fakes


def drive(executor: str, archive: str, run: str, workers: int = 1, **options: Any) -> dict[str, Any]:
    """Classify a fake archive."""
    plan = fakes.make_plan(archive, **{k: options.pop(k) for k in ("models",) if k in options})
    spec = fakes.make_spec(plan, run)
    runner: Any = SerialExecutor(spec) if executor == "serial" else RayExecutor(spec, workers=workers)
    return Driver(RunFolder(Store(run)), plan, runner, progress=False).run(**options)


def main() -> int:
    """Exit code as the command line's."""
    executor, archive, run, *rest = sys.argv[1:]
    try:
        drive(executor, archive, run, int(rest[0]) if rest else 1, models="slim")
    except AppleciderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
