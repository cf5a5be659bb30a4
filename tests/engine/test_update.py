"""Nightly updates against the oracle: a release of base and deltas equals classifying the whole archive."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.content import BOOKKEEPING
from applecider_batch.catalog.known import read_known
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.release_upkeep import fold, list_releases
from applecider_batch.catalog.release_upkeep import gc as remove_releases
from applecider_batch.catalog.store import open_catalog
from applecider_batch.cli.main import run as run_command
from applecider_batch.engine.api import classify
from applecider_batch.engine.update import update
from applecider_batch.errors import UserError
from applecider_batch.lease import LEASE, Lease
from applecider_batch.models.model_set import init_model_set
from applecider_batch.schema import load_answers
from applecider_batch.simulate import simulate
from applecider_batch.storage import Store
from tests.catalog.same import assert_same
from tests.engine.conftest import SMALL

SETTINGS: dict[str, Any] = {"horizons": (3.0, 10.0, None), "side": ("embeddings", "light_curves")}


class Survey:
    """A simulated survey that comes night by night, its archive, and a catalogue that is kept up to date."""

    def __init__(self, folder: Path, objects: int = 40, nights: int = 24) -> None:
        made = simulate(folder / "survey", n_objects=objects, n_nights=nights, seed=11)
        self.folder = folder
        packets = list(made["packets_per_night"].values())
        paired = list(zip(map(str, made["nights"]), packets, strict=True))
        self.nights = [night for night, count in paired if count]
        self.empty_night = next(night for night, count in paired if not count)
        self.spectra = pl.read_parquet(folder / "survey" / "spectra.parquet")
        self.known = str(folder / "survey" / "known_transients.csv")
        self.archive, self.catalogue = str(folder / "archive"), str(folder / "catalogue")
        self.models = str(folder / "models")
        init_model_set(self.models, seed=2, configs=SMALL)

    def spectra_file(self, part: slice) -> str:
        """Some of the spectra as a file."""
        file = self.folder / f"spectra-{part.start}-{part.stop}.parquet"
        self.spectra[part].write_parquet(file)
        return str(file)

    def build(self, name: str) -> str:
        """Classify the whole archive as it is now, into a catalogue of its own."""
        run, out = str(self.folder / f"{name}-run"), str(self.folder / name)
        classify(self.archive, self.models, run, executor="serial", progress=False, **SETTINGS)
        build_catalog(run, out, known=[read_known(self.known, "transient")])
        return out

    def update(self, catalogue: str = "", **options: Any) -> dict[str, Any]:
        """Bring the catalogue up to date."""
        given = {"models": self.models, "known": [self.known], "objects_per_shard": 7, **options}
        return update(self.archive, catalogue or self.catalogue, progress=False, **given)


def bytes_of(folder: str) -> dict[str, str]:
    """Every file with the digest of its bytes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """A small survey with a catalogue and a night that is not in it yet."""
    survey = Survey(tmp_path_factory.mktemp("small"), objects=16, nights=16)
    ingest(survey.nights[:-1], survey.archive)
    survey.build("catalogue")
    ingest(survey.nights[-1:], survey.archive)
    return survey


def test_updates_are_a_classification_of_everything(tmp_path: Path) -> None:
    survey = Survey(tmp_path)
    nights = survey.nights
    ingest([*nights[:4], *nights[5:8]], survey.archive, spectra=[survey.spectra_file(slice(0, 3))])
    survey.build("catalogue")
    before = bytes_of(survey.catalogue)

    # An empty night, and one that is there already: not a byte is written.
    ingest([survey.empty_night, nights[0]], survey.archive)
    assert survey.update()["changed"] is False
    assert bytes_of(survey.catalogue) == before

    # A night: new objects, new detections, horizons that are over.
    ingest(nights[8:9], survey.archive)
    done = survey.update()
    assert done["changed"]
    assert set(done) == set(load_answers()["update"])
    assert 0 < done["objects_classified"] < open_catalog(survey.catalogue)[1]["objects"]
    assert_same(survey.catalogue, survey.build("night"))

    # A night that was late, and spectra; the archive was compacted meanwhile, twice.
    compact(survey.archive)
    ingest(nights[4:5], survey.archive, spectra=[survey.spectra_file(slice(3, 6))])
    compact(survey.archive)
    gc(survey.archive, keep=1)
    done = survey.update()
    assert done["release"] == 3
    assert_same(survey.catalogue, survey.build("late"))

    # Folded, the rows are the same.
    before_fold = read_table(survey.catalogue)
    folded = fold(survey.catalogue)
    assert folded["changed"]
    assert set(folded) == set(load_answers()["catalog fold"])
    assert read_table(survey.catalogue).equals(before_fold)
    assert_same(survey.catalogue, str(survey.folder / "late"))

    # And several nights at once, of a release that is a base again.
    ingest(nights[9:], survey.archive)
    survey.update()
    assert_same(survey.catalogue, survey.build("end"))
    assert [entry["release"] for entry in list_releases(survey.catalogue)["releases"]] == [1, 2, 3, 4, 5]
    assert_same(f"{survey.catalogue}@3", str(survey.folder / "late"))
    (Path(survey.catalogue) / ".catalog.json.of-a-killed-writer.tmp").touch()
    removed = remove_releases(survey.catalogue, keep=1)
    assert not [name for name in bytes_of(survey.catalogue) if name.endswith(".tmp")]
    assert removed["releases_removed"] == [1, 2, 3, 4]
    assert_same(survey.catalogue, str(survey.folder / "end"))


def test_what_does_not_go_into_one_release_is_refused(
    small: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bytes_of(small.catalogue)
    init_model_set(tmp_path / "others", seed=3, configs=SMALL)
    with pytest.raises(UserError, match="what differs: the model set"):
        small.update(models=str(tmp_path / "others"))
    with pytest.raises(UserError, match="given are none"):
        small.update(known=())
    ingest(small.nights[:2], str(tmp_path / "archive"))
    with pytest.raises(UserError, match="cannot tell what has changed"):
        update(str(tmp_path / "archive"), small.catalogue, small.models, known=[small.known], progress=False)
    monkeypatch.setattr("applecider_batch.engine.update.__version__", "99.0")
    with pytest.raises(UserError, match=r"the version of applecider-batch \(.* in the release, now 99.0\)"):
        small.update()
    assert bytes_of(small.catalogue) == before


def test_one_process_at_a_time_changes_a_catalogue(small: Survey) -> None:
    before = bytes_of(small.catalogue)
    with Lease(Store(small.catalogue), what="catalogue"):
        with pytest.raises(UserError, match="is being changed: process"):
            small.update()
        for verb in ("fold", "gc"):
            assert run_command(["catalog", verb, small.catalogue]) == 4
        build = ["catalog", "build", f"{small.catalogue}-run", "--out", small.catalogue]
        assert run_command([*build, "--known", f"transient={small.known}"]) == 4
        assert run_command(["catalog", "gc", small.catalogue, "--dry-run"]) == 0
        assert (Path(small.catalogue) / LEASE).exists()
    assert bytes_of(small.catalogue) == before


def test_an_update_on_an_object_store(
    small: Survey, tmp_path: Path, s3_url: str, s3_options: dict[str, Any]
) -> None:
    fs = fsspec.filesystem("s3", **s3_options)
    for name in ("archive", "catalogue"):
        fs.put(str(small.folder / name), f"{s3_url}/{name}", recursive=True)
    local = str(tmp_path / "catalogue")
    shutil.copytree(small.catalogue, local)
    small.update(local)
    done = update(
        f"{s3_url}/archive", f"{s3_url}/catalogue", small.models, known=[small.known], progress=False,
        storage_options=s3_options,
    )  # fmt: skip
    assert done["changed"]
    remote = read_table(f"{s3_url}/catalogue", storage_options=s3_options)
    assert remote.drop_columns(list(BOOKKEEPING)).equals(read_table(local).drop_columns(list(BOOKKEEPING)))
    assert list_releases(f"{s3_url}/catalogue", storage_options=s3_options)["newest"] == 2
