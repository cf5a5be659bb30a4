from __future__ import annotations

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from applecider_batch.archive.read import ShardData
from applecider_batch.engine.region import Region, select_region
from applecider_batch.errors import UsageError


@pytest.mark.parametrize("centre", [(0.1, 5.0), (359.9, -89.0), (180.0, 90.0), (45.0, 0.0)])
def test_a_cone_is_astropys(centre: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 4000), np.degrees(np.arcsin(rng.uniform(-1, 1, 4000)))
    radius = 25.0
    apart = SkyCoord(ra * u.deg, dec * u.deg).separation(SkyCoord(*centre, unit="deg")).deg
    inside = Region(*centre, radius).contains(ra, dec)
    np.testing.assert_array_equal(inside, apart <= radius)
    assert 0 < inside.sum() < 4000


def test_nan_is_nowhere() -> None:
    assert not Region(0, 0, 180).contains(np.array([np.nan]), np.array([0.0]))[0]


@pytest.mark.parametrize("cone", [(360, 0, 1), (0, 91, 1), (0, 0, 0), (0, 0, float("nan"))])
def test_a_cone_off_the_sky_is_refused(cone: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="RA,DEC,RADIUS"):
        Region(*cone)


def test_objects_are_selected_by_mean_position_also_across_zero() -> None:
    def table(rows: list[tuple[str, float | None, float | None]]) -> pa.Table:
        columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
        types = (pa.string(), pa.float64(), pa.float64())
        return pa.table(
            {n: pa.array(c, t) for n, c, t in zip(("objectId", "ra", "dec"), columns, types, strict=True)}
        )

    alerts = table([("across", 359.9999, 0.0), ("across", 0.0001, 0.0), ("far", 180.0, 0.0)])
    points = table([("across", None, None), ("bare", 0.0, 0.0), ("bare", None, None), ("lost", None, None)])
    data = ShardData(["across", "bare", "far", "lost"], alerts, points, table([("far", None, None)]))
    kept = select_region(data, Region(0.0, 0.0, 0.01))
    assert kept.objects == ["across", "bare"]
    assert set(kept.alerts.column("objectId").to_pylist()) == {"across"}
    assert set(kept.photometry.column("objectId").to_pylist()) == {"across", "bare"}
    assert kept.spectra.num_rows == 0
