"""Sibling groups against astropy's separations, and in a catalogue whatever its shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.units import arcsec, deg
from hypothesis import given, settings
from hypothesis import strategies as st

from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_table
from applecider_batch.catalog.siblings import close_pairs
from tests.catalog.synthetic import object_names, write_run


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.0, 0.0), (359.9999, 40.0), (120.0, 89.9995), (10.0, -90.0)]),
)
def test_pairs_are_those_of_astropy(seed: int, centre: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    ra = (centre[0] + rng.normal(0, 4 / 3600, n) / max(np.cos(np.deg2rad(centre[1])), 1e-5)) % 360.0
    dec = np.clip(centre[1] + rng.normal(0, 4 / 3600, n), -90.0, 90.0)
    left, right = close_pairs(ra, dec, 2.0)
    where = SkyCoord(ra * deg, dec * deg)
    a, b, sep, _ = search_around_sky(where, where, 2.0 * arcsec)
    want = {(i, j) for i, j, s in zip(a.tolist(), b.tolist(), sep.arcsec, strict=True)
            if i < j and abs(s - 2.0) > 1e-6}  # fmt: skip
    found = {(min(i, j), max(i, j)) for i, j in zip(left.tolist(), right.tolist(), strict=True)}
    assert len(found) == len(left)
    assert want <= found
    assert all(where[i].separation(where[j]).arcsec <= 2.0 + 1e-6 for i, j in found - want)


@pytest.mark.parametrize("shards", [1, 5])
def test_groups_of_a_catalogue(tmp_path: Path, shards: int) -> None:
    names = object_names(40)
    alone = {name: (10.0 + i, 20.0) for i, name in enumerate(names)}
    # A chain: the ends are 3 arcsec apart, the middle holds them together.  And a pair across 360 degrees.
    chain = dict(zip(names[3:30:13], [(200.0, 10.0 + k * 1.5 / 3600) for k in range(3)], strict=True))
    pair = {names[7]: (0.0001, -30.0), names[20]: (359.9998, -30.0)}
    near_miss = {names[8]: (300.0, 0.0), names[9]: (300.0 + 2.01 / 3600, 0.0)}
    run = write_run(tmp_path / "run", names, shards, positions={**alone, **chain, **pair, **near_miss})
    info = build_catalog(str(run), str(tmp_path / "cat"))
    table = read_table(str(tmp_path / "cat"), columns=["objectId", "sibling_group"])
    found = {row["objectId"]: row["sibling_group"] for row in table.to_pylist()}
    want = dict.fromkeys(chain, min(chain)) | dict.fromkeys(pair, min(pair))
    assert {name: group for name, group in found.items() if group} == want
    assert info["siblings"] == {"objects": 5, "groups": 2}
