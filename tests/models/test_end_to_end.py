"""Upstream's checkpoint forms imported and classified with; every logit is computed a second time, by hand.

The second way shares nothing with the pipeline but the networks (whose golden tests are beside this file) and
the packets: plain loops from the packet's fields to the network's input, as the golden README describes it.
Real spectra are given to objects of the archive; they need not be theirs to be numbers.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from astropy.io import fits
from torch import Tensor, nn

from applecider_batch.archive.ingest import ingest
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.read import read_catalog
from applecider_batch.catalog.verify import verify_catalog
from applecider_batch.cli.main import run as command
from applecider_batch.engine import api
from applecider_batch.errors import UserError
from applecider_batch.models import build_network
from applecider_batch.models.importing import import_checkpoint
from applecider_batch.models.model_set import ModelSet, update_files
from applecider_batch.models.use import use_network
from applecider_batch.schema import load_answers
from applecider_batch.taxonomy import CLASS_KEYS, CLASSES
from tests.models.golden import seed_weights
from tests.models.test_importing import golden_checkpoint

NIGHTS = 6
N_SPECTRA = 4
NINE = ["AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE"]
NINE_TO_FIVE = {"AGN": 3, "CV": 2, "TDE": 4} | {n: 0 if n[1] in "abc" else 1 for n in NINE if n[0] == "I"}
MEAN, STD = np.float32([2.0, 1.0, 2.5, 0.1]), np.float32([1.0, 1.0, 0.5, 0.2])
PHOTOMETRY = {"photometry": {"mean": MEAN.tolist(), "std": STD.tolist()}}
FIELDS = [
    "sgscore1", "sgscore2", "distpsnr1", "distpsnr2", "nmtchps", "sharpnr", "scorr", "ra", "dec",
    "diffmaglim", "sky", "ndethist", "ncovhist", "sigmapsf", "chinr", "magpsf",
]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A file as upstream writes it: the golden spec of its weights and how it is packed."""

    spec: str
    network: str
    packing: str
    classes: list[str]
    same_as: str = ""  # network with the file's own parameter names, where the import renames them


SETS: dict[str, tuple[str, list[Checkpoint]]] = {
    "main": (
        "upstream-main",
        [
            Checkpoint("photo_cls", "cls_transformer", "module.pth", list(CLASSES)),
            Checkpoint("astrominn", "astrominn", "plain.pt", list(CLASSES)),
            Checkpoint("spectranet", "spectranet", "tensors.safetensors", NINE),
        ],
    ),
    "paper-era": (
        "upstream-main",
        [Checkpoint("photo_baselinecls", "cls_transformer", "nested.pth", list(CLASSES), "baseline_cls")],
    ),
    "archive": (
        "upstream-archive",
        [
            Checkpoint("photo_baselinecls", "baseline_cls", "plain.pt", list(CLASSES)),
            Checkpoint("xastrominn_d32", "xastrominn", "module.pth", list(CLASSES)),
            Checkpoint("spectranet_tripool", "spectranet_tripool", "nested.pth", list(CLASSES)),
        ],
    ),
    "archive, nine classes": (
        "upstream-archive",
        [Checkpoint("spectranet_archive", "spectranet", "tensors.safetensors", NINE)],
    ),
}
MODALITY = {"cls_transformer": "phot", "baseline_cls": "phot", "astrominn": "img", "xastrominn": "img"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Sky:
    """The archive, its objects known from one packet, and the spectra given to some of them."""

    url: str
    packets: dict[str, dict[str, Any]]
    spectra: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def sky(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sky:
    import fastavro

    folder = tmp_path_factory.mktemp("sky")
    tarballs = sorted((shared_data / "alerts" / "archive").glob("*.tar.gz"))[-NIGHTS:]
    packets: dict[str, list[dict[str, Any]]] = {}
    for tarball in tarballs:
        with tarfile.open(tarball) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    for packet in fastavro.reader(io.BytesIO(file.read())):
                        packets.setdefault(packet["objectId"], []).append(packet)
    single = {name: found[0] for name, found in sorted(packets.items()) if len(found) == 1}
    rows = pq.read_table(
        shared_data / "spectra" / "spectra.parquet",
        columns=["wavelength", "flux", "redshift", "flux_kind", "class5"],
    ).slice(0, 400)
    kept = [r for r in rows.to_pylist() if r["redshift"] and "flat" not in (r["flux_kind"] or "")]
    given = dict(zip(single, kept[:: len(kept) // N_SPECTRA][:N_SPECTRA], strict=False))
    table = [
        {"objectId": n, **{k: r[k] for k in ("wavelength", "flux", "redshift")}} for n, r in given.items()
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "spectra.parquet")
    ingest([str(t) for t in tarballs], str(folder / "archive"), spectra=[str(folder / "spectra.parquet")])
    return Sky(str(folder / "archive"), single, given)


# --- the second way: from a packet to a network's input, one number at a time


def merged_events(packet: dict[str, Any]) -> list[tuple[float, int, float, float]]:
    """(jd, fid, flux, error) of the events of a packet's history, in time order."""
    seen, points = set(), []
    now = packet["candidate"]["jd"]
    # Of two detections in one exposure upstream keeps the first of the packet's list; the archive, where
    # packets of several sources meet, has no such order: it keeps the alert's own, then the smaller candid.
    history = [p for p in packet["prv_candidates"] or [] if p["candid"] is not None]
    for p in [packet["candidate"], *sorted(history, key=lambda p: p["candid"])]:
        key = (p["fid"], round(p["jd"], 5))
        if p["magpsf"] is not None and key not in seen and now - 30 <= p["jd"] <= now:
            seen.add(key)
            flux = 10 ** (-0.4 * (p["magpsf"] - 23.9))
            points.append((p["jd"], p["fid"], flux, p["sigmapsf"] / (2.5 / math.log(10)) * flux))
    events = []
    for fid in (1, 2, 3):
        group: list[tuple[float, int, float, float]] = []
        band = sorted(p for p in points if p[1] == fid)
        for number, p in enumerate(band):
            group.append(p)
            if number + 1 == len(band) or band[number + 1][0] - group[0][0] > 0.5:
                weights = [1 / (g[3] + 1e-8) for g in group]
                jd, flux, error = (
                    sum(w * g[i] for w, g in zip(weights, group, strict=True)) / sum(weights)
                    for i in (0, 2, 3)
                )
                events.append((jd, fid, flux, error))
                group = []
    return sorted(events)


def photometry_of(packet: dict[str, Any]) -> tuple[Tensor, ...]:
    rows, events = [], merged_events(packet)
    before = events[0][0]
    for jd, fid, flux, error in events:
        flux32 = max(np.float32(flux), np.float32(1e-6))
        four = [math.log1p(jd - events[0][0]), math.log1p(jd - before), np.log10(flux32)]
        four.append(error / math.log(10) / float(flux32))
        rows.append(
            [*((np.float32(four) - MEAN) / (STD + np.float32(1e-8))), *(float(fid == f) for f in (1, 2, 3))]
        )
        before = jd
    return torch.tensor(np.float32(rows))[None], torch.ones(1, len(rows), dtype=torch.bool)


def metadata_of(packet: dict[str, Any]) -> Tensor:
    c, events = packet["candidate"], merged_events(packet)
    brightest = max(events, key=lambda e: e[2])  # the first of equals
    values = {"ra": c["ra"] / 180 - 1, "dec": c["dec"] / 90}
    row = [values.get(name, c.get(name)) for name in FIELDS]
    row += [c["ncovhist"] - c["ndethist"], c.get("classtar"), c["fid"]]
    row += [c["jd"] - brightest[0], brightest[0] - events[0][0], c["jd"] - events[0][0]]
    row += [-2.5 * math.log10(brightest[2]), -2.5 * math.log10(min(e[2] for e in events))]
    return torch.tensor(
        [[-999.0 if v is None or not math.isfinite(v) else v for v in row]], dtype=torch.float32
    )


def image_of(packet: dict[str, Any], profile: str) -> Tensor:
    """Stamps from the first pixel on; the archive's with L2 norm 1, 1e-9 outside, and the radial channel."""
    archive = profile == "upstream-archive"
    out = np.full((3, 63, 63), 1e-9 if archive else 0.0, np.float32)
    for channel, name in enumerate(("Science", "Template", "Difference")):
        data = gzip.decompress(packet[f"cutout{name}"]["stampData"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy on the packets' headers
            with fits.open(io.BytesIO(data)) as hdus:
                stamp = np.nan_to_num(np.asarray(hdus[0].data, np.float32), nan=0.0)
        norm = np.linalg.norm(stamp) if archive else 1
        out[channel, : stamp.shape[0], : stamp.shape[1]] = stamp / (norm or 1)
    if archive:
        radial = [[[math.hypot(y - 31, x - 31) / math.hypot(31, 31) for x in range(63)] for y in range(63)]]
        out = np.concatenate([out, np.float32(radial)])
    return torch.from_numpy(out)[None]


def spectrum_of(spectrum: dict[str, Any], profile: str) -> Tensor:
    wave, flux = (np.asarray(spectrum[k], np.float64) for k in ("wavelength", "flux"))
    if profile == "upstream-archive":
        wave = wave / (1 + spectrum["redshift"])
        grid = np.linspace(3850, 8500, 4096)
        y = np.interp(grid, wave, flux)
        inside = (grid >= wave[0]) & (grid <= wave[-1]) & (y != 0)
        y = np.where(inside, (y - y[inside].mean()) / y[inside].std(), 0.0)
    else:
        grid = np.arange(4500.0, 7981.0)
        y = np.interp(grid, wave, flux)
        for end, far in ((0, grid < wave[0]), (-1, grid > wave[-1])):
            a, b = (0, 1) if end == 0 else (-2, -1)
            y[far] = flux[end] + (grid[far] - wave[end]) * (flux[b] - flux[a]) / (wave[b] - wave[a])
        y = (y - y.mean()) / np.median(np.abs(y - np.median(y)))
    return torch.tensor(y[None, None], dtype=torch.float32)


def five_of(logits: np.ndarray, classes: list[str]) -> np.ndarray:
    """The network's own five logits, or the logarithms of summed probabilities of its nine classes."""
    if len(classes) == 5:
        return logits
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    out = np.zeros(5)
    for name, value in zip(classes, p, strict=True):
        out[NINE_TO_FIVE[name]] += value
    return np.log(out)


# --- the pipeline


def pack(state: dict[str, Tensor], packing: str, folder: Path) -> Path:
    file = folder / packing
    if packing.startswith("module"):
        torch.save({"epoch": 7, "model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}, file)
    elif packing.startswith("nested"):
        torch.save({"model_state_dict": state, "optimizer_state_dict": {"lr": [1e-3]}}, file)
    elif packing.endswith("safetensors"):
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    return file


def networks_of(golden: Path, folder: Path, which: str) -> dict[str, tuple[nn.Module, Checkpoint]]:
    """Import the set's checkpoints; returns by modality the same network, built without the set."""
    profile, checkpoints = SETS[which]
    found = {}
    for c in checkpoints:
        modality = MODALITY.get(c.network, "spec")
        card: dict[str, Any] = {"class_order": c.classes}
        card |= {"phot": {"normalisation": PHOTOMETRY}, "img": {"normalisation": {"metadata": None}}}.get(
            modality, {}
        )
        file = pack(golden_checkpoint(golden, c.spec), c.packing, folder)
        report = import_checkpoint(file, profile, folder / "set", network=c.network, card=card)
        assert report["default"]
        assert set(report) == set(load_answers()["models import"])
        found[modality] = (seed_weights(build_network(profile, c.same_as or c.network)), c)
    return found


def by_hand(network: nn.Module, modality: str, sky: Sky, name: str, profile: str) -> np.ndarray:
    if modality == "phot":
        return network(*photometry_of(sky.packets[name]))[0].numpy()
    if modality == "img":
        return network(image_of(sky.packets[name], profile), metadata_of(sky.packets[name]))[0].numpy()
    return network(spectrum_of(sky.spectra[name], profile))[0].numpy()


@pytest.mark.parametrize("which", SETS)
def test_the_catalogue_holds_the_logits_computed_by_hand(
    sky: Sky, shared_golden: Path, tmp_path: Path, which: str
) -> None:
    networks = networks_of(shared_golden, tmp_path, which)
    result = api.classify(
        sky.url, str(tmp_path / "set"), str(tmp_path / "run"), horizons=(None,), device="cpu", progress=False
    )
    assert (result["state"], result["trained"], result["objects_in_error"]) == ("complete", True, 0)
    build_catalog(str(tmp_path / "run"), str(tmp_path / "catalogue"))
    assert verify_catalog(str(tmp_path / "catalogue"))["ok"]
    rows = [r for r in read_catalog(str(tmp_path / "catalogue")).to_dicts() if r["objectId"] in sky.packets]
    shutil.rmtree(tmp_path / "set")
    for modality, (network, checkpoint) in networks.items():
        compared = []
        for row in rows:
            logits = [row[f"logit_{modality}_{key}"] for key in CLASS_KEYS]
            if logits[0] is None:
                continue
            hand = five_of(
                by_hand(network, modality, sky, row["objectId"], SETS[which][0]), checkpoint.classes
            )
            scale = 2e-4 if modality == "img" else 5e-5
            np.testing.assert_allclose(logits, hand, rtol=scale, atol=scale, err_msg=row["objectId"])
            compared.append(row["objectId"])
        if modality == "spec":  # an object without t0 has no episode that a spectrum could belong to
            assert compared == [r["objectId"] for r in rows if r["objectId"] in sky.spectra and r["t0"]]
        assert len(compared) >= (2 if modality == "spec" else 5), f"{modality}: {compared}"


def test_the_network_in_use_is_chosen_in_the_set(
    sky: Sky, shared_golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, profile = tmp_path / "set", "upstream-main"
    for spec, network in (("photo_cls", "cls_transformer"), ("photo_baselinecls", "baseline_cls")):
        card = {"class_order": list(CLASSES), "normalisation": PHOTOMETRY}
        file = pack(golden_checkpoint(shared_golden, spec), "plain.pt", tmp_path)
        import_checkpoint(file, profile, folder, network=network, card=card)
    file = pack(golden_checkpoint(shared_golden, "photo_mpt"), "plain.pt", tmp_path)
    import_checkpoint(
        file, profile, folder, network="cls_transformer_mpt", card={"normalisation": PHOTOMETRY}
    )
    update_files(folder, calibration={"calibrated": True, "temperatures": {"photometry": 2.0}})
    before = ModelSet.load(folder)
    assert set(before.summary()) == set(load_answers()["models info"]) == set(load_answers()["models init"])
    assert before.defaults["photometry"].name == "baseline_cls"
    assert not use_network(folder, "baseline_cls")["changed"]
    assert ModelSet.load(folder).digest == before.digest, "nothing to change, nothing changed"

    assert command(["models", "use", str(folder), "cls_transformer", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == set(load_answers()["models use"])
    after = ModelSet.load(folder)
    assert (answer["instead_of"], answer["changed"]) == ("baseline_cls", True)
    assert answer["model_set_digest"] == after.digest != before.digest
    assert after.defaults["photometry"].name == "cls_transformer"
    assert not after.calibration["calibrated"], "temperatures belong to the network they were fitted with"
    with pytest.raises(UserError, match="has no network 'informer'"):
        use_network(folder, "informer")
    with pytest.raises(UserError, match="does not classify"):
        use_network(folder, "cls_transformer_mpt")
    assert ModelSet.load(folder).digest == after.digest

    api.classify(sky.url, str(folder), str(tmp_path / "run"), horizons=(None,), device="cpu", progress=False)
    build_catalog(str(tmp_path / "run"), str(tmp_path / "catalogue"))
    network_ = seed_weights(build_network(profile, "cls_transformer"))
    rows = read_catalog(str(tmp_path / "catalogue")).to_dicts()
    row = next(r for r in rows if r["objectId"] in sky.packets and r["logit_phot_sni"] is not None)
    np.testing.assert_allclose(
        [row[f"logit_phot_{key}"] for key in CLASS_KEYS],
        by_hand(network_, "phot", sky, row["objectId"], profile),
        rtol=5e-5,
        atol=5e-5,
    )
