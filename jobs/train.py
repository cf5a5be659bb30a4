"""Ray job: ``train`` with the options of the command of that name."""

from __future__ import annotations

import sys

from applecider_batch.cli.jobs import run_job

if __name__ == "__main__":
    run_job(["train", *sys.argv[1:]])
