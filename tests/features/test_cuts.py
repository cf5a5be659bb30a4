"""Cut presets: a plain evaluation alert by alert, what is not applicable, and files that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from applecider_batch.errors import UserError
from applecider_batch.features.cuts import own_presets, packaged, read_own
from applecider_batch.features.gate_model import Judges
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.schema import load_table
from tests.features.tables import JD0, alert, shard

CLEAN = {"rb": 0.65, "elong": 1.2, "magdiff": -0.1, "fwhm": 5.0, "drb": 0.95, "ndethist": 2, "magpsf": 18.0}


def verdicts(*alerts: dict[str, Any], own: str = "", horizons: tuple[float | None, ...] = (None,)) -> Any:
    presets = own_presets(read_own(own, "own.toml") if own else {})
    data = shard(list(alerts))
    made = prepare_shard(
        data, horizons, get_profile("paper"), snapshot_jd_max=JD0 + 99, judges=Judges(presets)
    )
    return made.rows.to_pylist()


def one(**fields: Any) -> dict[str, Any]:
    return alert("ZTFa", JD0, 1, **{**CLEAN, **fields})


@pytest.mark.parametrize(
    ("cut", "fields", "passes"),
    [
        ("ipac", {}, True),  # every number of float32 stands on its limit
        ("ipac", {"rb": 0.649}, False),
        ("ipac", {"nbad": 1}, False),
        ("ipac", {"fwhm": 5.01}, False),
        ("ipac", {"elong": 1.21}, False),
        ("ipac", {"magdiff": -0.11}, False),
        ("ipac", {"magdiff": None}, None),
        ("ztfrest", {}, True),
        ("ztfrest", {"drb": 0.9}, False),
        ("ztfrest", {"drb": None}, None),
        ("ztfrest", {"ndethist": 1}, False),
        ("ztfrest", {"magpsf": 12.0}, False),
        ("ztfrest", {"ssdistnr": 9.9}, False),
        ("ztfrest", {"ssdistnr": 10.0}, True),
        ("ztfrest", {"isdiffpos": -1}, False),
        ("ztfrest", {"distpsnr1": 1.4, "sgscore1": 0.51}, False),
        ("ztfrest", {"distpsnr1": 1.5, "sgscore1": 0.51}, True),
        ("ztfrest", {"distpsnr3": 14.0, "srmag3": 14.9, "sgscore3": 0.5}, False),
        ("ztfrest", {"distpsnr2": 14.0, "srmag2": 14.9, "sgscore2": 0.5}, False),
        # A bright neighbour and another one that is a star are no bright star.
        ("ztfrest", {"distpsnr3": 14.0, "srmag3": 14.9, "sgscore2": 0.9, "distpsnr2": 3.0}, True),
        ("boom", {}, True),
        ("boom", {"ssdistnr": 12.0, "ssmagnr": 19.0}, False),
        ("boom", {"ssdistnr": 12.0, "ssmagnr": None}, True),
        ("boom", {"sgscore1": 0.77, "distpsnr1": 2.0}, False),
        ("boom", {"neargaiabright": 20.0, "maggaiabright": 12.0}, False),
        ("boom", {"neargaiabright": 20.0, "maggaiabright": 12.1}, True),
        ("boom", {"drb": None, "rb": None}, True),
        ("fink", {}, True),
        ("fink", {"rb": 0.55}, True),
        ("fink", {"rb": 0.54}, False),
        ("fink", {"nbad": 1}, False),
    ],
)  # fmt: skip
def test_packaged_presets(cut: str, fields: dict[str, Any], passes: bool | None) -> None:
    assert verdicts(one(**fields))[0][f"cut_{cut}"] is passes


def test_one_alert_has_to_meet_everything_and_the_wall_hides_it() -> None:
    half, other = one(rb=0.5), alert("ZTFa", JD0 + 1, 2, **{**CLEAN, "nbad": 1})
    assert verdicts(half, other)[0]["cut_fink"] is False
    good = alert("ZTFa", JD0 + 5, 3, **CLEAN)
    # The first alert opens no episode: its rb is below Fink's own limit.
    early, full = verdicts(one(elong=2.0), other, good, horizons=(3.0, None))
    assert (early["cut_ipac"], full["cut_ipac"]) == (False, True)
    before, later = one(drb=None), alert("ZTFa", JD0 + 5, 3, **CLEAN)
    early, full = verdicts(before, later, horizons=(3.0, None))
    assert (early["cut_ztfrest"], full["cut_ztfrest"]) == (None, True)


def test_every_packaged_preset_has_its_column() -> None:
    columns = {name.removeprefix("cut_") for name in load_table("catalogue").names if name.startswith("cut_")}
    assert columns == set(packaged())


OWN = """
[bright]
alert = ["magpsf <= 17.5"]
[a_first]
description = "deep in the list"
row = ["drb_max >= 0.5", "n_det > 1"]
[nearby.reject]
far = ["distpsnr1 > 1.0"]
"""


def test_own_presets_are_bits_in_order_of_their_names() -> None:
    assert [p.name for p in own_presets(read_own(OWN, "f"))] == ["a_first", "bright", "nearby"]
    pair = [one(), alert("ZTFa", JD0 + 1, 2, **{**CLEAN, "magpsf": 17.0})]
    row = verdicts(*pair, own=OWN)[0]
    assert (row["cuts_own"], row["cuts_own_na"]) == (0b111, 0)
    row = verdicts(one(drb=None, magpsf=19.0, distpsnr1=1.5), own=OWN)[0]
    assert (row["cuts_own"], row["cuts_own_na"]) == (0, 0b001)
    assert verdicts(one())[0]["cuts_own"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alert = [", "is not TOML"),
        ("[ipac]\nalert = ['rb > 1']", "'ipac', which is a packaged one"),
        ("[none]\nalert = ['rb > 1']", "'none', which is a packaged one"),
        ("", "has 0 presets; allowed are 1 to 15"),
        ("alert = ['rb > 1']", "'alert' of the cuts file 'f.toml' is no preset"),
        ("[a]\nwhere = ['rb > 1']", "key 'where'; allowed are description, alert, reject, row"),
        ("[a]\nalert = []", "has no condition"),
        ("[a]\nalert = 'rb > 1'", "must be a list of texts"),
        ("[a]\nreject = ['rb > 1']", "must be a table of named groups"),
        ("[a]\nalert = ['rbb > 1']", "column 'rbb', which is not there; allowed are for example rb"),
        ("[a]\nrow = ['rb > 1']", "column 'rb', which is not there; allowed are for example rb_max"),
        ("[a]\nalert = ['rb ~ 1']", r"operator '~'; allowed are !=, <"),
        ("[a]\nalert = ['rb is good']", "'rb is good' in the preset 'a' of 'f.toml' is no condition"),
        ("[a]\nalert = ['rb > 1.2.3']", "is no condition"),
    ],
)
def test_files_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_own(text, "f.toml")


def test_missing_numbers_meet_nothing() -> None:
    preset = own_presets(read_own("[a]\nalert = ['ssdistnr != 0', 'rb > 0']", "f"))[0]
    assert not preset.alert[0].met(np.array([np.nan]))[0]
