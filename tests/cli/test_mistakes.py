"""Mistakes of a new user: each ends with its exit code and says the next step, and harms nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from applecider_batch.cli.main import run
from applecider_batch.cli.output import human_lines

LABELLED = "--archive gone --labels gone.csv --models compact"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, a file that is no packet, an empty folder and one that holds something else."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello\n")
    Path("image.avro").write_bytes(b"SIMPLE  =                    T")
    Path("night.tar.gz").write_bytes(b"no gzip at all" * 100)
    Path("other.csv").write_text("name,type\nSN1,SN Ia\n")
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "code", "says", "next_step"),
    [
        ("ingest gone.tar.gz --archive a", 4, "no source at 'gone.tar.gz'", "Give nightly tarballs"),
        ("ingest empty --archive a", 4, "holds no alerts", "Give nightly tarballs"),
        ("ingest notes.txt --archive a", 4, "of no known kind", "Give nightly tarballs"),
        ("ingest night.tar.gz --archive a", 3, "1 quarantined", "Next: applecider-batch archive info a"),
        ("ingest image.avro --archive a", 3, "1 quarantined", "Next: applecider-batch archive info a"),
        ("ingest image.avro --archive full", 4, "is not an archive", "empty or new folder"),
        ("ingest image.avro --archive notes.txt", 4, "is a file", "new path"),
        ("ingest --photometry other.csv --archive a", 4, "has no column", "Rename them"),
        ("plan --archive gone --models compact", 4, "is not an archive", "applecider-batch ingest"),
        ("classify --archive full --models compact --run r", 4, "no archive.json", "applecider-batch ingest"),
        ("models info compakt", 4, "packaged sets are: compact", "models init"),
        ("models init full", 4, "is not empty and no model set", "new or empty folder"),
        ("status gone", 4, "no plan.json", "applecider-batch classify"),
        ("catalog build gone --out c", 4, "no plan.json", "applecider-batch classify"),
        ("candidates find gone --out c.parquet", 4, "no catalog.json", "catalog build"),
        ("report gone --out r.html", 4, "no catalog.json", "catalog build"),
        ("demo d --executor dask", 2, "Unknown executor 'dask'", "allowed are serial, ray"),
        ("demo full", 4, "something else than a demo", "new or empty folder"),
        ("simulate full -q", 4, "is not empty", "empty folder"),
        (f"train photometry {LABELLED} --out t", 4, "comes with the package", "--from compact"),
        (f"train image {LABELLED} --out t", 4, "comes with the package", "--from compact"),
        (f"train spectra {LABELLED} --out t", 4, "comes with the package", "--from compact"),
        (f"train joint {LABELLED} --out t --result compact", 4, "comes with the package", "--from compact"),
        (f"calibrate {LABELLED}", 4, "comes with the package", "--from compact"),
        ("clasify", 2, "No such command", "Did you mean 'classify'?"),
        ("catalog bild", 2, "No such command", "Did you mean 'build'?"),
    ],
)
def test_a_mistake_says_the_next_step(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, says: str, next_step: str
) -> None:
    before = {path.name for path in here.iterdir()}
    assert run(line.split()) == code
    said = capsys.readouterr().err
    assert says in said
    assert next_step in said
    assert "Traceback" not in said
    assert "fault of ours" not in said
    assert code == 3 or "/s" not in said  # no progress of what was refused at once
    made = {path.name for path in here.iterdir()} - before
    assert made <= ({"a"} if line.startswith("ingest") else set())  # an archive, with what was set aside


def test_the_process_ends_with_the_code_after_all_else_is_closed() -> None:
    """A thread that is still at work when Python ends would abort it."""
    program = (
        "import atexit\n"
        "from applecider_batch.cli.main import end_with\n"
        "def call():\n"
        "    atexit.register(print, 'closed')\n"
        "    return 4\n"
        "end_with(call)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "closed\n")


def test_people_read_units_and_dates() -> None:
    lines = human_lines(
        {
            "horizons": [3.0, None],
            "bytes": {"alerts": 999, "stamps": 5_468_675},
            "bytes_read": 12_340_000_000,
            "jd_max": 2460449.8785,
            "driver": None,
        }
    )
    assert [line.split() for line in lines] == [
        ["horizons", "3,", "full"],
        ["bytes"],
        ["alerts", "999", "bytes"],
        ["stamps", "5.47", "MB"],
        ["bytes", "read", "12.3", "GB"],
        ["jd", "max", "2460449.8785", "(2024-05-19)"],
        ["driver", "-"],
    ]


def test_output_that_nobody_reads_on_is_no_fault() -> None:
    code = "from applecider_batch.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "models", "info", "compact", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, "")
