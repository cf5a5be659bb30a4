"""Ray job: ``train`` with the options of the command of that name."""

from __future__ import annotations

import os
import sys

from applecider_batch.cli.main import run
from applecider_batch.engine.submit import FOLDER_VARIABLE

if __name__ == "__main__":
    # Relative paths are the submitter's, where this machine has the submitter's folder.
    folder = os.environ.get(FOLDER_VARIABLE, "")
    if os.path.isdir(folder):
        os.chdir(folder)
    sys.exit(run(["train", *sys.argv[1:], "--format", "json"]))
