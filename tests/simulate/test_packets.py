"""Packets against ZTF's own schema, their histories, and their stamps against astropy."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from applecider_batch.simulate.avro_schema import alert_schema
from applecider_batch.simulate.packets import NightTar, zigzag
from applecider_batch.simulate.stamps import crop_bounds, effective_pixels, moffat_alpha

from .conftest import Small, image_of


def flat_types(schema: Any) -> dict[str, list[tuple[str, frozenset[str], Any]]]:
    """Record name -> [(field, set of its types, default)]; records by their short name."""
    out: dict[str, list[tuple[str, frozenset[str], Any]]] = {}

    def name_of(kind: Any) -> list[str]:
        if isinstance(kind, list):
            return [name for item in kind for name in name_of(item)]
        if isinstance(kind, dict):
            if kind["type"] == "record":
                walk(kind)
                return [kind["name"].split(".")[-1]]
            if kind["type"] == "array":
                return [f"array<{name_of(kind['items'])[0]}>"]
            return name_of(kind["type"])
        return [kind.split(".")[-1]]

    def walk(record: dict[str, Any]) -> None:
        fields = [
            (f["name"], frozenset(name_of(f["type"])), f.get("default", "none")) for f in record["fields"]
        ]
        out[record["name"].split(".")[-1]] = fields

    walk(schema)
    return out


@pytest.mark.parametrize("version", ["3.3", "4.02"])
def test_schema_is_ztfs(version: str, shared_data: Path) -> None:
    ours = flat_types(alert_schema(version))
    found = 0
    for path in sorted((shared_data / "alerts" / "archive").glob("*.tar.gz")):
        with tarfile.open(path) as tar:
            for member in tar:
                handle = tar.extractfile(member)
                assert handle is not None
                reader = fastavro.reader(io.BytesIO(handle.read()))
                schema: Any = reader.writer_schema
                if schema.get("version") == version:
                    assert flat_types(schema) == ours
                    found += 1
    assert found


def test_histories_lie_strictly_within_thirty_days_before(small: Small) -> None:
    limits = detections = 0
    for packet in small.packets:
        jd = packet["candidate"]["jd"]
        for point in packet["prv_candidates"] or []:
            assert jd - 30.0 <= point["jd"] < jd
            if point["magpsf"] is None:
                assert point["candid"] is None
                assert point["isdiffpos"] is None
                assert 14.0 < point["diffmaglim"] < 22.5
                limits += 1
            else:
                assert point["candid"] > 0
                detections += 1
        for point in packet.get("fp_hists") or []:
            assert jd - 30.0 <= point["jd"] < jd
    assert limits > 100
    assert detections > 100


def test_a_history_point_repeats_what_its_own_packet_said(small: Small) -> None:
    own = {p["candid"]: p["candidate"] for p in small.packets}
    compared = orphans = 0
    for packet in small.packets:
        for point in packet["prv_candidates"] or []:
            if point["candid"] in own:
                candidate = own[point["candid"]]
                for name in point:
                    assert point[name] == candidate[name], name
                compared += 1
            elif point["candid"] is not None:
                orphans += 1
    assert compared > 100
    assert orphans > 0  # points that only a later packet brings


def test_forced_photometry_is_revised(small: Small) -> None:
    seen: dict[tuple[str, float, int], set[float]] = {}
    for packet in small.packets:
        if packet["schemavsn"] == "3.3":
            assert "fp_hists" not in packet
            continue
        for point in packet["fp_hists"] or []:
            assert (point["forcediffimflux"] == -99999.0) == (point["procstatus"] == "61")
            seen.setdefault((packet["objectId"], point["jd"], point["pid"]), set()).add(
                point["forcediffimflux"]
            )
    assert any(len(values) > 1 for values in seen.values())


def test_history_counts(small: Small) -> None:
    reached_back = 0
    for group in small.by_object().values():
        before = 0
        for packet in group:
            c = packet["candidate"]
            assert 1 <= c["ndethist"] <= c["ncovhist"]
            assert c["ndethist"] > before
            before = c["ndethist"]
            assert c["jdstarthist"] <= c["jdendhist"] == c["jd"]
            known = {p["jd"] for p in packet["prv_candidates"] or [] if p["magpsf"] is not None}
            assert c["ndethist"] >= len(known) + 1
            if known:
                assert c["jdstarthist"] <= min(known)
            reached_back += c["jd"] - c["jdstarthist"] > 30.0
    assert reached_back


def test_derived_columns_agree(small: Small) -> None:
    for packet in small.packets:
        c = packet["candidate"]
        assert c["magdiff"] == pytest.approx(c["magap"] - c["magpsf"], abs=1e-4)
        assert c["magfromlim"] == pytest.approx(c["diffmaglim"] - c["magap"], abs=1e-4)
        assert c["dsdiff"] == pytest.approx(c["dsnrms"] - c["ssnrms"], rel=1e-4, abs=1e-3)
        assert c["elong"] == pytest.approx(c["aimage"] / c["bimage"], rel=1e-4)
        assert c["aimagerat"] == pytest.approx(c["aimage"] / c["fwhm"], rel=1e-4)
        assert c["candid"] // 1_000_000 == c["pid"]
        assert c["candid"] == packet["candid"]
        assert (c["ssdistnr"] == -999.0) == (c["ssnamenr"] == "null")
        assert c["distpsnr1"] == -999.0 or c["distpsnr1"] <= c["distpsnr2"] or c["distpsnr2"] == -999.0


def test_alerts_are_five_sigma(small: Small) -> None:
    # The 5 sigma limit is that of the sky alone; over a bright star the noise, and so the error, is larger.
    for packet in small.packets:
        c = packet["candidate"]
        assert c["sigmapsf"] < np.hypot(1.0857 / 5.0, 0.012) + 1e-6
        assert c["magpsf"] < c["diffmaglim"] + 0.01


def test_stamps(small: Small) -> None:
    cropped = bordered = without = 0
    for packet in small.packets:
        cutouts = [packet[f"cutout{name}"] for name in ("Science", "Template", "Difference")]
        if cutouts[0] is None:
            without += 1
            continue
        images = [image_of(c) for c in cutouts]
        assert {im.shape for im in images} == {images[0].shape}
        assert all(im.dtype.kind == "f" and im.dtype.itemsize == 4 for im in images)
        c = packet["candidate"]
        if images[0].shape != (63, 63):
            assert c["mindtoedge"] < 32
            cropped += 1
        bordered += bool(np.isnan(images[1]).any())
        side = "refmsci" if c["isdiffpos"] == "f" else "scimref"
        assert side in cutouts[2]["fileName"]
        assert str(c["candid"]) in cutouts[0]["fileName"]
    assert bordered
    assert cropped + without < 0.2 * len(small.packets)


def test_difference_stamp_holds_the_flux_of_magpsf(small: Small) -> None:
    """Aperture sum of radius 7 px by hand, against 10^(0.4 (zero point - magpsf)); positive either way."""
    ratios = []
    moving = {t["objectId"] for t in small.truth if t["gate"] == "artefact"}
    y, x = np.mgrid[-31:32, -31:32]
    for packet in small.packets:
        c = packet["candidate"]
        if packet["cutoutDifference"] is None or packet["objectId"] in moving:
            continue
        image = image_of(packet["cutoutDifference"])
        if image.shape != (63, 63) or np.isnan(image).any() or c["sigmapsf"] > 0.05:
            continue
        flux = 10 ** (0.4 * (c["magzpsci"] - c["magpsf"]))
        total = float(image[x**2 + y**2 <= 49].sum())
        ratios.append(total / flux)
        assert -2.5 * np.log10(total) + c["magzpsci"] == pytest.approx(c["magap"], abs=0.25)
    assert len(ratios) > 50
    assert np.median(ratios) == pytest.approx(1.0, abs=0.06)
    assert np.percentile(ratios, 5) > 0.6
    assert np.percentile(ratios, 95) < 1.4


def test_science_minus_template_holds_it_too(small: Small) -> None:
    """Where nothing else shines, science minus template minus sky is the difference, with its sign."""
    checked = 0
    for packet in small.packets:
        c = packet["candidate"]
        if packet["cutoutScience"] is None or c["distpsnr1"] < 8 or c["sigmapsf"] > 0.09 or c["rb"] < 0.6:
            continue
        science, template = image_of(packet["cutoutScience"]), image_of(packet["cutoutTemplate"])
        if science.shape != (63, 63) or np.isnan(template).any():
            continue
        core = slice(28, 35)
        signal = (science[core, core] - np.median(science)).sum() - (
            template[core, core] - np.median(template)
        ).sum()
        flux = 10 ** (0.4 * (c["magzpsci"] - c["magpsf"])) * (1 if c["isdiffpos"] == "t" else -1)
        assert signal / flux == pytest.approx(1.0, abs=0.45)
        checked += 1
    assert checked > 3


def test_moffat_numbers() -> None:
    y, x = np.mgrid[-200:201, -200:201] / 4.0
    for fwhm in (1.8, 2.5, 4.0):
        alpha = float(moffat_alpha(np.array(fwhm)))
        profile = 2.0 / (np.pi * alpha**2) * (1 + (x**2 + y**2) / alpha**2) ** -3.0
        assert profile.sum() / 16 == pytest.approx(1.0, abs=2e-3)
        assert (1 + (fwhm / 2) ** 2 / alpha**2) ** -3.0 == pytest.approx(0.5)
        assert 16 / (profile**2).sum() == pytest.approx(float(effective_pixels(np.array(fwhm))), rel=1e-3)


def test_crop_bounds() -> None:
    assert crop_bounds(1500.0, 1500.0, 3072, 3080) == (0, 63, 0, 63)
    assert crop_bounds(20.2, 1500.0, 3072, 3080) == (0, 63, 11, 63)
    assert crop_bounds(1500.0, 3071.0, 3072, 3080) == (0, 40, 0, 63)


@pytest.mark.parametrize("value", [0, -1, 1, 63, 64, -64, 2**31, -(2**31), 2695378462115010012, 2**63 - 1])
def test_zigzag_is_avros_long(value: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema({"type": "long"}), value)
    assert zigzag(value) == out.getvalue()


def test_night_tar_is_an_ordinary_tar_gz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = {f"{k}.avro": rng.bytes(int(size)) for k, size in enumerate([0, 1, 511, 512, 513, 2_500_000])}
    tar = NightTar(tmp_path / "night.tar.gz")
    for name, data in members.items():
        tar.add(name, data)
    assert not (tmp_path / "night.tar.gz").exists()
    tar.close()
    with tarfile.open(tmp_path / "night.tar.gz", "r:gz") as read:
        back = {m.name: read.extractfile(m).read() for m in read}  # type: ignore[union-attr]
        assert {m.mtime for m in read.getmembers()} == {0}
    assert back == members
    empty = NightTar(tmp_path / "empty.tar.gz")
    empty.close()
    with tarfile.open(tmp_path / "empty.tar.gz", "r:gz") as read:
        assert read.getmembers() == []
