"""What the doctor finds, and what it says to do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from applecider_batch.cli.main import run
from applecider_batch.engine import doctor
from applecider_batch.schema import load_answers
from applecider_batch.storage import Store


def found(name: str, result: dict[str, Any]) -> dict[str, Any]:
    (check,) = (check for check in result["checks"] if check["check"] == name)
    return check  # type: ignore[no-any-return]


def test_a_fit_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--no-ray", "--storage", str(tmp_path), "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == set(load_answers()["doctor"])
    assert result["ok"]
    assert found("python", result)["found"] == ".".join(map(str, sys.version_info[:3]))
    for package in ("ray", "torch", "pyarrow", "polars", "numpy", "astropy"):
        assert found(f"package {package}", result)["state"] == "ok"
    assert found("storage", result)["state"] == found("clock", result)["state"] == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    for check in result["checks"]:
        assert bool(check["advice"]) == (check["state"] != "ok")


def test_a_storage_that_may_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert run(["doctor", "--no-ray", "--storage", str(tmp_path / "file"), "--format", "json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    assert found("storage", result)["state"] == "failed"
    assert "clock" not in [check["check"] for check in result["checks"]]


def test_a_storage_without_create_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "create_only", Store.write_atomic)
    check = doctor.store(Store(tmp_path))
    assert (check.state, "twice" in check.found) == ("failed", True)


@pytest.mark.s3
def test_an_s3_store(s3_url: str, s3_options: dict[str, Any]) -> None:
    result = doctor.examine(f"{s3_url}/scratch", s3_options, start_ray=False)
    assert found("storage", result)["state"] == found("clock", result)["state"] == "ok"


@pytest.mark.parametrize(("skew", "said"), [(3600.0, "3600 s ahead"), (-3600.0, "3600 s behind")])
def test_a_clock_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float, said: str
) -> None:
    class Wrong:
        @staticmethod
        def time() -> float:
            return Path(tmp_path).stat().st_mtime + skew

    monkeypatch.setattr(doctor, "time", Wrong)
    os.utime(tmp_path)
    check = doctor.clock(Store(tmp_path))
    assert (check.state, said in check.found) == ("warning", True)


def test_a_missing_and_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999.1", "no-such-package>=1", "torch>=2.9", 'hats>=0.6; extra == "hats"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    checks = {check.check.removeprefix("package "): check for check in doctor.packages()}
    assert {name: check.state for name, check in checks.items()} == {
        "numpy": "failed",
        "no-such-package": "failed",
        "torch": "ok",
    }
    assert "pip install 'numpy>=999.1'" in checks["numpy"].advice


def test_a_cluster_that_cannot_be_reached() -> None:
    result = doctor.examine(address="127.0.0.1:1")
    assert found("cluster", result)["state"] == "failed"
    assert "cannot be reached" in found("cluster", result)["found"]


def test_logs_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    import logging

    monkeypatch.setenv("APPLECIDER_BATCH_LOG", "json")
    assert run(["status", str(tmp_path)]) == 4
    logging.getLogger("applecider_batch.test").warning("a %s", "word")
    line = capfd.readouterr().err.splitlines()[-1]
    assert {k: json.loads(line)[k] for k in ("level", "message")} == {"level": "WARNING", "message": "a word"}
    monkeypatch.delenv("APPLECIDER_BATCH_LOG")
    assert run(["status", str(tmp_path)]) == 4


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = doctor.examine(start_ray=False)
    assert not result["ok"]
    assert found("gpu", result)["state"] == "failed"
    assert "torch" in found("gpu", result)["advice"]
