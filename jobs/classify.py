"""Ray job: ``classify`` with the options of the command of that name, on the cluster that runs the job."""

from __future__ import annotations

import sys

from applecider_batch.cli.jobs import run_job

if __name__ == "__main__":
    run_job(["classify", *sys.argv[1:], "--executor", "ray", "--address", "auto"])
