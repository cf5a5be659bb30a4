"""Ray job: ``catalog build`` with its own options, on the cluster that runs the job."""

from __future__ import annotations

import sys

from applecider_batch.cli.jobs import run_job

if __name__ == "__main__":
    run_job(["catalog", "build", *sys.argv[1:], "--executor", "ray", "--address", "auto"])
