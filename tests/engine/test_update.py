"""Nightly updates against the oracle: a release of base and deltas equals classifying the whole archive."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
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
from applecider_batch.catalog.side import read_side_table
from applecider_batch.catalog.store import open_catalog
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.engine.api import classify
from applecider_batch.engine.update import update
from applecider_batch.models.model_set import init_model_set
from applecider_batch.simulate import simulate
from tests.engine.conftest import SMALL

SETTINGS: dict[str, Any] = {"horizons": (3.0, 10.0, None), "side": ("embeddings", "light_curves")}
#: What a document says that does not depend on how the release was made.
SAID = (
    "rows", "objects", "episodes", "rows_in_error", "rows_without_position", "trained", "simulated_rows",
    "gates", "classes", "errors", "modality_masks", "known_status", "funnel_by_year", "cuts", "siblings",
    "content_sha256", "content_rows", "as_of_jd", "anomaly_tests",
)  # fmt: skip


class Survey:
    """A simulated survey that comes night by night, its archive, and a catalogue that is kept up to date."""

    def __init__(self, folder: Path) -> None:
        made = simulate(folder / "survey", n_objects=40, n_nights=24, seed=11)
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

    def update(self) -> dict[str, Any]:
        """Bring the catalogue up to date."""
        return update(
            self.archive, self.catalogue, self.models, known=[self.known], objects_per_shard=7, progress=False
        )


def bytes_of(folder: str) -> dict[str, str]:
    """Every file with the digest of its bytes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same(mine: str, oracle: str) -> None:
    """Two catalogues hold the same rows in the same order, and say the same of them."""
    one, other = (read_table(url).drop_columns(list(BOOKKEEPING)) for url in (mine, oracle))
    for name in other.column_names:
        assert one.column(name).equals(other.column(name)) or _text(one, name) == _text(other, name), name
    said, expected = (open_catalog(url)[1] for url in (mine, oracle))
    assert {name: said[name] for name in SAID} == {name: expected[name] for name in SAID}
    assert set(said["side_tables"]) == set(expected["side_tables"])
    for name in expected["side_tables"]:
        assert str(read_side_table(mine, name).to_dict(as_series=False)) == str(
            read_side_table(oracle, name).to_dict(as_series=False)
        ), name
    assert verify_catalog(mine)["problems"] == []


def _text(table: pa.Table, name: str) -> str:
    return str(table.column(name).to_pylist())  # NaN equals NaN


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return Survey(tmp_path_factory.mktemp("survey"))


def test_updates_are_a_classification_of_everything(survey: Survey) -> None:
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
    assert fold(survey.catalogue)["changed"]
    assert read_table(survey.catalogue).equals(before_fold)
    assert_same(survey.catalogue, str(survey.folder / "late"))

    # And several nights at once, of a release that is a base again.
    ingest(nights[9:], survey.archive)
    survey.update()
    assert_same(survey.catalogue, survey.build("end"))
    assert [entry["release"] for entry in list_releases(survey.catalogue)["releases"]] == [1, 2, 3, 4, 5]
    assert_same(f"{survey.catalogue}@3", str(survey.folder / "late"))
    removed = remove_releases(survey.catalogue, keep=1)
    assert removed["releases_removed"] == [1, 2, 3, 4]
    assert_same(survey.catalogue, str(survey.folder / "end"))
