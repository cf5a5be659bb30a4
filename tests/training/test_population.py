"""One split for all modalities: no object of the sky on two sides, whatever its names and data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.profiles import get_profile
from applecider_batch.training.dataset import Dataset, load_dataset
from applecider_batch.training.labels import read_labels
from applecider_batch.training.spectra_data import SpectraSet, load_spectra
from applecider_batch.training.splits import RULES, SplitRule

N = 48
KINDS = ("SN Ia", "SN IIP", "SN I")  # the last has a broad class only


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, SpectraSet]:
    """Objects with two names, two positions and two dates: curves under one, spectra under the other.

    Every third object has a class among the five only, so the ten classes know fewer objects.
    """
    folder = tmp_path_factory.mktemp("names")
    rng = np.random.default_rng(8)
    curves, spectra, labels = [], [], []
    for i in range(N):
        first, second = f"ZTF20aaaab{i:02d}", f"ZTF21aaaab{i:02d}"
        ra, dec = rng.uniform(0, 360), rng.uniform(-30, 60)
        for k in range(4):
            curves.append((first, 59000.0 + 5 * i + k, "gr"[k % 2], 18.0, 0.05, ra, dec))
        # Some degrees away and years later: another HEALPix block, another side of any date.
        spectra.append((second, 60500.0 - 7 * i, (ra + 20) % 360, dec))
        labels += [(name, f"key{i}", KINDS[i % 3]) for name in (first, second)]
    names = ("objectId", "mjd", "band", "mag", "mag_err", "ra", "dec")
    pq.write_table(_table(names, curves), folder / "curves.parquet")
    wave = np.linspace(3900, 8400, 300, dtype=np.float32)
    table = _table(("objectId", "mjd", "ra", "dec"), spectra)
    flux = [(1 + 0.1 * np.sin(wave / (50 + i))).astype(np.float32) for i in range(N)]
    table = table.append_column("wavelength", pa.array([wave] * N)).append_column("flux", pa.array(flux))
    pq.write_table(table, folder / "spectra.parquet")
    pq.write_table(_table(("objectId", "object_key", "class10"), labels), folder / "labels.parquet")
    archive = str(folder / "archive")
    ingest(
        [], archive, photometry=[str(folder / "curves.parquet")], spectra=[str(folder / "spectra.parquet")]
    )
    opened, profile = Archive.open(archive), get_profile("paper")
    five = read_labels(str(folder / "labels.parquet"))
    ten = read_labels(str(folder / "labels.parquet"), class_set="ten")
    return load_dataset(opened, five, profile), load_spectra(opened, ten, profile)


def _table(names: tuple[str, ...], rows: list[tuple[object, ...]]) -> pa.Table:
    return pa.table({n: list(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)})


@pytest.mark.parametrize("rule", RULES)
def test_no_object_is_on_two_sides_of_two_modalities(both: tuple[Dataset, SpectraSet], rule: str) -> None:
    curves, spectra = (data.split(SplitRule(rule, validation=0.2, test=0.3)) for data in both)
    assert len(curves) == N
    assert len(spectra) == 2 * N // 3
    side = dict(zip(curves.group.tolist(), curves.part.tolist(), strict=True))
    assert [side[g] for g in spectra.group.tolist()] == spectra.part.tolist()
    assert set(side.values()) == {0, 1, 2}


def test_dates_are_those_of_the_curves(both: tuple[Dataset, SpectraSet]) -> None:
    curves = both[0].split(SplitRule("date", validation=0.2, test=0.3))
    assert curves.t0[curves.part == 0].max() < curves.t0[curves.part == 2].min()
