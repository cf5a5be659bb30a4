"""Table of the largest differences from every golden file, and of the mistakes that the files would catch.

    python -m benchmarks.golden_table GOLDEN [--out docs/golden.md]

GOLDEN is the folder with the recorded vectors (its README gives the weight rule and the tolerances). The
weights are made by that rule; the mistakes are those of the README's section 2, made on purpose by the
tests' own mutations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from applecider_batch.models import build_network
from benchmarks.golden_preprocessing import preprocessing_rows
from tests.models import test_astrominn, test_convnext, test_fusion_brew, test_photometry, test_spectranet
from tests.models.golden import (
    RTOL_F32,
    RTOL_F32_RAW_METADATA,
    RTOL_F64,
    SEED,
    check_state,
    excess,
    load_spec,
    seed_weights,
)
from tests.training import test_losses

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One recorded output in one precision."""

    file: str
    output: str
    precision: str
    difference: float  # largest |ours - recorded|
    used: float  # share of the tolerance, at most 1


def compare(file: str, output: str, got: Tensor, expected: np.ndarray, rtol: float) -> Row:
    """Compare an output; ``rtol`` (1 + |expected|) is allowed."""
    ours = got.detach().numpy()
    difference = float(np.abs(ours.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
    return Row(file, output, str(ours.dtype), difference, excess(ours, expected, rtol))


def both(
    file: str,
    arrays: Arrays,
    network: nn.Module,
    run: Callable[[torch.dtype], dict[str, Tensor]],
    rtol: float,
) -> Iterator[Row]:
    """Run in float32 and float64 and compare every output that was recorded in that precision."""
    for dtype, suffix, allowed in ((torch.float32, "", rtol), (torch.float64, "_f64", RTOL_F64)):
        network.to(dtype)
        for name, got in run(dtype).items():
            if name + suffix in arrays:
                yield compare(file, name, got, arrays[name + suffix], allowed)


def tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A copy in the precision asked for."""
    return torch.from_numpy(values.copy()).to(dtype)


def seeded(step: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An input that is given by its seed: drawn in float64, rounded to float32."""
    return tensor(np.random.default_rng(SEED + step).standard_normal(shape).astype(np.float32), dtype)


def network_of(golden: Path, spec: str, profile: str, name: str, **cfg: Any) -> nn.Module:
    """A network with the rule's weights, its state dict checked name by name against the recorded list."""
    network = build_network(profile, name, **cfg)
    check_state(network, load_spec(golden, spec))
    return seed_weights(network)


def arrays_of(golden: Path, file: str) -> Arrays:
    """All arrays of a golden file."""
    with np.load(golden / f"{file}.npz") as data:
        return dict(data)


def photometry(golden: Path) -> Iterator[Row]:
    """The [CLS]-Transformer, its older form, and the pre-training heads."""
    a = arrays_of(golden, "photo_cls")
    real = torch.from_numpy(~a["pad_mask"])
    main = network_of(golden, "photo_cls", "upstream-main", "cls_transformer")

    def run(dtype: torch.dtype) -> dict[str, Tensor]:
        logits, latent = main.forward_with_latent(tensor(a["x"], dtype), real)
        return {"logits": logits, "cls_embedding": latent, "probs": logits.softmax(-1)}

    yield from both("photo_cls", a, main, run, RTOL_F32)
    base = network_of(golden, "photo_baselinecls", "upstream-main", "baseline_cls")
    yield from both(
        "photo_cls", a, base, lambda dtype: {"head_logits": base(tensor(a["x"], dtype), real)}, RTOL_F32
    )
    m = arrays_of(golden, "photo_mpt")
    heads = network_of(golden, "photo_mpt", "upstream-main", "cls_transformer_mpt")
    seen = torch.from_numpy(~m["pad_mask"])
    real_only = {k: v[~m["pad_mask"]] for k, v in m.items() if "_hat" in k} | {"z_f64_row0": m["z_f64_row0"]}

    def run_heads(dtype: torch.dtype) -> dict[str, Tensor]:
        out = heads(tensor(m["x"], dtype), seen)
        return {k: v[seen] for k, v in zip(("flux_hat", "band_hat", "dt_hat"), out, strict=True)}

    yield from both("photo_mpt", real_only, heads, run_heads, RTOL_F32)


def images(golden: Path) -> Iterator[Row]:
    """ConvNeXt with the split head, AstroMiNN and its archived form."""
    for channels, profile in ((3, "upstream-main"), (4, "upstream-archive")):
        a = arrays_of(golden, f"convnext_c{channels}")
        tower = network_of(golden, f"convnext_c{channels}", profile, "convnext")
        for px in (63, 49):

            def run(
                dtype: torch.dtype, px: int = px, n: int = channels, net: nn.Module = tower
            ) -> dict[str, Tensor]:
                out, features = net.forward_with_latent(test_convnext.golden_images(n, px).to(dtype))
                return {f"px{px}_out": out, f"px{px}_features": features}

            yield from both(f"convnext_c{channels}", a, tower, run, RTOL_F32)
    a = arrays_of(golden, "astrominn")
    main = network_of(golden, "astrominn", "upstream-main", "astrominn")
    for case in ("a63", "a49", "b63", "b49"):
        stamps, metadata = test_astrominn.case(a, case)

        def run_main(
            dtype: torch.dtype, c: str = case, x: Tensor = stamps, y: Tensor = metadata
        ) -> dict[str, Tensor]:
            logits, latent = main.forward_with_latent(x.to(dtype), y.to(dtype))
            towers = {
                f"{c}_{t}_tower": v
                for t, v in zip(test_astrominn.CONCATENATION, latent.split(32, 1), strict=True)
            }
            return {f"{c}_logits": logits, f"{c}_router_weights": main.router_weights(latent)[0]} | towers

        raw = RTOL_F32_RAW_METADATA if case[0] == "a" else RTOL_F32
        yield from both("astrominn", a, main, run_main, raw)
    a = arrays_of(golden, "xastrominn")
    for d in (32, 4):
        old = network_of(
            golden, f"xastrominn_d{d}", "upstream-archive", "xastrominn", towers_outdims=d, fusion_outdims=d
        )
        for px, step in ((49, 40), (63, 41)):

            def run_old(
                dtype: torch.dtype, k: str = f"d{d}_px{px}", s: int = step, px: int = px, net: nn.Module = old
            ) -> dict[str, Tensor]:
                logits, latent = net.forward_with_latent(
                    seeded(s, (10, 4, px, px), dtype), tensor(a["metadata"], dtype)
                )
                return {f"{k}_logits": logits, f"{k}_router_weights": net.router_weights(latent)[0]}

            yield from both("xastrominn", a, old, run_old, RTOL_F32_RAW_METADATA)


def spectra(golden: Path) -> Iterator[Row]:
    """SpectraNet in all upstream forms."""
    a = arrays_of(golden, "spectranet")
    forms = (
        ("spectranet", "upstream-main", "spectranet", "logits"),
        ("spectranet_redshift", "upstream-main", "spectranet_redshift", "redshift"),
        ("spectranet_archive", "upstream-archive", "spectranet", "archive_logits"),
        (
            "spectranet_archive_redshift",
            "upstream-archive",
            "spectranet_redshift",
            "archive_redshift_softplus",
        ),
    )
    for spec, profile, name, output in forms:
        network = network_of(golden, spec, profile, name)
        for points in ("L4096", "L3481"):

            def run(
                dtype: torch.dtype, n: nn.Module = network, p: str = points, o: str = output
            ) -> dict[str, Tensor]:
                return {f"{p}_{o}": n(tensor(a[f"{p}_x"], dtype))}

            yield from both("spectranet", a, network, run, RTOL_F32)
    tripool = network_of(golden, "spectranet_tripool", "upstream-archive", "spectranet_tripool")

    def run_tripool(dtype: torch.dtype) -> dict[str, Tensor]:
        logits, latent = tripool.forward_with_latent(tensor(a["L4096_x"], dtype))
        return {"tripool_logits": logits, "tripool_embedding256": latent}

    yield from both("spectranet", a, tripool, run_tripool, RTOL_F32)


def others(golden: Path) -> Iterator[Row]:
    """Informer, joint network, losses."""
    a = arrays_of(golden, "informer")
    informer = network_of(golden, "informer", "upstream-archive", "informer", seq_len=96)
    real, draw = torch.from_numpy(a["mask"]) > 0.5, torch.from_numpy(a["prob_index_sample"].astype(np.int64))
    yield from both(
        "informer",
        a,
        informer,
        lambda dtype: {
            "full_logits": informer(tensor(a["x"], dtype), real),
            "prob_logits": informer(tensor(a["x"], dtype), real, draw),
        },
        RTOL_F32,
    )
    f = arrays_of(golden, "fusion_brew")
    for form in ("avg", "concat"):
        joint = network_of(golden, f"fusion_brew_{form}", "upstream-archive", "fusion_brew", fusion=form)

        def run(dtype: torch.dtype, net: nn.Module = joint, form: str = form) -> dict[str, Tensor]:
            parts = test_fusion_brew.inputs(f, dtype)
            names = ("emb_photometry", "emb_image_metadata", "emb_spectra")
            vectors = zip(names, net.embeddings(*parts), strict=True) if form == "avg" else ()
            return {f"{form}_logits": net(*parts)} | dict(vectors)

        yield from both("fusion_brew", f, joint, run, RTOL_F32)
    losses = arrays_of(golden, "focal")
    cases = test_losses.MAIN | test_losses.ONLY_F32
    nothing = nn.Identity()
    yield from both(
        "focal",
        losses,
        nothing,
        lambda dtype: {name: test_losses.loss(losses, options, dtype) for name, options in cases.items()},
        RTOL_F32,
    )


@dataclass(frozen=True)
class Caught:
    """A mistake, what it changes, and by how many tolerances."""

    mistake: str
    change: float
    tolerances: float


def mistakes(golden: Path) -> Iterator[Caught]:
    """Every mistake of the README's section 2, and a few more, in float64 against the recorded ``_f64``."""
    a = arrays_of(golden, "photo_cls")
    x, real = test_photometry.inputs(a, torch.float64)

    def photo(
        mutate: Callable[..., None] | None, events: Tensor = x
    ) -> Callable[[pytest.MonkeyPatch], Tensor]:
        def run(patch: pytest.MonkeyPatch) -> Tensor:
            network = seed_weights(build_network("upstream-main", "cls_transformer")).double()
            if mutate is not None:
                mutate(network, patch)
            return network(events, real)

        return run

    for name, mutate in test_photometry.MUTATIONS.items():
        yield caught(f"photo: {name}", photo(mutate), a["logits_f64"])
    raw = x.clone()
    raw[..., 0] = x[..., 0] * (float(a["std"][0]) + 1e-8) + float(a["mean"][0])
    yield caught("photo: Time2Vec and input on un-normalised log1p(dt)", photo(None, raw), a["logits_f64"])

    c3 = arrays_of(golden, "convnext_c3")
    tower = seed_weights(build_network("upstream-main", "convnext")).double()
    stamps = test_convnext.golden_images(3, 63).double()
    for name, change in test_convnext.MISTAKES.items():
        yield caught(f"convnext: {name}", mutated(tower, change, lambda: tower(stamps)), c3["px63_out_f64"])

    m = arrays_of(golden, "astrominn")
    main = seed_weights(build_network("upstream-main", "astrominn")).double()
    pictures, metadata = (t.double() for t in test_astrominn.case(m, "b63"))
    for name, change in test_astrominn.MISTAKES.items():
        run = mutated(main, change, lambda: main(pictures, metadata))
        yield caught(f"astrominn: {name}", run, m["b63_logits_f64"])

    s = arrays_of(golden, "spectranet")
    spectranet = seed_weights(build_network("upstream-main", "spectranet")).double()
    for points, name, change in (
        ("L4096", "LayerNorm eps 1e-6 for 1e-5", test_spectranet._eps),
        ("L4096", "block GELU tanh for erf", test_spectranet._gelu_tanh),
        ("L3481", "pool ceil_mode", test_spectranet._ceil_mode),
        ("L4096", "average for max pooling", test_spectranet._average_pool),
        ("L4096", "average for global max", test_spectranet._average_global),
    ):
        fresh = (
            seed_weights(build_network("upstream-main", "spectranet")).double()
            if "eps" in name
            else spectranet
        )
        values = torch.from_numpy(s[f"{points}_x"]).double()
        run = mutated(fresh, change, lambda n=fresh, v=values: n(v))  # type: ignore[misc]
        yield caught(f"spectranet {points[1:]}: {name}", run, s[f"{points}_logits_f64"])


def mutated(
    network: nn.Module, change: Callable[..., None], run: Callable[[], Tensor]
) -> Callable[[pytest.MonkeyPatch], Tensor]:
    """A run with a mistake in it, undone when the patch is."""

    def wrong(patch: pytest.MonkeyPatch) -> Tensor:
        change(network, patch)
        return run()

    return wrong


def caught(name: str, run: Callable[[pytest.MonkeyPatch], Tensor], expected: np.ndarray) -> Caught:
    """What a mistake does to a recorded output."""
    with pytest.MonkeyPatch.context() as patch:
        got = run(patch).numpy()
    return Caught(name, float(np.abs(got - expected).max()), excess(got, expected, RTOL_F64))


def markdown(rows: list[Row], tables: list[Row], wrong: list[Caught]) -> str:
    """The page."""
    lines = [
        "# Golden vectors: largest differences",
        "",
        "Made by `python -m benchmarks.golden_table GOLDEN`. Allowed: float64 1e-9 (1 + |y|); float32",
        "2e-5 (1 + |y|), 2e-4 for logits of raw metadata (`astrominn` a63, a49 and `xastrominn`). `used` is",
        "the largest share of the tolerance: up to 1 the file is matched. Names, order, shapes and CRC-32 of",
        "all weights are checked first.",
        "",
        "## Networks and losses",
        "",
        "| file | output | float64: largest difference | used | float32: largest difference | used |",
        "|---|---|---|---|---|---|",
    ]
    by_output: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_output.setdefault((row.file, row.output), {})[row.precision] = row
    for (file, output), found in by_output.items():
        cells = [
            f"{r.difference:.1e} | {r.used:.1e}" if (r := found.get(p)) else "not recorded | "
            for p in ("float64", "float32")
        ]
        lines.append(f"| {file} | {output} | {' | '.join(cells)} |")
    lines += ["", "## Preprocessing (profiles upstream-main and upstream-archive)", ""]
    lines += ["| file | column | largest difference | used |", "|---|---|---|---|"]
    lines += [f"| {r.file} | {r.output} | {r.difference:.1e} | {r.used:.1e} |" for r in tables]
    lines += [
        "",
        "## Mistakes that would be caught",
        "",
        "Each was made on purpose in float64. `tolerances`: how many times the allowed difference it causes;",
        "more than 1 is caught.",
        "",
        "| mistake | largest change | tolerances | caught |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c.mistake} | {c.change:.1e} | {c.tolerances:.1e} | {'yes' if c.tolerances > 1 else 'NO'} |"
        for c in wrong
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the page and write it; 1 if a file is not matched or a mistake not caught."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("golden", type=Path, help="folder with the golden vectors")
    parser.add_argument("--out", type=Path, default=Path("docs/golden.md"), help="page to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with torch.inference_mode():
        rows = [r for part in (photometry, images, spectra, others) for r in part(options.golden)]
        wrong = list(mistakes(options.golden))
    tables = [Row(*values) for values in preprocessing_rows(options.golden)]
    page = markdown(rows, tables, wrong)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    sys.stdout.write(page)
    good = all(r.used <= 1 for r in (*rows, *tables)) and all(c.tolerances > 1 for c in wrong)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
