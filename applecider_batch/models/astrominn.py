"""AstroMiNN: metadata towers, an image tower and a mixture of experts.

Paper: arXiv:2507.16088, sections 4.1 to 4.4. Features are addressed by **name**; the list of names, in the
order of the metadata array, belongs to the profile and is written in the model's card. Two forms:

- `AstroMiNN` with :func:`upstream_config`: the same function and state-dict names as upstream's main
  (3 image channels) and its archive (``XastroMiNN``, 4 channels): sigmoid router, top 2 used as they are;
- `AstroMiNN` with :func:`paper_config`: towers of section 4.1, softmax router, top 2 renormalised, sky
position in
  the image tower's auxiliary head and with sines and cosines in the coordinate tower.

Metadata reach the network as the profile says (missing = -999). Upstream's towers read them raw. For the
paper's form the card's mean and std are applied first (:meth:`ModelCard.standardise_metadata`), except to ra
and dec, which stay in degrees: the network turns them into angles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from applecider_batch.errors import UserError
from applecider_batch.features.profiles import PAPER_METADATA, UPSTREAM_METADATA
from applecider_batch.models.convnext import ConvNeXtConfig, SplitHeadConvNeXt

_MAG = ("scorr", "diffmaglim", "sky", "sigmapsf", "magpsf", "classtar", "fid")

# Tower -> features it reads, in order. Registration order is upstream's, so that state dicts agree in order
# too.
UPSTREAM_TOWERS: dict[str, tuple[str, ...]] = {
    "psf": ("sharpnr", "chinr"),
    "mag": _MAG,
    "lc": (*_MAG, "days_since_peak", "days_to_peak", "age", "peakmag_so_far", "maxmag_so_far"),
    "spatial": ("distpsnr1", "distpsnr2", "nmtchps"),
    "nst1": ("sgscore1", "distpsnr1"),
    "nst2": ("sgscore2", "distpsnr2"),
    "coord": ("ra", "dec"),
    "mega": UPSTREAM_METADATA[:19],
}

PAPER_TOWERS: dict[str, tuple[str, ...]] = {
    "psf": ("chinr", "sharpnr", "classtar"),
    "mag": ("magpsf", "sigmapsf", "diffmaglim", "peakmag_so_far"),
    "lc": ("age", "ndethist", "ncovhist", "nnondet"),
    "spatial": ("sky", "nmtchps", "scorr"),
    "nst1": ("sgscore1", "distpsnr1"),
    "nst2": ("sgscore2", "distpsnr2"),
    "coord": ("ra", "dec"),
    "mega": PAPER_METADATA,
}

# Hidden width of a tower as a multiple of towers_hidden_dims; the mega tower takes fusion_hidden_dims.
_WIDTH = {"psf": 1, "mag": 2, "lc": 3, "spatial": 1, "nst1": 1, "nst2": 1, "coord": 1}

# Order in which the experts and the router see the towers (upstream's).
CONCATENATION = ("nst1", "nst2", "spatial", "psf", "mag", "coord", "mega", "image", "lc")


@dataclass(frozen=True)
class AstroMiNNConfig:
    """Sizes and form of AstroMiNN.

    Attributes
    ----------
    feature_names : tuple of str
        Names of the metadata columns, in order.
    towers : mapping of str to tuple of str
        What each tower reads, by name.
    in_chans : int
        Image channels.
    n_classes, num_mlp_experts, top_k : int
        Logits; experts; experts used per object.
    towers_hidden_dims, towers_outdims, fusion_hidden_dims, fusion_outdims : int
        Widths, under upstream's names: ``fusion_outdims`` is the output width of nst1, nst2 and coord.
    gate : bool
        Whether the towers and experts gate their main path by a sigmoid.
    router : {"sigmoid", "softmax"}
        What makes weights of the router's numbers.
    renormalise : bool
        Whether the top-k weights are divided by their sum.
    sky_angles : bool
        ra, dec given in degrees: sines and cosines in the coordinate tower, ra/180 - 1 and dec/90 in the
        mega tower.
    position_frequencies : int
        Octaves of the sky position in the image tower's auxiliary head; 0 for none.
    depths, dims : tuple of int
        ConvNeXt's blocks and channels.
    """

    feature_names: tuple[str, ...] = UPSTREAM_METADATA
    towers: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(UPSTREAM_TOWERS))
    in_chans: int = 3
    n_classes: int = 5
    num_mlp_experts: int = 4
    top_k: int = 2
    towers_hidden_dims: int = 16
    towers_outdims: int = 32
    fusion_hidden_dims: int = 128
    fusion_outdims: int = 32
    gate: bool = True
    router: str = "sigmoid"
    renormalise: bool = False
    sky_angles: bool = False
    position_frequencies: int = 0
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)

    def __post_init__(self) -> None:
        if self.router not in ("sigmoid", "softmax"):
            raise UserError(f"Unknown router '{self.router}' for AstroMiNN; allowed: sigmoid, softmax.")
        if not 1 <= self.top_k <= self.num_mlp_experts:
            raise UserError(
                f"AstroMiNN's top_k must lie in 1..{self.num_mlp_experts} (its experts), not {self.top_k}."
            )
        if set(self.towers) != set(UPSTREAM_TOWERS):
            raise UserError(
                f"AstroMiNN needs the towers {', '.join(UPSTREAM_TOWERS)}; given {', '.join(self.towers)}."
            )
        if len(set(self.feature_names)) != len(self.feature_names):
            raise UserError("AstroMiNN's feature_names hold a name twice.")
        wanted = {name for names in self.towers.values() for name in names}
        if absent := sorted(wanted - set(self.feature_names)):
            raise UserError(
                f"AstroMiNN's towers read features that the metadata do not have: {', '.join(absent)};"
                f" given: {', '.join(self.feature_names)}."
            )


def upstream_config(**cfg: object) -> AstroMiNNConfig:
    """Upstream's AstroMiNN (in_chans 3) or, with ``in_chans=4``, the archived XastroMiNN."""
    return AstroMiNNConfig(**_tuples(cfg))  # type: ignore[arg-type]


def paper_config(**cfg: object) -> AstroMiNNConfig:
    """The AstroMiNN of the paper: 49 x 49 images of 4 channels, towers of section 4.1.

    A profile may give more or reordered ``feature_names``; the mega tower reads those of `PAPER_METADATA`.
    """
    form: dict[str, object] = {
        "feature_names": PAPER_METADATA,
        "towers": dict(PAPER_TOWERS),
        "in_chans": 4,
        "router": "softmax",
        "renormalise": True,
        "sky_angles": True,
        "position_frequencies": 4,
    }
    return AstroMiNNConfig(**_tuples(form | cfg))  # type: ignore[arg-type]


def _tuples(cfg: Mapping[str, object]) -> dict[str, object]:
    """JSON has lists where the config has tuples."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items()}
    if isinstance(towers := plain.get("towers"), Mapping):
        plain["towers"] = {str(k): tuple(v) for k, v in towers.items()}
    return plain


class TowerBlock(nn.Module):
    """Two linear layers with GELU, an optional gate and a residual path.

    h = GELU(Linear(x)); out = Linear(LN(h)) * sigmoid(Linear(LN(h))) + skip(x). State-dict names are
    upstream's.
    """

    def __init__(
        self, n_in: int, hidden: int, n_out: int, *, gate: bool = True, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.start_path = nn.Sequential(nn.Linear(n_in, hidden), nn.GELU())
        self.main_path = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout), nn.Linear(hidden, n_out))
        self.activation = (
            nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout), nn.Linear(hidden, n_out), nn.Sigmoid())
            if gate
            else None
        )
        self.skip_path = nn.Linear(n_in, n_out) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.start_path(x)
        main = self.main_path(h)
        if self.activation is not None:
            main = main * self.activation(h)
        return main + self.skip_path(x)


class AstroMiNN(nn.Module):
    """Images and metadata to class logits by a mixture of experts."""

    def __init__(self, config: AstroMiNNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AstroMiNNConfig()
        position = {name: i for i, name in enumerate(config.feature_names)}
        for tower, names in config.towers.items():
            columns = torch.tensor([position[name] for name in names])
            # Not persistent: the config's names are the truth, and upstream's state dict has no such entry.
            self.register_buffer(f"_columns_{tower}", columns, persistent=False)
            n_in = len(names) + (2 if config.sky_angles and tower == "coord" else 0)
            wide = config.fusion_outdims if tower in ("nst1", "nst2", "coord") else config.towers_outdims
            mega = tower == "mega"
            hidden = config.fusion_hidden_dims if mega else _WIDTH[tower] * config.towers_hidden_dims
            self.add_module(f"{tower}_tower", TowerBlock(n_in, hidden, wide, gate=config.gate))
        self.image_tower = SplitHeadConvNeXt(
            ConvNeXtConfig(
                in_chans=config.in_chans,
                outdims=config.towers_outdims,
                depths=config.depths,
                dims=config.dims,
                position_frequencies=config.position_frequencies,
            )
        )
        width = 6 * config.towers_outdims + 3 * config.fusion_outdims
        self.fusion_experts = nn.ModuleList(
            TowerBlock(width, config.fusion_hidden_dims, config.n_classes, gate=config.gate)
            for _ in range(config.num_mlp_experts)
        )
        self.fusion_router = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(width // 2, config.num_mlp_experts),
            nn.Sigmoid() if config.router == "sigmoid" else nn.Softmax(dim=-1),
        )

    def tower_outputs(self, images: Tensor, metadata: Tensor) -> dict[str, Tensor]:
        """Every tower's numbers.

        Parameters
        ----------
        images : Tensor, float, shape (B, in_chans, S, S)
        metadata : Tensor, float, shape (B, F)
            Columns in the order of ``config.feature_names``.

        Returns
        -------
        dict of str to Tensor, shapes (B, width)
            Keys of `CONCATENATION`.
        """
        if metadata.ndim != 2 or metadata.shape[1] != len(self.config.feature_names):
            raise ValueError(
                f"metadata has shape {tuple(metadata.shape)}, expected (B, {len(self.config.feature_names)})"
            )
        out = {}
        for tower in self.config.towers:
            columns: Tensor = getattr(self, f"_columns_{tower}")
            out[tower] = getattr(self, f"{tower}_tower")(self._read(tower, metadata[:, columns]))
        sky = metadata[:, self._columns_coord] if self.config.position_frequencies else None
        out["image"] = self.image_tower(images, sky)
        return out

    def _read(self, tower: str, values: Tensor) -> Tensor:
        """What a tower sees of its columns: degrees become angles or unit ranges where the config says so."""
        if not self.config.sky_angles:
            return values
        names = self.config.towers[tower]
        if tower == "coord":
            angles = torch.deg2rad(values)  # (B, 2)
            return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, 4)
        if "ra" not in names and "dec" not in names:
            return values
        scale = values.new_tensor([{"ra": 180.0, "dec": 90.0}.get(name, 1.0) for name in names])
        shift = values.new_tensor([1.0 if name == "ra" else 0.0 for name in names])
        return values / scale - shift

    def router_weights(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the experts before and after the choice of the top k, each (B, experts).

        ``features`` are the concatenated towers, (B, width). The second array is 0 where an expert is unused.
        """
        weights = self.fusion_router(features)
        top = torch.topk(weights, self.config.top_k, dim=-1)
        used = torch.zeros_like(weights).scatter(-1, top.indices, top.values)
        if self.config.renormalise:
            used = used / used.sum(dim=-1, keepdim=True)
        return weights, used

    def forward_with_latent(self, images: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_classes) and the concatenated towers (B, width) that the experts see."""
        latent = self.embed(images, metadata)
        return self.classify(latent), latent

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:
        """Logits (B, n_classes) of images (B, in_chans, S, S) and metadata (B, F)."""
        return self.classify(self.embed(images, metadata))

    def embed(self, images: Tensor, metadata: Tensor) -> Tensor:
        """The concatenated towers, (B, width)."""
        towers = self.tower_outputs(images, metadata)
        return torch.cat([towers[name] for name in CONCATENATION], dim=1)

    def classify(self, latent: Tensor) -> Tensor:
        """Soft aggregation of the chosen experts: (B, width) to (B, n_classes)."""
        return self.classify_with_weights(latent)[0]

    def classify_with_weights(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, n_classes) and the router's weights before the choice of the top k (B, experts)."""
        weights, used = self.router_weights(latent)
        # All experts are computed: they are small, and a dense sum does not depend on who shares the batch.
        experts = torch.stack([expert(latent) for expert in self.fusion_experts], dim=1)  # (B, K, C)
        return (used[:, :, None] * experts).sum(dim=1), weights


def build_upstream(**cfg: object) -> AstroMiNN:
    """Upstream's AstroMiNN; ``cfg``: fields of :class:`AstroMiNNConfig`."""
    return AstroMiNN(upstream_config(**cfg))


def build_paper(**cfg: object) -> AstroMiNN:
    """The paper's AstroMiNN; ``cfg``: fields of :class:`AstroMiNNConfig`."""
    return AstroMiNN(paper_config(**cfg))
