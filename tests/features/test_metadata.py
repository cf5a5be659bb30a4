"""Metadata by name, as known when the packet was sent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.inputs import Prepared, prepare_shard
from applecider_batch.features.profiles import PAPER_METADATA, UPSTREAM_METADATA, Profile, get_profile
from tests.features.tables import JD0, FakeShard, alert, point, shard

PAPER = get_profile("paper")


def flux(mag: float) -> float:
    return 10 ** (-0.4 * (mag - 23.9))


def rising() -> FakeShard:
    """Three positive alerts; peak at the second."""
    mags = (19.0, 17.0, 18.0)
    return shard([alert("ZTFa", JD0 + 4 * i, i + 1, magpsf=mag) for i, mag in enumerate(mags)])


def metadata(prepared: Prepared, row: int, profile: Profile) -> dict[str, float]:
    values = prepared.image.metadata[prepared.image.row_index[row]]
    return dict(zip(profile.metadata_names, values.tolist(), strict=True))


def prepare(data: FakeShard, profile: Profile = PAPER) -> Prepared:
    return prepare_shard(data, [0.0, 5.0, 20.0, None], profile, snapshot_jd_max=JD0 + 100)


def test_the_paper_has_its_nineteen_numbers() -> None:
    table_2 = {
        "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "ra", "dec", "magpsf", "sigmapsf", "chinr",
        "sharpnr", "sky", "classtar", "ndethist", "ncovhist", "scorr", "nmtchps", "diffmaglim",
        "age", "nnondet",
    }  # fmt: skip
    assert set(PAPER_METADATA) - table_2 == {"peakmag_so_far"}
    assert len(PAPER_METADATA) == 20
    assert len(UPSTREAM_METADATA) == 24


def test_values_by_name() -> None:
    made = metadata(prepare(rising()), 3, PAPER)
    assert made["magpsf"] == 18.0
    assert made["nnondet"] == 37.0
    assert (made["ra"], made["dec"]) == (150.0, 20.0)
    assert made["age"] == pytest.approx(8.0)
    assert made["peakmag_so_far"] == pytest.approx(17.0, abs=1e-5)
    assert made["chinr"] == PAPER.missing_value


def test_the_packet_knows_no_later_events() -> None:
    prepared = prepare(rising())
    assert [round(metadata(prepared, row, PAPER)["age"], 4) for row in range(4)] == [0.0, 4.0, 8.0, 8.0]
    assert metadata(prepared, 0, PAPER)["peakmag_so_far"] == pytest.approx(19.0, abs=1e-5)
    # The same packet for two horizons is one item.
    assert prepared.image.row_index.tolist() == [0, 1, 2, 2]
    assert prepared.image.candid.tolist() == [1, 2, 3]


def test_upstreams_form() -> None:
    profile = get_profile("upstream-main")
    made = metadata(prepare(rising(), profile), 3, profile)
    assert made["ra"] == pytest.approx(150 / 180 - 1)
    assert made["dec"] == pytest.approx(20 / 90)
    assert (made["days_since_peak"], made["days_to_peak"], made["age"]) == pytest.approx((4.0, 4.0, 8.0))
    assert made["peakmag_so_far"] == pytest.approx(-2.5 * np.log10(flux(17.0)), abs=1e-5)
    assert made["maxmag_so_far"] == pytest.approx(-2.5 * np.log10(flux(19.0)), abs=1e-5)
    assert made["fid"] == 2.0


def test_any_known_features_in_any_order() -> None:
    profile = dataclasses.replace(
        PAPER, metadata_names=("n_photometry_total", "drb", "max_over_peak_mag", "magnr")
    )
    made = metadata(prepare(rising(), profile), 3, profile)
    assert made["n_photometry_total"] == 3.0
    assert made["drb"] == np.float32(0.99)
    assert made["max_over_peak_mag"] == pytest.approx(19 / 17, abs=1e-5)
    assert made["magnr"] == profile.missing_value


def test_an_unknown_feature_is_refused() -> None:
    profile = dataclasses.replace(PAPER, metadata_names=("magpsf", "colour_of_the_sky"))
    with pytest.raises(
        UserError, match=r"unknown metadata features: colour_of_the_sky; allowed are .*magpsf"
    ):
        prepare(rising(), profile)


def test_without_usable_photometry_the_history_is_missing() -> None:
    data = shard([alert("ZTFa", JD0, 1)], [point("ZTFa", JD0, candid=1, magpsf=float("nan"))])
    made = metadata(prepare(data), 3, PAPER)
    assert (made["age"], made["peakmag_so_far"]) == (PAPER.missing_value, PAPER.missing_value)


def test_wild_numbers_are_missing_not_infinite() -> None:
    data = shard([alert("ZTFa", JD0, 1, scorr=1e300, sky=float("inf"), chinr=float("nan"))])
    made = metadata(prepare(data), 3, PAPER)
    assert {made[name] for name in ("scorr", "sky", "chinr")} == {PAPER.missing_value}
