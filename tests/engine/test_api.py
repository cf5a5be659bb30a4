"""The engine over the package's own floors: a simulated archive, all three networks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.objects import objects_table
from applecider_batch.archive.read import Archive
from applecider_batch.catalog.run_folder import RunFolder
from applecider_batch.engine import api
from applecider_batch.errors import ClusterError, UsageError, UserError
from tests.engine.conftest import Inputs

OPTIONS: dict[str, Any] = {
    "horizons": (3.0, 10.0, None),
    "objects_per_shard": 8,
    "device": "cpu",
    "batch_size": 8,
    "progress": False,
}


def classify(inputs: Inputs, run: Path, **options: Any) -> dict[str, Any]:
    return api.classify(inputs.archive, inputs.models, str(run), **{**OPTIONS, **options})


def rows(run: Path) -> pa.Table:
    folder = RunFolder(str(run))
    return pa.concat_tables([folder.read_shard(s) for s in folder.shards if s.shard_id in folder.commits])


@pytest.fixture(scope="module")
def serial(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    run = tmp_path_factory.mktemp("runs") / "serial"
    return classify(inputs, run), run


def test_every_object_of_the_archive_is_in_the_run(
    inputs: Inputs, serial: tuple[dict[str, Any], Path]
) -> None:
    result, run = serial
    assert (result["state"], result["trained"]) == ("complete", False)
    table = rows(run)
    in_archive = set(objects_table(Archive.open(inputs.archive)).column("objectId").to_pylist())
    assert set(table.column("objectId").to_pylist()) == in_archive
    assert result["objects"] == len(in_archive)
    mask = table.column("modality_mask").to_numpy()
    assert {bit for bit in (1, 2, 4) if (mask & bit).any()} == {1, 2, 4}, "every network answered somewhere"
    assert table.column("error_code").null_count == table.num_rows


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_rows(inputs: Inputs, serial: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    result = classify(inputs, tmp_path / "run", executor="ray", workers=2)
    assert result["run_id"] == serial[0]["run_id"]
    assert rows(tmp_path / "run") == rows(serial[1])


def test_a_compacted_archive_gives_the_same_run(
    inputs: Inputs, serial: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    shutil.copytree(inputs.archive, tmp_path / "archive")
    compact(str(tmp_path / "archive"), full=True)
    opened = Archive.open(str(tmp_path / "archive"))
    assert opened.snapshot.id > Archive.open(inputs.archive).snapshot.id
    result = classify(inputs._replace(archive=str(tmp_path / "archive")), tmp_path / "run")
    assert result["run_id"] == serial[0]["run_id"]
    assert rows(tmp_path / "run") == rows(serial[1])


def test_a_run_goes_on_after_a_compaction(inputs: Inputs, tmp_path: Path) -> None:
    shutil.copytree(inputs.archive, tmp_path / "archive")
    moved = inputs._replace(archive=str(tmp_path / "archive"))
    begun = classify(moved, tmp_path / "run", limit_shards=1)
    compact(moved.archive, full=True)
    assert classify(moved, tmp_path / "run")["run_id"] == begun["run_id"]


def test_a_run_is_refused_when_the_archive_has_grown_but_its_own_snapshot_goes_on(
    inputs: Inputs, tmp_path: Path
) -> None:
    first = Archive.open(inputs.archive).snapshot.id - 1
    begun = classify(inputs, tmp_path / "run", snapshot=first, limit_shards=1)
    with pytest.raises(UserError, match=rf"the archive's snapshot .* \(its snapshot is {first}\)"):
        classify(inputs, tmp_path / "run")
    done = classify(inputs, tmp_path / "run", snapshot=first)
    assert (done["run_id"], done["state"]) == (begun["run_id"], "complete")


def test_batches_of_another_size_change_the_run_but_hardly_the_numbers(
    inputs: Inputs, serial: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    result = classify(inputs, tmp_path / "run", batch_size=3)
    assert result["run_id"] != serial[0]["run_id"]
    for name in ("prob_sni", "prob_tde", "logit_img_agn", "logit_phot_cv", "logit_spec_cv"):
        one, other = (
            rows(r).column(name).to_numpy(zero_copy_only=False) for r in (tmp_path / "run", serial[1])
        )
        np.testing.assert_allclose(one, other, atol=1e-4)
        assert np.isfinite(one).any()


def test_a_region_holds_the_objects_inside_and_no_other(inputs: Inputs, tmp_path: Path) -> None:
    objects = objects_table(Archive.open(inputs.archive))
    ra, dec = objects.column("ra")[0].as_py(), objects.column("dec")[0].as_py()
    cone = (ra, dec, 4.0)
    planned = api.plan(inputs.archive, inputs.models, region=cone, device="cpu")
    result = classify(inputs, tmp_path / "run", region=cone)
    assert 0 < result["objects"] == planned["objects"] < objects.num_rows
    assert objects.column("objectId")[0].as_py() in rows(tmp_path / "run").column("objectId").to_pylist()


def test_the_plan_says_the_size_and_writes_no_run(
    inputs: Inputs, serial: tuple[dict[str, Any], Path]
) -> None:
    planned = api.plan(
        inputs.archive,
        inputs.models,
        horizons=OPTIONS["horizons"],
        objects_per_shard=8,
        device="cpu",
        batch_size=8,
    )
    assert planned["run_id"] == serial[0]["run_id"]
    assert planned["shards"] == serial[0]["shards"]
    assert planned["objects"] == serial[0]["objects"]
    assert planned["rows"] >= serial[0]["rows"]
    assert planned["bytes_read"] > 0
    assert planned["gpu_hours"] is None
    assert (planned["cost"], planned["calibrated"]) == (None, False)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"executor": "dask"}, UsageError, "allowed are serial, ray"),
        ({"executor": "serial", "workers": 2}, UsageError, "neither address, pools nor workers"),
        ({"limit_shards": 0}, UsageError, "at least 1"),
        ({"horizons": ()}, UsageError, "At least one horizon"),
        ({"dtype": "int8"}, UsageError, "allowed are float32, float16, bfloat16"),
        ({"device": "tpu"}, UsageError, "allowed are cpu, cuda"),
        ({"batch_size": 0}, UsageError, "batch size must be at least 1"),
        ({"region": (400.0, 0.0, 1.0)}, UsageError, "RA,DEC,RADIUS"),
        ({"snapshot": 99}, UserError, "no snapshot 99"),
        ({"executor": "ray", "address": "127.0.0.1:1"}, ClusterError, "cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    inputs: Inputs, tmp_path: Path, options: dict[str, Any], error: type[UserError], said: str
) -> None:
    with pytest.raises(error, match=said):
        classify(inputs, tmp_path / "run", **options)
    assert not (tmp_path / "run" / "commits").exists()


def test_an_unknown_model_set_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no model set 'nowhere'"):
        classify(inputs._replace(models="nowhere"), tmp_path / "run")


def test_a_place_that_is_no_archive_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not an archive"):
        classify(inputs._replace(archive=str(tmp_path)), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizons": (5.0,)}, "the horizons"),
        ({"threads": 2}, "the threads"),
        ({"batch_size": 4}, "batch size"),
    ],
)
def test_a_run_made_with_another_config_is_refused(
    inputs: Inputs, serial: tuple[dict[str, Any], Path], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=rf"what differs: .*{said} \(the run has"):
        classify(inputs, serial[1], **options)


@pytest.mark.s3
def test_a_run_on_s3_is_the_same(
    inputs: Inputs,
    serial: tuple[dict[str, Any], Path],
    s3_url: str,
    s3_options: dict[str, Any],
) -> None:
    from applecider_batch.storage import Store

    archive = Store(f"{s3_url}/archive", s3_options)
    for path in sorted(p for p in Path(inputs.archive).rglob("*") if p.is_file()):
        archive.write_atomic(str(path.relative_to(inputs.archive)), path.read_bytes())
    result = api.classify(archive.url, inputs.models, f"{s3_url}/run", **OPTIONS, storage_options=s3_options)
    assert (result["run_id"], result["state"]) == (serial[0]["run_id"], "complete")
    folder = RunFolder(f"{s3_url}/run", s3_options)
    assert pa.concat_tables([folder.read_shard(s) for s in folder.shards]) == rows(serial[1])
    assert api.status(f"{s3_url}/run", storage_options=s3_options)["state"] == "complete"


def test_own_cuts_reach_the_rows_and_are_part_of_the_identity(inputs: Inputs, tmp_path: Path) -> None:
    file = tmp_path / "cuts.toml"
    file.write_text("[faint]\nalert = ['magpsf > 19']\n[many]\nrow = ['n_det >= 5']\n")
    run = tmp_path / "run"
    begun = classify(inputs, run, cuts=str(file), limit_shards=1)
    table = rows(run)
    many = np.array([n >= 5 for n in table.column("n_det").to_pylist()])
    assert np.array_equal(table.column("cuts_own").to_numpy() & 2 > 0, many)
    assert many.any()
    assert not many.all()
    file.write_text("[faint]\nalert = ['magpsf > 18']\n")
    with pytest.raises(UserError, match=r"the own cuts \(the run has faint, many, now faint\)"):
        classify(inputs, run, cuts=str(file))
    with pytest.raises(UserError, match="There is no cuts file"):
        classify(inputs, run, cuts=str(tmp_path / "absent.toml"))
    assert begun["shards_remaining"] > 0


def test_the_largest_batch_is_the_devices_where_none_is_asked_for(inputs: Inputs) -> None:
    given = [{}, {"batch_size": 64}, {"device": "cuda"}, {"device": "cuda", "batch_size": 1024}]
    runs = [
        api.plan(inputs.archive, inputs.models, **{"device": "cpu", **options})["run_id"] for options in given
    ]
    assert runs[0] == runs[1] != runs[2] == runs[3]
