"""The wheel alone walks the whole way, outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(line: list[str], where: Path, **environment: str) -> str:
    done = subprocess.run(
        line,
        cwd=where,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_empty_folder(tmp_path: Path) -> None:
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    call([sys.executable, *build], tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    call([sys.executable, *install], tmp_path)
    packaged = ("py.typed", "models/sets/compact/model_set.toml", "_data/schemas/catalogue.toml")
    for name in (*packaged, "_data/jobs/classify.py", "_data/cluster.yaml"):
        assert (target / "applecider_batch" / name).exists(), name
    program = "import applecider_batch; print(applecider_batch.__file__)"
    where = call([sys.executable, "-c", program], empty, PYTHONPATH=str(target))
    assert where.startswith(str(target))
    demo = "from applecider_batch.cli.main import main; main()"
    options = ["demo", "out", "--objects", "15", "--nights", "20", "--executor", "serial", "-q"]
    call([sys.executable, "-c", demo, *options], empty, PYTHONPATH=str(target))
    assert (empty / "out" / "report.html").stat().st_size > 10_000
