"""Base and deltas against a catalogue built of the same rows at once: random skies, siblings, q-values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.content import BOOKKEEPING
from applecider_batch.catalog.export import export_catalog
from applecider_batch.catalog.query import query_catalog
from applecider_batch.catalog.release import add_release, open_newest, with_index
from applecider_batch.catalog.release_upkeep import fold
from applecider_batch.catalog.store import open_catalog
from applecider_batch.errors import UserError
from applecider_batch.inference.anomaly_reference import FLAG_LEVELS
from tests.catalog.same import assert_same
from tests.catalog.synthetic import END, make_rows, object_names, write_run_of


class Sky:
    """Objects in small clumps, some of which every night changes, adds, moves or takes away."""

    def __init__(self, seed: int, count: int = 60) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = object_names(count)
        self.rows = self._made(self.names[: count // 2], 0)

    def _made(self, names: list[str], night: int) -> pa.Table:
        clump = self.rng.integers(0, 8, len(names))
        places = self.rng.normal(0, 1.5 / 3600, (len(names), 2))
        positions = {
            name: (float(45.0 * number + dra) % 360.0, float(dde))
            for name, number, (dra, dde) in zip(names, clump, places, strict=True)
        }
        rows = make_rows(names, seed=night, positions=positions)
        chances = pa.array(self.rng.integers(1, 31, rows.num_rows) ** 2 / 1000.0, pa.float32())
        scored = pc.equal(rows.column("gate"), "in_scope")
        given: dict[str, Any] = {
            "anomaly_pvalue": pc.if_else(scored, chances, pa.scalar(None, pa.float32())),
            "anomaly_flag": pc.if_else(scored, _flags(chances), pa.scalar(None, pa.int8())),
            "anomaly_n_ref": pc.if_else(scored, pa.scalar(999, pa.int32()), pa.scalar(None, pa.int32())),
        }
        for name, values in given.items():
            at = rows.schema.get_field_index(name)
            rows = rows.set_column(at, rows.schema.field(at), values.cast(rows.schema.field(at).type))
        return rows

    def night(self, number: int) -> tuple[np.ndarray, pa.Table, float]:
        """Hashes of the replaced objects, their rows now, and the end of the histories."""
        touched = [name for name in self.names if self.rng.random() < 0.25]
        gone = {name for name in touched if self.rng.random() < 0.1}
        fresh = self._made([name for name in touched if name not in gone], number)
        end = END + number
        kept = self.rows.filter(pc.invert(pc.is_in(self.rows.column("objectId"), pa.array(touched))))
        self.rows, fresh = (_ending(table, end) for table in (pa.concat_tables([kept, fresh]), fresh))
        order = np.argsort(self.rows.column("hash64").to_numpy(), kind="stable")
        self.rows = self.rows.take(pa.array(order))
        hashes = np.unique(make_rows(touched).column("hash64").to_numpy())
        return hashes, fresh, end

    def update(self, folder: Path, url: str, number: int) -> str:
        """The next night of a catalogue; a catalogue built of everything."""
        hashes, rows, end = self.night(number)
        store, info, _ = open_newest(url)
        run = str(write_run_of(folder / f"run{number}", rows, 2, snapshot=number))
        add_release(store, with_index(store, info), run, hashes, as_of_jd=end, matcher=None, rows_per_part=40)
        oracle = str(folder / f"oracle{number}")
        build_catalog(str(write_run_of(folder / f"all{number}", self.rows)), oracle)
        return oracle


def _flags(chances: pa.Array) -> pa.Array:
    return pa.array(sum((chances.to_numpy() <= level).astype(np.int8) for level in FLAG_LEVELS), pa.int8())


def _ending(rows: pa.Table, end: float) -> pa.Table:
    full = rows.column("horizon_days").is_null()
    at = rows.schema.get_field_index("as_of_jd")
    return rows.set_column(at, rows.schema.field(at), pc.if_else(full, end, rows.column("as_of_jd")))


def hats_rows(folder: str) -> pl.DataFrame:
    """All rows of a HATS export of all horizons."""
    files = sorted(Path(folder).glob("*/catalogue/dataset/Norder=*/Dir=*/*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files]).sort("hash64", "episode", "horizon_days")


@pytest.mark.parametrize("seed", range(2))
def test_a_release_of_deltas_is_a_catalogue_built_at_once(tmp_path: Path, seed: int) -> None:
    sky = Sky(seed)
    url = str(tmp_path / "catalogue")
    build_catalog(str(write_run_of(tmp_path / "run", sky.rows)), url, rows_per_part=50)
    grouped = tested = 0
    for night in (1, 2):
        oracle = sky.update(tmp_path, url, night)
        assert_same(url, oracle)
        said = open_catalog(oracle)[1]
        grouped += said["siblings"]["objects"]
        tested += sum(horizon["smallest_q"] is not None for horizon in said["anomaly_tests"].values())
        sql = (
            "SELECT horizon_days, sibling_group, COUNT(*) AS n, MIN(anomaly_qvalue) AS q FROM catalogue "
            "GROUP BY horizon_days, sibling_group ORDER BY horizon_days, sibling_group"
        )
        asked = [query_catalog(catalogue, sql)["table"] for catalogue in (url, oracle)]
        assert asked[0] == asked[1]
    assert grouped
    assert tested
    assert fold(url)["changed"]
    assert not fold(url)["changed"]
    assert_same(url, oracle)


def test_exports_see_one_table(tmp_path: Path) -> None:
    sky = Sky(5, 24)
    url = str(tmp_path / "catalogue")
    build_catalog(str(write_run_of(tmp_path / "run", sky.rows)), url)
    oracle = sky.update(tmp_path, url, 1)
    for catalogue in (url, oracle):
        export_catalog(catalogue, f"{catalogue}.csv", "csv")
        export_catalog(catalogue, f"{catalogue}.hats", "hats")
    one, other = (pl.read_csv(f"{catalogue}.csv", infer_schema=False) for catalogue in (url, oracle))
    assert one.drop(BOOKKEEPING).equals(other.drop(BOOKKEEPING))
    one, other = (hats_rows(f"{catalogue}.hats") for catalogue in (url, oracle))
    assert one.height
    assert one.drop(BOOKKEEPING).equals(other.drop(BOOKKEEPING))


def test_what_cannot_be_updated_is_refused(tmp_path: Path) -> None:
    sky = Sky(7, 20)
    run = write_run_of(tmp_path / "run", sky.rows)
    url = str(tmp_path / "catalogue")
    build_catalog(str(run), url)
    with pytest.raises(UserError, match="no release 4; the newest is 1"):
        open_catalog(f"{url}@4")
    with pytest.raises(UserError, match="names one release"):
        open_newest(f"{url}@1")
    (run / "commits" / "shard-00001.json").unlink()
    build_catalog(str(run), str(tmp_path / "partial"), allow_partial=True)
    with pytest.raises(UserError, match=r"partial: 1 shards"):
        open_newest(str(tmp_path / "partial"))
    hashes, rows, end = sky.night(1)
    store, info, _ = open_newest(url)
    part = write_run_of(tmp_path / "part", rows, 2, commit={0})
    with pytest.raises(UserError, match="is not complete") as refused:
        add_release(store, with_index(store, info), str(part), hashes, as_of_jd=end, matcher=None)
    assert "--retry-quarantined" in str(refused.value.hint)


def test_a_catalogue_with_an_update_killed_at_its_end_is_not_built_anew(tmp_path: Path) -> None:
    sky = Sky(7, 20)
    run, url = str(write_run_of(tmp_path / "run", sky.rows)), str(tmp_path / "catalogue")
    build_catalog(run, url)
    first = (tmp_path / "catalogue" / "catalog.json").read_bytes()
    oracle = sky.update(tmp_path, url, 1)
    (tmp_path / "catalogue" / "catalog.json").write_bytes(first)
    with pytest.raises(UserError, match="holds release 2 of a catalogue"):
        build_catalog(run, url)
    assert open_newest(url)[2]
    assert_same(url, oracle)
