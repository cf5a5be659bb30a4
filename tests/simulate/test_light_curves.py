"""Light curves against the shapes they cite, and spectra against their lines."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize_scalar

from applecider_batch.simulate import transients, variables
from applecider_batch.simulate.cadence import (
    Field,
    channel_offset_deg,
    choose_fields,
    field_visits,
    galactic_b,
    make_season,
    night_date,
    nightly_weather,
    sky_position,
)
from applecider_batch.simulate.source import (
    black_body_mag,
    modulus_of_redshift,
    peak_mag,
    redshift_of_modulus,
)
from applecider_batch.simulate.spectra import make_spectrum

from .conftest import Small

JD = np.arange(-60.0, 150.0, 0.25) + 2460200.0
PEAK = 2460200.0
R = np.full(len(JD), 2)
G = np.full(len(JD), 1)


@pytest.mark.parametrize("seed", range(5))
def test_bazin_peaks_at_zero_with_height_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rise, fall = float(rng.uniform(2, 8)), float(rng.uniform(20, 80))
    best = minimize_scalar(
        lambda t: -float(transients.bazin(np.array([t]), rise, fall)[0]), bounds=(-40, 40), method="bounded"
    )
    assert best.x == pytest.approx(0.0, abs=0.01)
    assert -best.fun == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["SN Ia", "SN Ib", "SN Ic", "SN IIP", "SN IIn", "SN IIb", "TDE"])
def test_transients_peak_near_t_peak_and_are_dark_before(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    makers = {
        "SN Ia": transients.sn_ia, "SN IIP": transients.sn_iip, "SN IIn": transients.sn_iin,
        "SN IIb": transients.sn_iib, "TDE": transients.tde,
    }  # fmt: skip
    source = makers[kind](rng, PEAK) if kind in makers else transients.sn_ibc(kind, rng, PEAK)
    flux = source.flux(JD, R)
    assert (flux >= 0).all()
    assert abs(JD[flux.argmax()] - PEAK) < (20.0 if kind in ("SN IIP", "SN IIb") else 4.0)
    assert source.t_onset is not None
    long_before = source.flux(np.array([source.t_onset - 20.0]), np.array([2]))
    assert long_before[0] < 0.01 * flux.max()
    mag = 23.9 - 2.5 * np.log10(flux.max())
    assert 14.0 < mag < 21.0
    assert source.redshift is not None
    assert 0.0005 < source.redshift < 0.5


def test_sn_ia_declines_and_has_a_second_maximum_in_i() -> None:
    source = transients.sn_ia(np.random.default_rng(1), PEAK)
    g = -2.5 * np.log10(source.flux(np.array([PEAK, PEAK + 15.0]), np.array([1, 1])))
    assert 0.5 < g[1] - g[0] < 1.6
    days = np.arange(5.0, 45.0, 0.5)
    i = source.flux(PEAK + days, np.full(len(days), 3))
    rising = np.diff(i) > 0
    assert rising[days[:-1] > 12].any()


def test_plateau_of_sn_iip_in_r_then_fall() -> None:
    phase = np.array([10.0, 60.0, 84.0, 120.0])
    value = transients.villar(phase, 2.0, np.full(4, 0.2 / 85.0), 85.0, 10.0)
    assert value[0] - value[2] == pytest.approx(74 * 0.2 / 85.0, abs=0.01)
    assert value[3] < 0.2


def test_tde_keeps_its_colour_and_falls_slower_than_exponential() -> None:
    source = transients.tde(np.random.default_rng(2), PEAK)
    color = source.flux(JD, G) / source.flux(JD, R)
    assert color.max() - color.min() < 1e-6 * color.max()
    assert color[0] > 1.0  # blue
    late = -np.diff(np.log(source.flux(PEAK + np.array([10.0, 50.0, 90.0, 130.0]), np.full(4, 2))))
    assert late[0] > late[1] > late[2] > 0


def test_dwarf_nova_rises_in_a_day_and_comes_back() -> None:
    for seed in range(6):
        source = variables.dwarf_nova(np.random.default_rng(seed), PEAK, PEAK + 60.0)
        assert source.t_onset is not None
        t = source.t_onset + np.array([-0.5, 0.95, 60.0])
        flux = source.flux(np.sort(np.concatenate([t, JD])), np.full(len(JD) + 3, 2))
        assert flux.max() > 5.0 * abs(np.median(flux))
    assert source.star_mag is not None


def test_damped_walk_has_the_asymptotic_scatter() -> None:
    rng = np.random.default_rng(5)
    times = np.arange(0.0, 200000.0, 50.0)
    walk = variables._damped_walk(rng, times, tau=50.0, sigma=0.3)
    assert walk.std() == pytest.approx(0.3, rel=0.05)
    assert np.corrcoef(walk[:-1], walk[1:])[0, 1] == pytest.approx(np.exp(-1.0), abs=0.05)


def test_variable_stars_change_sign(small: Small) -> None:
    stars = {t["objectId"] for t in small.truth if t["gate"] == "variable_star"}
    signs = {p["candidate"]["isdiffpos"] for p in small.packets if p["objectId"] in stars}
    assert signs == {"t", "f"}
    transients_only = {t["objectId"] for t in small.truth if t["class"] in ("SN I", "SN II", "TDE")}
    negative = [
        p for p in small.packets if p["objectId"] in transients_only and p["candidate"]["isdiffpos"] == "f"
    ]
    assert not negative


def test_observed_peak_is_near_the_true_one(small: Small) -> None:
    groups = small.by_object()
    for row in small.truth:
        if row["class"] not in ("SN I", "SN II", "TDE") or not row["n_alerts"]:
            continue
        r = [p["candidate"]["magpsf"] for p in groups[row["objectId"]] if p["candidate"]["fid"] == 2]
        if r:
            assert min(r) > row["mag_peak_r"] - 0.7


def test_asteroids_move_and_are_named(small: Small) -> None:
    groups = small.by_object()
    moving = [t for t in small.truth if t["gate"] == "moving" and t["n_alerts"]]
    assert all(t["n_alerts"] <= 3 for t in moving)
    named = [t for t in moving if t["ssnamenr"]]
    assert len(named) > 0.7 * len(moving)
    for row in named:
        candidate = groups[row["objectId"]][0]["candidate"]
        assert candidate["ssnamenr"] == row["ssnamenr"]
        assert 0.0 <= candidate["ssdistnr"] < 12.0
        assert abs(candidate["ssmagnr"] - candidate["magpsf"]) < 2.0
    by_name: dict[str, list[str]] = {}
    for row in named:
        by_name.setdefault(row["ssnamenr"], []).append(row["objectId"])
    assert any(len(ids) == 2 for ids in by_name.values())


def test_artefacts_score_low(small: Small) -> None:
    gate = {t["objectId"]: t["gate"] for t in small.truth}
    rb = {True: [], False: []}
    drb = {True: [], False: []}
    for packet in small.packets:
        bad = gate[packet["objectId"]] == "artefact"
        rb[bad].append(packet["candidate"]["rb"])
        drb[bad].append(packet["candidate"]["drb"])
    assert np.median(rb[True]) < 0.5 < 0.7 < np.median(rb[False])
    assert np.median(drb[True]) < 0.3 < 0.99 < np.median(drb[False])


def test_cosmology_and_counts() -> None:
    # Flat LCDM, H0 = 70, Om = 0.3 by astropy's FlatLambdaCDM: 38.31 mag at z = 0.1, 41.49... checked below.
    from astropy.cosmology import FlatLambdaCDM

    model = FlatLambdaCDM(H0=70, Om0=0.3)
    for z in (0.01, 0.1, 0.5):
        assert modulus_of_redshift(z) == pytest.approx(float(model.distmod(z).value), abs=0.005)
        assert redshift_of_modulus(modulus_of_redshift(z)) == pytest.approx(z, rel=1e-3)
    rng = np.random.default_rng(0)
    mags = np.array([peak_mag(rng, 15.0, 20.0) for _ in range(4000)])
    assert (mags < 19.0).mean() == pytest.approx(10**-0.5, abs=0.02)


def test_fast_blue_transients_are_fast_and_blue() -> None:
    source = transients.fast_blue(np.random.default_rng(1), PEAK)
    r, g = (-2.5 * np.log10(np.maximum(source.flux(JD, band), 1e-9)) for band in (R, G))
    peak = int(r.argmin())
    days = JD - JD[peak]
    assert r[days == 8.0][0] - r[peak] > 1.0
    assert r[days == -6.0][0] - r[peak] > 2.0
    assert np.median((g - r)[(days > -1) & (days < 30)]) < 0.0
    assert source.class5 is None


def test_black_body_is_bluer_when_hotter() -> None:
    cool, hot = black_body_mag(6000.0, 0.0), black_body_mag(25000.0, 0.0)
    assert hot[1] < cool[1]
    assert cool[2] == hot[2] == 0.0


def test_cadence_of_a_field() -> None:
    season = make_season(60)
    rng = np.random.default_rng(3)
    opened, cloud = nightly_weather(season, rng)
    (field, *_) = choose_fields(season, 8, rng)
    visits = field_visits(field, season, opened, cloud, rng)
    assert (np.diff(visits.jd) > 0).all()
    nights = np.unique(visits.nid)
    assert 1.5 < np.median(np.diff(nights)) <= 4
    assert set(np.unique(visits.fid)) <= {1, 2, 3}
    assert 0.03 < (visits.fid == 3).mean() < 0.25 or (visits.fid == 3).sum() < 3
    assert ((visits.jd - 2457754.5) // 1 == visits.nid).all()
    assert 19.0 < np.median(visits.limit[visits.fid == 1]) < 21.0
    assert season.first_nid <= season.switch_nid <= season.last_nid
    assert night_date(2695) == "20240519"


def test_positions_against_astropy() -> None:
    from astropy.coordinates import SkyCoord
    from astropy.wcs import WCS

    field = Field(500, 123.4, 35.6)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [field.ra, field.dec]
    wcs.wcs.crpix = [1.0, 1.0]
    wcs.wcs.cdelt = [1.0, 1.0]
    for east, north in ((0.0, 0.0), (3.2, -2.5), (-1.0, 3.6)):
        ra, dec = sky_position(field, east, north)
        expected = wcs.wcs_pix2world([[east, north]], 0)[0]
        assert (ra, dec) == pytest.approx(tuple(expected), abs=1e-8)
        assert galactic_b(ra, dec) == pytest.approx(SkyCoord(ra, dec, unit="deg").galactic.b.deg, abs=1e-3)
    corners = {channel_offset_deg(rcid, 1536.0, 1540.0) for rcid in range(64)}
    assert len(corners) == 64
    assert max(abs(e) for e, _ in corners) < 3.7


def test_spectra_table_and_lines(small: Small) -> None:
    rows = pq.read_table(small.folder / "spectra.parquet").to_pylist()
    kinds = {t["objectId"]: t for t in small.truth}
    assert rows
    for row in rows:
        wave, flux = np.array(row["wavelength"]), np.array(row["flux"])
        assert len(wave) == len(flux) > 100
        assert (np.diff(wave) > 0).all()
        assert np.isfinite(flux).all()
        assert 1e-19 < np.median(flux) < 1e-12
        truth = kinds[row["objectId"]]
        assert row["redshift"] is None or row["redshift"] == pytest.approx(truth["z"], abs=1e-4)


def test_agn_shows_broad_h_alpha_at_its_redshift() -> None:
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(20):
        source = variables.agn(rng, PEAK, PEAK + 60)
        assert source.redshift is not None
        centre = 4861.3 * (1 + source.redshift)
        if not 4800 < centre < 8000:
            continue
        wave, flux = make_spectrum(source, 60200.0, 18.0, rng)
        line = flux[np.abs(wave - centre) < 30].mean()
        aside = flux[
            (np.abs(wave - centre) > 250 * (1 + source.redshift)) & (np.abs(wave - centre) < 600)
        ].mean()
        found += line > aside
    assert found >= 5
