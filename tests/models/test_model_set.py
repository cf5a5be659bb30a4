"""Model sets: seeded bytes, digests, several networks, what is refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from applecider_batch.errors import UserError
from applecider_batch.models import model_set
from applecider_batch.models.card import ModelCard, Statistics, class_map_of
from applecider_batch.models.model_set import ModelSet, init_model_set, update_files
from applecider_batch.models.set_checks import list_model_sets, verify_model_set
from applecider_batch.models.use import use_network
from applecider_batch.taxonomy import CLASSES

SMALL: dict[str, dict[str, Any]] = {
    "cls_transformer": {"d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 32},
    "astrominn": {"depths": [1, 1], "dims": [8, 16]},
    "spectranet": {"widths": [4, 4, 4, 4, 4], "hidden": [16, 8], "kernels": [[3, 5, 7]] * 5},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets") / "small"
    init_model_set(path, seed=3, configs=SMALL, networks=("informer",))
    return path


@pytest.fixture
def small(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "small"))


def files(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


def test_equal_seeds_give_equal_bytes_and_others_do_not(original: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    torch.manual_seed(11)  # the caller's own random numbers must not matter, nor move
    expected = torch.rand(3)
    torch.manual_seed(11)
    init_model_set(tmp_path / "again", seed=3, configs=SMALL, networks=("informer",))
    assert torch.equal(torch.rand(3), expected)
    torch.random.set_rng_state(before)
    assert files(tmp_path / "again") == files(original)
    other = init_model_set(tmp_path / "other", seed=4, configs=SMALL)
    assert (tmp_path / "other" / "spectranet.safetensors").read_bytes() != files(original)[
        "spectranet.safetensors"
    ]
    assert other.digest != ModelSet.load(original).digest


def test_what_a_set_says_of_itself(original: Path) -> None:
    loaded = ModelSet.load(original)
    assert not loaded.trained
    assert loaded.name == "untrained-paper-seed3"
    assert loaded.model_set_id == f"untrained-paper-seed3-{loaded.digest[:12]}"
    assert {m: e.name for m, e in loaded.defaults.items()} == {
        "photometry": "cls_transformer",
        "image": "astrominn",
        "spectra": "spectranet",
    }
    assert [e.name for e in loaded.networks["photometry"]] == ["cls_transformer", "informer"]
    assert loaded.calibration["calibrated"] is False
    assert set(loaded.calibration["temperature"].values()) == {1.0}
    assert loaded.anomaly_ref_id is None
    summary = loaded.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert [n["trained"] for n in summary["networks"]] == [False] * 4
    assert "random" in summary["cards"]["astrominn"]["training_data"]
    with pytest.raises(UserError, match="it has astrominn, cls_transformer, informer, spectranet"):
        loaded.entry("resnet")


def test_networks_of_a_set_run_and_have_the_files_weights(original: Path) -> None:
    loaded = ModelSet.load(original)
    for entry in loaded.entries:
        stored = safetensors.torch.load_file(entry.weights_path)
        network = entry.build()
        assert not network.training
        assert all(torch.equal(stored[k], v) for k, v in network.state_dict().items())
        assert not any(p.requires_grad for p in network.parameters())
    photometry, image, spectra = (loaded.defaults[m] for m in ("photometry", "image", "spectra"))
    with torch.inference_mode():
        out = photometry.build()(torch.zeros(2, 3, 7), torch.ones(2, 3, dtype=torch.bool))
        assert out.shape == (2, 5)
        metadata = image.card.standardise_metadata(np.full((2, 20), -999.0, dtype=np.float32))
        assert image.build()(torch.zeros(2, 4, 49, 49), torch.from_numpy(metadata)).isfinite().all()
        nine = spectra.build()(torch.zeros(2, 1, 4096)).numpy()
    assert nine.shape == (2, 9)
    assert spectra.card.to_five(nine).shape == (2, 5)


def test_entries_travel_to_other_processes(original: Path) -> None:
    entry = pickle.loads(pickle.dumps(ModelSet.load(original).entry("cls_transformer")))
    assert entry.build() is not None


@pytest.mark.parametrize(
    "name",
    ["spectranet.safetensors", "astrominn.card.json", "calibration.json", "cls_transformer.safetensors"],
)
def test_a_changed_file_is_refused_with_both_digests(small: Path, name: str) -> None:
    data = bytearray((small / name).read_bytes())
    was = model_set.sha256(bytes(data))
    data[-2] ^= 1
    (small / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"{re.escape(name)}' was changed") as caught:
        ModelSet.load(small)
    assert was in str(caught.value)
    assert model_set.sha256(bytes(data)) in str(caught.value)
    report = verify_model_set(small)
    assert not report["verified"]
    assert name in report["problems"][0]


def test_weights_are_checked_at_build_even_if_not_at_load(small: Path) -> None:
    with open(small / "cls_transformer.safetensors", "r+b") as out:
        out.seek(-4, 2)
        out.write(b"\x00\x00\x80\x3f")
    entry = ModelSet.load(small, check_weights=False).entry("cls_transformer")
    with pytest.raises(UserError, match="was changed"):
        entry.build()


def test_missing_files_and_strange_folders_are_refused(small: Path, tmp_path: Path) -> None:
    (small / "informer.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks the file 'informer\.safetensors'"):
        ModelSet.load(small)
    with pytest.raises(UserError, match=r"There is no model set .*packaged sets are: .*models init"):
        ModelSet.load(tmp_path / "nowhere")
    manifest = small / "model_set.toml"
    text = manifest.read_text()
    for changed, match in (
        ("= =", "is not TOML"),
        (text.replace("model set 1", "model set 9"), "this version reads"),
        (text.replace("weights_sha256", "weights_sha257", 1), r"lacks network\[0\]\.weights_sha256"),
    ):
        manifest.write_text(changed)
        with pytest.raises(UserError, match=match):
            ModelSet.load(small)


def test_another_version_of_the_profile_is_refused(small: Path) -> None:
    card = json.loads((small / "informer.card.json").read_text())
    rewrite_card(small, "informer", card | {"profile_digest": "0" * 32})
    with pytest.raises(UserError, match="made for another version of the profile 'paper'"):
        ModelSet.load(small)


def rewrite_card(path: Path, name: str, card: dict[str, Any]) -> None:
    """Change a card and put its new digest into the manifest, as someone who edits a set would."""
    data = json.dumps(card).encode()
    old = model_set.sha256((path / f"{name}.card.json").read_bytes())
    (path / f"{name}.card.json").write_bytes(data)
    text = (path / "model_set.toml").read_text()
    (path / "model_set.toml").write_text(text.replace(old, model_set.sha256(data)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"surprise": 1}, "unknown fields: surprise"),
        ({"class_order": "SN I"}, "'class_order' is str, it must be array"),
        ({"format": "card 7"}, "this version reads"),
        ({"normalisation": {"photometry": {"mean": [0.0], "std": [1.0]}}}, "1 photometry statistics"),
        ({"normalisation": {"photometry": {"mean": [0.0] * 4, "std": [0.0] * 4}}}, "std > 0"),
        ({"weights": "other.safetensors"}, "speaks of other weights"),
        ({"class_map": [[1.0]]}, "class_map of shape"),
        ({"config": {"d_model": 32}}, "do not fit"),
    ],
)
def test_wrong_cards_are_refused(small: Path, change: dict[str, Any], match: str) -> None:
    card = json.loads((small / "cls_transformer.card.json").read_text())
    rewrite_card(small, "cls_transformer", card | change)
    with pytest.raises(UserError, match=match):
        ModelSet.load(small).entry("cls_transformer").build()


def test_a_card_without_a_field_is_refused(small: Path) -> None:
    card = json.loads((small / "cls_transformer.card.json").read_text())
    del card["class_order"], card["trained"]
    rewrite_card(small, "cls_transformer", card)
    with pytest.raises(UserError, match="lacks the fields class_order, trained"):
        ModelSet.load(small)


def test_no_set_is_overwritten_and_wrong_wishes_are_refused(small: Path, tmp_path: Path) -> None:
    before = files(small)
    with pytest.raises(UserError, match="There is a model set"):
        init_model_set(small)
    assert files(small) == before
    for wish, match in (
        ({"profile": "papers"}, "Unknown profile"),
        ({"seed": -1}, "must not be negative"),
        ({"configs": {"resnet": {}}}, "Config for resnet"),
        ({"networks": ("cls_transformer_mpt",)}, "not one to begin a model set with"),
    ):
        with pytest.raises(UserError, match=match):
            init_model_set(tmp_path / "new", **wish)
    assert not (tmp_path / "new" / "model_set.toml").exists()


def test_calibration_and_anomaly_reference_change_the_identity(small: Path) -> None:
    before = ModelSet.load(small)
    document = before.calibration | {"calibrated": True}
    after = update_files(small, calibration=document, anomaly=("anomaly.bin", b"reference"))
    assert after.calibration["calibrated"] is True
    assert after.anomaly_bytes() == b"reference"
    assert len({before.digest, after.digest}) == 2
    assert before.calibration_id != after.calibration_id
    assert update_files(small, calibration=document).anomaly_bytes() == b"reference"
    (small / "anomaly.bin").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"anomaly\.bin' was changed"):
        ModelSet.load(small)


def test_list_shows_good_and_broken_sets(small: Path) -> None:
    broken = Path(shutil.copytree(small, small.parent / "broken"))
    (broken / "model_set.toml").write_text("format = 3")
    (small.parent / "no set").mkdir()
    listed = {item["name"]: item for item in list_model_sets(small.parent)}
    assert set(listed) == {"compact", "untrained-paper-seed3", "broken"}
    assert listed["untrained-paper-seed3"]["trained"] is False
    assert "this version reads" in listed["broken"]["error"]


def test_a_set_on_an_object_store_is_the_same(
    s3_options: dict[str, Any], s3_url: str, tmp_path: Path
) -> None:
    config = {k: SMALL[k] for k in SMALL}
    remote = init_model_set(f"{s3_url}/sets/one", seed=3, configs=config, storage_options=s3_options)
    local = init_model_set(tmp_path / "one", seed=3, configs=config)
    assert remote.digest == local.digest
    entry = remote.entry("cls_transformer")
    assert torch.equal(entry.build().cls_tok, local.entry("cls_transformer").build().cls_tok)


@pytest.mark.parametrize("profile", ["upstream-main", "upstream-archive"])
def test_upstream_profiles_have_sets_too(profile: str, tmp_path: Path) -> None:
    tiny = {"depths": [1, 1], "dims": [8, 16]}
    name = {"upstream-main": "astrominn", "upstream-archive": "xastrominn"}[profile]
    loaded = init_model_set(tmp_path / "set", profile, configs={name: tiny})
    assert set(loaded.defaults) == {"photometry", "image", "spectra"}
    card = loaded.entry(name).card
    raw = np.array([[np.nan, *range(23)]], dtype=np.float32)
    assert card.standardise_metadata(raw).tolist() == [[-999.0, *range(23)]]
    assert np.isnan(raw[0, 0])
    manifest = tomllib.loads((tmp_path / "set" / "model_set.toml").read_text())
    assert manifest["profile"] == profile


# --- the card
# ------------------------------------------------------------------------------------------------


def card(classes: tuple[str, ...] = CLASSES, **fields: Any) -> ModelCard:
    return ModelCard("n", "paper", "cls_transformer", "photometry", class_order=classes, **fields)


def test_photometry_is_standardised_once_and_not_in_place() -> None:
    statistics = Statistics((1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 4.0, 8.0))
    x = np.arange(14, dtype=np.float32).reshape(2, 7)
    kept = x.copy()
    out = card(normalisation={"photometry": statistics}).standardise_photometry(x)
    assert np.array_equal(x, kept)
    expected = (kept[:, :4] - np.array([1, 2, 3, 4])) / (np.array([1, 2, 4, 8]) + 1e-8)
    assert np.allclose(out[:, :4], expected)
    assert np.array_equal(out[:, 4:], kept[:, 4:])
    assert out.dtype == np.float32


def test_golden_events_are_standardised_as_recorded(shared_golden: Path) -> None:
    with np.load(shared_golden / "photo_cls.npz") as data:
        raw, x, n = data["raw"], data["x"], int(data["lengths"][0])
        mean, std = (tuple(map(float, data[k])) for k in ("mean", "std"))
    events = np.column_stack([np.log1p(raw[:n, :2]), raw[:n, 3:5], np.eye(3)[raw[:n, 2].astype(int)]])
    got = card(normalisation={"photometry": Statistics(mean, std)}).standardise_photometry(events)
    assert np.allclose(got, x[0, :n], atol=2e-6)


def test_metadata_missing_values_are_clipped_and_null_statistics_leave_a_column() -> None:
    statistics = Statistics((10.0, None, 0.0), (2.0, None, 1.0), clip=5.0)
    c = card(feature_names=("a", "ra", "b"), normalisation={"metadata": statistics})
    got = c.standardise_metadata(np.array([[12.0, 359.0, np.nan], [-999.0, 0.5, 3.0]], dtype=np.float32))
    assert got.tolist() == [[1.0, 359.0, -5.0], [-5.0, 0.5, 3.0]]


def test_statistics_must_agree() -> None:
    for mean, std in (((1.0,), (1.0, 2.0)), ((None,), (1.0,)), ((np.nan,), (1.0,))):
        with pytest.raises(UserError, match="std"):
            Statistics(mean, std)
    with pytest.raises(UserError, match="2 metadata statistics for 1 features"):
        card(feature_names=("a",), normalisation={"metadata": Statistics((0.0, 0.0), (1.0, 1.0))})


DATASET = ("AGN", "CV", "IIP", "IIb", "IIn", "Ia", "Ib", "Ic", "TDE")
NOTEBOOK = ("Ia", "Ic", "Ib", "IIn", "IIb", "IIP", "AGN", "CV", "TDE", "SLSN-I")


@pytest.mark.parametrize("order", [DATASET, NOTEBOOK])
def test_spectra_classes_become_five_by_summing_probabilities(order: tuple[str, ...]) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (20, len(order))).astype(np.float32)
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    of = {name: p[:, i] for i, name in enumerate(order)}
    five = np.stack(
        [
            of["Ia"] + of["Ib"] + of["Ic"],
            of["IIP"] + of["IIb"] + of["IIn"],
            of["CV"],
            of["AGN"],
            of["TDE"],
        ],
        axis=1,
    )
    got = np.exp(card(order).to_five(logits).astype(float))
    assert np.allclose(got, five / five.sum(1, keepdims=True), atol=1e-6)
    assert np.allclose(got.sum(1), 1, atol=1e-6)


def test_extreme_and_missing_logits() -> None:
    c = card(DATASET)
    logits = np.full((3, 9), -800.0, dtype=np.float32)
    logits[0, 0] = 800.0
    logits[1, 3] = np.nan
    logits[2, 8] = np.inf
    five = c.to_five(logits)
    assert np.isfinite(five[0]).all()
    assert five[0].argmax() == CLASSES.index("AGN")
    assert np.isnan(five[1]).any()
    assert not np.isfinite(five[2]).all()


def test_five_classes_in_another_order_are_only_reordered() -> None:
    order = ("TDE", "AGN", "CV", "SN II", "SN I")
    logits = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert card(order).to_five(logits).tolist() == logits[:, ::-1].tolist()
    assert card().to_five(logits).tolist() == logits.tolist()


def test_class_names_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="'unknown' cannot be assigned"):
        class_map_of((*CLASSES[:4], "unknown"))
    with pytest.raises(UserError, match="twice"):
        class_map_of((*CLASSES, "TDE"))
    with pytest.raises(UserError, match="no output for TDE"):
        class_map_of(CLASSES[:4])
    explicit = class_map_of((*CLASSES[:4], "nuclear"), {"nuclear": "TDE"})
    assert explicit[4] == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_a_card_survives_its_file() -> None:
    statistics = Statistics((1.0, None), (2.0, None), clip=10.0)
    before = card(
        DATASET, feature_names=("a", "ra"), normalisation={"metadata": statistics, "photometry": None}
    )
    assert ModelCard.from_json(json.loads(json.dumps(before.as_json()))) == before


def test_the_gate_of_a_set(small: Path) -> None:
    before = ModelSet.load(small)
    gate = before.learned_gate()
    assert gate is not None
    assert gate.gate_id == before.gate_id
    assert before.summary()["gate"]["threshold"] == gate.threshold
    # It belongs to the set, not to a network: another one in use leaves it, and resets what was fitted to it.
    use_network(small, "informer")
    assert ModelSet.load(small).gate_id == before.gate_id
    (small / "gate.safetensors").write_bytes(gate.to_bytes() + b"x")
    with pytest.raises(UserError, match=r"gate\.safetensors' was changed"):
        ModelSet.load(small)
    assert any("gate.safetensors" in problem for problem in verify_model_set(small)["problems"])


def test_a_set_without_a_gate_decides_by_rules(small: Path) -> None:
    manifest = small / "model_set.toml"
    text = manifest.read_text()
    start = text.index("[gate]")
    manifest.write_text(text[:start] + text[text.index("[[network]]", start) :])
    alone = ModelSet.load(small)
    assert (alone.gate_id, alone.learned_gate(), alone.summary()["gate"]) == (None, None, None)
