"""Figures: light curves, stamps, sky, spectra against independent calculations."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pyarrow as pa
import pytest

from applecider_batch.report.candidates import light_curve_of
from applecider_batch.report.light_curve import LightCurve, light_curve_svg, ticks
from applecider_batch.report.png import png, stretch
from applecider_batch.report.sky_map import _galactic_plane, mollweide, sky_map_svg
from applecider_batch.report.spectrum import spectrum_svg
from tests.report.conftest import NAMES, photometry_of

T0 = 2459000.5


def _curve() -> LightCurve:
    curve = light_curve_of(photometry_of(NAMES[0], T0), NAMES[0])
    assert curve is not None
    return curve


def _paths(svg: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in ElementTree.fromstring(svg).iter("path"):
        found.setdefault(path.attrib["class"], []).append(path.attrib["d"])
    return found


def test_light_curve_has_signs_limits_and_the_last_forced_revision() -> None:
    curve = _curve()
    assert len(curve) == 8
    negative = curve.flux < 0
    assert negative.sum() == 1
    assert curve.flux[negative][0] == pytest.approx(-(10 ** (-0.4 * (19.5 - 23.9))), rel=1e-6)
    assert curve.flux[curve.forced].tolist() == pytest.approx(
        [200.0 * 10 ** (-0.4 * (26.0 - 23.9))], rel=1e-6
    )
    assert curve.limit_flux.tolist() == pytest.approx([10 ** (-0.4 * (20.5 - 23.9))] * 3, rel=1e-6)
    assert light_curve_of(photometry_of(NAMES[0], T0), "ZTF00other") is None


def test_svg_draws_every_point_with_its_marker() -> None:
    paths = _paths(light_curve_svg(_curve(), T0, [3.0, 30.0], 'A "title" <b>'))
    assert paths["pt g"][0].count("M") == 3
    assert paths["pt r"][0].count("M") == 3
    assert paths["pt r neg"][0].count("M") == 1
    assert paths["pt fp g"][0].count("M") == 1
    assert paths["lim g"][0].count("M") == 3
    assert "a4" in paths["pt g"][0]  # circles
    assert "h" in paths["pt r"][0]  # squares
    zero = float(re.search(r"M54 ([\d.]+)H", paths["zero"][0])[1])  # type: ignore[index]
    below = float(re.match(r"M[\d.]+ ([\d.]+)", paths["pt r neg"][0])[1])  # type: ignore[index]
    above = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)", paths["pt r"][0])]
    assert below > zero > max(above)
    assert len(paths["hz"]) == 3


def test_svg_of_limits_only_and_of_wild_errors() -> None:
    empty = np.empty(0)
    only = LightCurve(empty, empty, empty, empty.astype(int), empty.astype(bool), np.array([T0]),
                      np.array([9.0]),                       np.array([2]))  # fmt: skip
    assert "lim r" in _paths(light_curve_svg(only, T0, [], "x"))
    wild = LightCurve(np.array([T0, T0 + 1]), np.array([10.0, 12.0]), np.array([1.0, 1e9]), np.array([1, 3]),
                      np.zeros(2, bool), empty, empty, empty.astype(int))  # fmt: skip
    svg = light_curve_svg(wild, T0, [], "x")
    assert "nan" not in svg
    ys = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)a4", svg)]
    assert max(ys) < 304  # the first point is not pressed onto the bottom edge by the second one's error


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 71), (1e-4, 9e-4), (-2e5, 3e6)])
def test_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    found = ticks(low, high, 6)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    step = found[1] - found[0]
    assert step / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(1) or round(
        step / 10 ** np.floor(np.log10(step))
    ) in (1, 2, 5)


def test_png_is_read_back_by_another_reader() -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    values = np.linspace(0, 1, 12).reshape(3, 4)
    values[0, 0] = np.nan
    back = np.asarray(image.open(io.BytesIO(png(values))))
    assert back.shape == (3, 4, 2)
    flipped = values[::-1]
    known = np.isfinite(flipped)
    assert np.array_equal(back[..., 1] == 255, known)
    assert np.abs(back[..., 0][known] / 255 - flipped[known]).max() < 0.5 / 255 + 1e-9


def test_png_chunks_have_their_checksums() -> None:
    data = png(np.zeros((2, 2)))
    at = 8
    kinds = []
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kinds.append(data[at + 4 : at + 8])
        (check,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(data[at + 4 : at + 8 + size])
        at += 12 + size
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def test_stretch_is_monotonic_and_bounded() -> None:
    image = np.random.default_rng(0).normal(100, 3, (40, 40))
    image[20, 20] = 5000.0
    image[0, 0] = np.nan
    out = stretch(image)
    assert np.isnan(out[0, 0])
    assert np.isnan(out).sum() == 1
    assert np.nanmin(out) >= 0
    assert out[20, 20] == 1.0
    order = np.argsort(image[np.isfinite(image)])
    assert (np.diff(out[np.isfinite(image)][order]) >= 0).all()
    assert np.isnan(stretch(np.full((3, 3), np.nan))).all()
    assert np.isfinite(stretch(np.ones((3, 3)))).all()


def test_mollweide_equals_matplotlibs() -> None:
    from matplotlib.projections.geo import MollweideAxes

    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(0, 360, 300), np.degrees(np.arcsin(rng.uniform(-0.9999, 0.9999, 300)))
    x, y = mollweide(ra, dec)
    longitude = np.radians((ra + 180) % 360 - 180)
    want = MollweideAxes.MollweideTransform(60).transform(np.column_stack([longitude, np.radians(dec)]))
    assert np.allclose(x, -want[:, 0] / np.sqrt(2), atol=1e-3)
    assert np.allclose(y, want[:, 1] / np.sqrt(2), atol=1e-3)


def test_galactic_plane_is_at_latitude_zero() -> None:
    from astropy.coordinates import SkyCoord

    line = _galactic_plane()
    drawn = np.array([[float(a), float(b)] for a, b in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)])
    plane = SkyCoord(l=np.linspace(0, 360, 400), b=np.zeros(400), unit="deg", frame="galactic").icrs
    x, y = mollweide(plane.ra.deg, plane.dec.deg)
    here = np.column_stack([310 + 150 * x, 160 - 150 * y])
    gaps = np.sqrt(((drawn[:, None] - here[None]) ** 2).sum(-1)).min(axis=1)
    assert gaps.max() < 4.0


def test_sky_map_counts_cells() -> None:
    svg = sky_map_svg({17: 3, 400: 1}, {9000: 12})
    root = ElementTree.fromstring(svg)
    groups = {g.attrib["class"]: len(list(g)) for g in root.iter("g")}
    assert groups == {"scope": 2, "rest": 1}


def test_spectrum_is_averaged_and_odd_input_is_left_out() -> None:
    wavelength = np.linspace(4000, 8000, 5000)
    svg = spectrum_svg(wavelength, np.sin(wavelength / 100), "s")
    assert 100 < svg.count("L") <= 600
    assert spectrum_svg(np.array([1.0]), np.array([1.0]), "s") == ""
    assert spectrum_svg(np.array([1.0, 2.0]), np.array([np.nan, np.nan]), "s") == ""


def test_photometry_without_rows_is_none() -> None:
    assert light_curve_of(photometry_of(NAMES[0], T0).slice(0, 0), NAMES[0]) is None
    assert isinstance(photometry_of(NAMES[0], T0), pa.Table)
