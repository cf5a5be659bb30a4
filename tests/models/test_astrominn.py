"""AstroMiNN: golden vectors of both upstream forms, the paper's form, batches, caught mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.profiles import PAPER_METADATA, UPSTREAM_METADATA
from applecider_batch.models.astrominn import (
    CONCATENATION,
    PAPER_TOWERS,
    UPSTREAM_TOWERS,
    AstroMiNN,
    TowerBlock,
    build_paper,
    build_upstream,
)
from tests.models.golden import (
    RTOL_F32,
    RTOL_F32_RAW_METADATA,
    RTOL_F64,
    SEED,
    assert_f32,
    assert_f64,
    check_state,
    excess,
    load_spec,
    seed_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = {"depths": (1, 1), "dims": (8, 16)}
# Column numbers as the golden README lists them: an oracle for the towers by name.
README_COLUMNS = {
    "nst1": [0, 2],
    "nst2": [1, 3],
    "spatial": [2, 3, 4],
    "psf": [5, 14],
    "mag": [6, 9, 10, 13, 15, 17, 18],
    "coord": [7, 8],
    "mega": list(range(19)),
    "lc": [6, 9, 10, 13, 15, 17, 18, 19, 20, 21, 22, 23],
}


@pytest.fixture(scope="module")
def golden(shared_golden: Path) -> dict[str, np.ndarray]:
    with np.load(shared_golden / "astrominn.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def main() -> AstroMiNN:
    return seed_weights(build_upstream())


def case(golden: Mapping[str, np.ndarray], name: str) -> tuple[Tensor, Tensor]:
    """Images and metadata of a63, b63, a49 or b49."""
    images = golden["images"] if name.endswith("63") else golden["images"][:, :, 7:56, 7:56]
    metadata = golden["metadata" if name[0] == "a" else "metadata_std"]
    return torch.from_numpy(images.copy()), torch.from_numpy(metadata)


def test_towers_by_name_are_the_readmes_columns() -> None:
    numbers = {t: [UPSTREAM_METADATA.index(n) for n in names] for t, names in UPSTREAM_TOWERS.items()}
    assert numbers == README_COLUMNS


def test_state_dict_is_upstreams(shared_golden: Path, main: AstroMiNN) -> None:
    check_state(main, load_spec(shared_golden, "astrominn"))
    assert sum(p.numel() for p in main.parameters()) == 28_692_160


@pytest.mark.parametrize("name", ["a63", "b63", "a49", "b49"])
def test_golden(golden: dict[str, np.ndarray], main: AstroMiNN, name: str) -> None:
    images, metadata = case(golden, name)
    loose = RTOL_F32_RAW_METADATA if name[0] == "a" else RTOL_F32
    main.float()
    towers = main.tower_outputs(images, metadata)
    for tower in CONCATENATION:
        if f"{name}_{tower}_tower" in golden:
            assert_f32(towers[tower], golden[f"{name}_{tower}_tower"])
    logits, latent = main.forward_with_latent(images, metadata)
    assert torch.equal(latent, torch.cat([towers[t] for t in CONCATENATION], dim=1))
    assert_f32(logits, golden[f"{name}_logits"], loose)
    weights, used = main.router_weights(latent)
    assert_f32(weights, golden[f"{name}_router_weights"])
    chosen = [np.flatnonzero(row).tolist() for row in used.numpy()]
    assert chosen == golden[f"{name}_top2"].tolist()
    main.double()
    logits, latent = main.forward_with_latent(images.double(), metadata.double())
    assert_f64(logits, golden[f"{name}_logits_f64"])
    assert_f64(main.router_weights(latent)[0], golden[f"{name}_router_weights_f64"])
    image = latent[:, 32 * CONCATENATION.index("image") :][:, :32]
    assert_f64(image, golden[f"{name}_image_tower_f64"])
    main.float()


@pytest.mark.parametrize("dims", [32, 4])
def test_archived_form_golden(shared_golden: Path, dims: int) -> None:
    network = build_upstream(in_chans=4, towers_outdims=dims, fusion_outdims=dims)
    check_state(network, load_spec(shared_golden, f"xastrominn_d{dims}"))
    seed_weights(network)
    with np.load(shared_golden / "xastrominn.npz") as data:
        golden = dict(data)
    metadata = torch.from_numpy(golden["metadata"])
    for px, step in ((49, 40), (63, 41)):
        rng = np.random.default_rng(SEED + step)
        images = torch.from_numpy(rng.standard_normal((10, 4, px, px)).astype(np.float32))
        key = f"d{dims}_px{px}"
        logits, latent = network.float().forward_with_latent(images, metadata)
        assert_f32(logits, golden[f"{key}_logits"], RTOL_F32_RAW_METADATA)
        weights, used = network.router_weights(latent)
        assert_f32(weights, golden[f"{key}_router_weights"])
        assert [np.flatnonzero(row).tolist() for row in used.numpy()] == golden[f"{key}_top2"].tolist()
        at = dims * CONCATENATION.index("image")
        assert_f32(latent[:, at : at + dims], golden[f"{key}_image_tower"])
        assert_f64(network.double()(images.double(), metadata.double()), golden[f"{key}_logits_f64"])


def test_batch_size_and_order_change_nothing(golden: dict[str, np.ndarray], main: AstroMiNN) -> None:
    images, metadata = case(golden, "b49")
    together = main(images, metadata)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(4))
    assert excess(main(images[order], metadata[order]), together[order].numpy(), RTOL_F32) <= 1
    alone = torch.cat([main(images[i : i + 1], metadata[i : i + 1]) for i in range(0, 12, 3)])
    assert excess(alone, together[::3].numpy(), RTOL_F32) <= 1


def test_reordered_columns_with_their_names_are_the_same_network(golden: dict[str, np.ndarray]) -> None:
    images, metadata = case(golden, "b49")
    shuffled = np.random.default_rng(5).permutation(24)
    names = tuple(UPSTREAM_METADATA[i] for i in shuffled)
    plain = seed_weights(build_upstream(**TINY))
    other = seed_weights(build_upstream(feature_names=names, **TINY))
    assert torch.equal(plain(images, metadata), other(images, metadata[:, shuffled.tolist()]))


# --- the paper's form ---------------------------------------------------------------------------------------


def paper_inputs(n: int = 6, px: int = 49) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(6)
    metadata = torch.randn(n, len(PAPER_METADATA), generator=gen)
    metadata[:, PAPER_METADATA.index("ra")] = 360 * torch.rand(n, generator=gen)
    metadata[:, PAPER_METADATA.index("dec")] = 180 * torch.rand(n, generator=gen) - 90
    return torch.randn(n, 4, px, px, generator=gen), metadata


@pytest.fixture(scope="module")
def paper() -> AstroMiNN:
    return seed_weights(build_paper(**TINY))


def test_paper_form(paper: AstroMiNN) -> None:
    images, metadata = paper_inputs()
    logits, latent = paper.forward_with_latent(images, metadata)
    assert logits.shape == (6, 5)
    assert latent.shape == (6, 288)
    weights, used = paper.router_weights(latent)
    assert torch.allclose(weights.sum(1), torch.ones(6))
    assert torch.allclose(used.sum(1), torch.ones(6))
    assert (used > 0).sum(1).tolist() == [2] * 6
    # The aggregation written out, expert by expert.
    for i in range(6):
        best = weights[i].argsort(descending=True)[:2]
        expected = sum(weights[i, k] * paper.fusion_experts[int(k)](latent[i]) for k in best)
        assert torch.allclose(logits[i], expected / weights[i, best].sum(), atol=1e-5)
    assert len(PAPER_METADATA) == 20
    assert build_paper().image_tower.backbone.stages[2].blocks[8].gamma.shape == (384,)


# Section 4.1 of the paper, written out: what each tower may and may not see.
PAPER_READS = {
    "psf": {"chinr", "sharpnr", "classtar"},
    "mag": {"magpsf", "sigmapsf", "diffmaglim", "peakmag_so_far"},
    "lc": {"age", "ndethist", "ncovhist", "nnondet"},
    "spatial": {"sky", "nmtchps", "scorr"},
    "nst1": {"sgscore1", "distpsnr1"},
    "nst2": {"sgscore2", "distpsnr2"},
    "coord": {"ra", "dec"},
    "mega": set(PAPER_METADATA),
    "image": {"ra", "dec"},
}


@pytest.mark.parametrize("feature", PAPER_METADATA)
def test_a_feature_moves_its_towers_and_no_other(paper: AstroMiNN, feature: str) -> None:
    images, metadata = paper_inputs(1)
    before = paper.tower_outputs(images, metadata)
    metadata[:, PAPER_METADATA.index(feature)] += 0.5
    after = paper.tower_outputs(images, metadata)
    moved = {tower for tower in before if not torch.equal(before[tower], after[tower])}
    assert moved == {tower for tower, names in PAPER_READS.items() if feature in names}


def test_sky_is_on_a_circle(paper: AstroMiNN) -> None:
    images, metadata = paper_inputs(1)
    ra = PAPER_METADATA.index("ra")
    towers = []
    for value in (0.0, 360.0):
        metadata[:, ra] = value
        towers.append(paper.double().tower_outputs(images.double(), metadata.double()))
    for tower in ("coord", "image"):
        assert torch.allclose(towers[0][tower], towers[1][tower], atol=1e-10)
    paper.float()


def test_tower_without_a_gate() -> None:
    tower = seed_weights(TowerBlock(3, 8, 3, gate=False)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    h = nn.functional.gelu(tower.start_path[0](x))
    expected = tower.main_path[2](nn.functional.layer_norm(h, (8,), *tower.main_path[0].parameters())) + x
    assert torch.allclose(tower(x), expected)
    assert not any(name.startswith(("activation", "skip_path")) for name in tower.state_dict())
    assert not any("activation" in name for name in build_paper(gate=False, **TINY).state_dict())


def test_missing_values_stay_finite(paper: AstroMiNN) -> None:
    images, metadata = paper_inputs(2)
    metadata[0] = -999.0
    out = paper(images, metadata)
    assert torch.isfinite(out).all()
    assert torch.allclose(out[1:], paper(images[1:], metadata[1:]), atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "match"),
    [
        ({"router": "hard"}, "allowed: sigmoid, softmax"),
        ({"top_k": 5}, r"1\.\.4"),
        ({"feature_names": PAPER_METADATA}, "do not have: .*fid"),
        ({"feature_names": ("ra", "ra")}, "twice"),
        ({"towers": {"psf": ("chinr",)}}, "needs the towers"),
    ],
)
def test_contradictory_config_is_refused(cfg: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_upstream(**cfg)


def test_wrong_number_of_columns_is_refused(paper: AstroMiNN) -> None:
    images, metadata = paper_inputs(1)
    with pytest.raises(ValueError, match=r"expected \(B, 20\)"):
        paper(images, metadata[:, :19])


def test_gradients_reach_every_parameter() -> None:
    with torch.inference_mode(False):
        network = build_paper(**TINY).train()
        images, metadata = (t.clone() for t in paper_inputs(8))
        network(images, metadata).square().sum().backward()
        silent = [n for n, p in network.named_parameters() if p.grad is None]
    assert not silent


# --- mistakes that the golden vectors must catch (README, section 2) ----------------------------------------

Mistake = Callable[[AstroMiNN, pytest.MonkeyPatch], None]


def _router(**form: object) -> Mistake:
    def mutate(network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
        for name, value in form.items():
            if name == "router":
                patch.setattr(network.fusion_router[4], "forward", lambda x: x.softmax(-1))
            else:
                # The config is frozen on purpose; a mistake does not ask.
                changed = network.config.__class__(**(vars(network.config) | {name: value}))
                patch.setattr(network, "config", changed)

    return mutate


def _tower_eps(network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("image_tower"):
            patch.setattr(module, "eps", 1e-6)


def _tower_gelu(network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.GELU) and not name.startswith("image_tower"):
            patch.setattr(module, "approximate", "tanh")


def _no_gate(_network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    def forward(self: TowerBlock, x: Tensor) -> Tensor:
        return self.main_path(self.start_path(x)) + self.skip_path(x)

    patch.setattr(TowerBlock, "forward", forward)


def _no_skip(_network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    def forward(self: TowerBlock, x: Tensor) -> Tensor:
        h = self.start_path(x)
        return self.main_path(h) * self.activation(h)

    patch.setattr(TowerBlock, "forward", forward)


def _other_order(network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    """Towers concatenated in the order in which they are registered."""
    order = ("psf", "mag", "lc", "spatial", "nst1", "nst2", "coord", "mega", "image")
    plain = network.tower_outputs

    def embed(images: Tensor, metadata: Tensor) -> Tensor:
        towers = plain(images, metadata)
        return torch.cat([towers[t] for t in order], dim=1)

    patch.setattr(network, "embed", embed)


def _paper_order(network: AstroMiNN, patch: pytest.MonkeyPatch) -> None:
    """The newer preprocessing's order of columns 16 and 17 read by upstream's indices."""
    columns = network._columns_mag.clone()
    columns[columns == 17] = 16
    patch.setitem(network._buffers, "_columns_mag", columns)


MISTAKES: dict[str, Mistake] = {
    "softmax router for sigmoid": _router(router="softmax"),
    "top-2 weights renormalised": _router(renormalise=True),
    "all experts for top-2": _router(top_k=4),
    "tower LayerNorm eps 1e-6 for 1e-5": _tower_eps,
    "tower GELU tanh for erf": _tower_gelu,
    "no gate": _no_gate,
    "no skip path": _no_skip,
    "towers in another order": _other_order,
    "one metadata column off": _paper_order,
}


@pytest.fixture(scope="module")
def double_main() -> AstroMiNN:
    return seed_weights(build_upstream()).double()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_caught(
    golden: dict[str, np.ndarray], double_main: AstroMiNN, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, metadata = (t[:3].double() for t in case(golden, "b49"))
    expected = golden["b49_logits_f64"][:3]
    assert excess(double_main(images, metadata), expected, RTOL_F64) <= 1
    MISTAKES[name](double_main, monkeypatch)
    assert excess(double_main(images, metadata), expected, RTOL_F64) > 100


def test_paper_towers_are_complete() -> None:
    assert set(PAPER_TOWERS) | {"image"} == set(CONCATENATION)
    assert {n for names in PAPER_TOWERS.values() for n in names} == set(PAPER_METADATA)
