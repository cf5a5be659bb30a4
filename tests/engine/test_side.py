"""Side tables: latents of every row and light curves of every episode, from the run to the catalogue."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.read import Archive
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.query import query_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.rows import SHORT_NAMES
from applecider_batch.catalog.side import read_side_table
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.engine import api
from applecider_batch.engine.run_folder import RunFolder
from applecider_batch.errors import UserError
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.inference.fusion import MODALITY_BITS
from applecider_batch.models.model_set import ModelSet
from applecider_batch.storage import Store
from tests.engine.conftest import Inputs

HORIZONS: list[float | None] = [5.0, None]


@pytest.fixture(scope="module")
def built(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("side")
    api.classify(
        inputs.archive, inputs.models, str(folder / "run"), horizons=HORIZONS, objects_per_shard=12,
        side=["light_curves", "embeddings"], progress=False,
    )  # fmt: skip
    build_catalog(str(folder / "run"), str(folder / "cat"), rows_per_part=20)
    return folder / "run", str(folder / "cat")


def test_latents_of_every_row(built: tuple[Path, str], inputs: Inputs) -> None:
    rows = read_table(built[1]).to_pylist()
    found = read_side_table(built[1], "embeddings").to_dicts()
    keys = [(r["objectId"], r["episode"], r["horizon_days"]) for r in rows if r["modality_mask"]]
    assert [(f["objectId"], f["episode"], f["horizon_days"]) for f in found] == keys
    mask = {(r["objectId"], r["episode"], r["horizon_days"]): r["modality_mask"] for r in rows}
    widths: dict[str, set[int]] = {}
    for row in found:
        for modality, short in SHORT_NAMES.items():
            latent = row[f"latent_{short}"]
            there = mask[row["objectId"], row["episode"], row["horizon_days"]] & MODALITY_BITS[modality]
            assert (latent is not None) == bool(there)
            if latent is not None:
                assert np.isfinite(latent).all()
                widths.setdefault(short, set()).add(len(latent))
    assert all(len(some) == 1 for some in widths.values())
    assert len(widths) == 3
    _head_gives_the_logits(found, rows, inputs)


def _head_gives_the_logits(found: list[dict[str, Any]], rows: list[dict[str, Any]], inputs: Inputs) -> None:
    """The light-curve network's last layer on a latent gives that row's logits."""
    import torch

    network = ModelSet.load(inputs.models).defaults["photometry"].build()
    heads = [m for m in network.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 5]
    assert len(heads) == 1
    logits = {(r["objectId"], r["episode"], r["horizon_days"]): [r[f"logit_phot_{k}"] for k in
              ("sni", "snii", "cv", "agn", "tde")] for r in rows}  # fmt: skip
    tried = 0
    for row in found:
        if row["latent_phot"] is not None:
            with torch.inference_mode():
                said = heads[0](torch.tensor(row["latent_phot"])).numpy()
            key = row["objectId"], row["episode"], row["horizon_days"]
            assert said == pytest.approx(np.array(logits[key]), abs=1e-4)
            tried += 1
    assert tried > 10


def test_light_curves_equal_those_prepared(built: tuple[Path, str], inputs: Inputs) -> None:
    archive = Archive.open(inputs.archive)
    prepared = prepare_shard(
        archive.read_shard(0, 1 << 64),
        HORIZONS,
        get_profile("paper"),
        snapshot_jd_max=archive.snapshot.jd_max,
    )
    expected: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for event in prepared.light_curves.to_pylist():
        expected.setdefault((event["objectId"], event["episode"]), []).append(
            (event["jd"], event["fid"], event["flux_ujy"], event["flux_err_ujy"], event["n_points"])
        )
    names = ("jd", "fid", "flux_ujy", "flux_err_ujy", "n_points")
    found = {
        (r["objectId"], r["episode"]): list(zip(*(r[name] for name in names), strict=True))
        for r in read_side_table(built[1], "light_curves").to_dicts()
    }
    assert found == {key: sorted(events) for key, events in expected.items()}
    assert len(found) > 10


def test_checked_queried_and_not_left_behind(built: tuple[Path, str], tmp_path: Path) -> None:
    run, catalogue = built
    assert verify_catalog(catalogue)["problems"] == []
    sql = "SELECT COUNT(*) AS n FROM light_curves"
    assert query_catalog(catalogue, sql)["table"][0]["n"] == read_side_table(catalogue, "light_curves").height
    folder = RunFolder(Store(run))
    (run / "side" / "embeddings" / "shard-00000.dead.parquet").write_bytes(b"an attempt that was killed")
    assert folder.collect_garbage() == ["side/embeddings/shard-00000.dead.parquet"]
    part = next(Path(catalogue, "embeddings").glob("*.parquet"))
    kept = part.read_bytes()
    part.write_bytes(kept + b"x")
    assert "was changed" in verify_catalog(catalogue)["problems"][0]
    part.write_bytes(kept)


def test_a_damaged_side_file_is_refused(built: tuple[Path, str], tmp_path: Path) -> None:
    run = built[0]
    record = json.loads(next((run / "commits").glob("*.json")).read_text())
    entry = record["side"]["light_curves"]
    content = (run / entry["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert pq.read_table(run / entry["file"]).num_rows == entry["rows"]
    (run / entry["file"]).write_bytes(content[:-10])
    with pytest.raises(UserError, match="damaged"):
        build_catalog(str(run), str(tmp_path / "cat"))
    (run / entry["file"]).write_bytes(content)


def test_unknown_side_table(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embeddings, light_curves"):
        api.classify(inputs.archive, inputs.models, str(tmp_path / "r"), side=["spectra"], progress=False)
