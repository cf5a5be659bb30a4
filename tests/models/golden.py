"""The weight rule and the tolerances of the golden vectors (golden README, sections 1 and 2)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from applecider_batch.models import build_network

M = TypeVar("M", bound=nn.Module)
SALT = "applecider-golden-1"
SEED = 101  # S of the README: seeded inputs are drawn from S + k
RTOL_F64 = 1e-9
RTOL_F32 = 2e-5
RTOL_F32_RAW_METADATA = 2e-4  # astrominn a63_*, a49_* and xastrominn
KEPT_LEAVES = ("num_batches_tracked", "pe")


def rule_of(name: str, ndim: int) -> str:
    """Line of the README's table that gives the entry ``name`` its values."""
    leaf = name.rpartition(".")[2]
    if leaf in KEPT_LEAVES:
        return "kept"
    if ndim >= 2:
        return "fan_in"
    if leaf in ("w", "w0"):
        return "time2vec_freq"
    if leaf.endswith("weight"):
        return "one_plus"
    if leaf == "running_var":
        return "var"
    return "small"


def golden_values(name: str, shape: tuple[int, ...], salt: str = SALT) -> np.ndarray | None:
    """Float32 values of one state-dict entry; None where the model keeps its own."""
    rule = rule_of(name, len(shape))
    if rule == "kept":
        return None
    rng = np.random.default_rng(zlib.crc32(f"{salt}:{name}".encode()))
    z = np.asarray(rng.standard_normal(shape), dtype=np.float64).astype(np.float32)
    if rule == "fan_in":
        return z * np.float32(1 / np.sqrt(np.prod(shape[1:], dtype=np.float64)))
    if rule == "time2vec_freq":
        return np.float32(0.5) * z
    tenth = np.float32(0.1) * (np.abs(z) if rule == "var" else z)
    return tenth if rule == "small" else np.float32(1) + tenth


def golden_state(module: nn.Module, salt: str = SALT) -> dict[str, torch.Tensor]:
    """State dict of ``module`` with every entry made by the rule (kept entries as they are)."""
    state = {}
    for name, tensor in module.state_dict().items():
        values = golden_values(name, tuple(tensor.shape), salt)
        state[name] = tensor if values is None else torch.from_numpy(np.ascontiguousarray(values))
    return state


def seed_weights(module: M, salt: str = SALT) -> M:
    """Load the rule's weights strictly; returns the module in eval mode without gradients."""
    module.load_state_dict(golden_state(module, salt), strict=True)
    return module.eval().requires_grad_(False)


def load_spec(golden: Path, model: str) -> dict[str, Any]:
    """``state_dict_<model>.json``: salt, config and entries (name, shape, dtype, rule, crc32)."""
    return json.loads((golden / f"state_dict_{model}.json").read_text())


def golden_checkpoint(golden: Path, spec: str) -> dict[str, Tensor]:
    """A state dict made from the rule and the recorded names, without any network of ours."""
    document = load_spec(golden, spec)
    state = {}
    for entry in document["entries"]:
        values = golden_values(entry["name"], tuple(entry["shape"]), document["salt"])
        if values is not None:
            state[entry["name"]] = torch.from_numpy(np.ascontiguousarray(values))
        elif entry["name"].endswith("num_batches_tracked"):
            state[entry["name"]] = torch.zeros((), dtype=torch.int64)
        else:  # fixed positions, as the model makes them
            state[entry["name"]] = build_network("upstream-archive", "informer").state_dict()[entry["name"]]
    return state


def check_state(module: nn.Module, spec: Mapping[str, Any]) -> None:
    """Names, shapes, dtypes, rules and the crc32 of every value agree with ``spec``."""
    state = golden_state(module, spec["salt"])
    entries = spec["entries"]
    assert set(state) == {e["name"] for e in entries}
    for entry in entries:
        tensor = state[entry["name"]]
        assert list(tensor.shape) == entry["shape"], entry["name"]
        assert str(tensor.dtype) == f"torch.{entry['dtype']}", entry["name"]
        assert rule_of(entry["name"], tensor.ndim) == entry["rule"], entry["name"]
        if entry["crc32"] is not None:
            assert zlib.crc32(tensor.numpy().astype("<f4").tobytes()) == entry["crc32"], entry["name"]


def excess(actual: torch.Tensor | np.ndarray, expected: np.ndarray, rtol: float) -> float:
    """Largest |actual - expected| / (rtol (1 + |expected|)): at most 1 where the tolerance holds."""
    got = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    want = expected.astype(np.float64)
    error = np.abs(got.astype(np.float64) - want) / (rtol * (1 + np.abs(want)))
    return float("inf") if np.isnan(error).any() else float(error.max(initial=0.0))


def assert_f64(actual: torch.Tensor | np.ndarray, expected: np.ndarray) -> None:
    """``_f64`` outputs: float64 in, float64 out, within 1e-9 (1 + |y|)."""
    dtype = actual.dtype
    assert dtype in (torch.float64, np.dtype(np.float64)), f"computed in {dtype}"
    assert excess(actual, expected, RTOL_F64) <= 1


def assert_f32(actual: torch.Tensor | np.ndarray, expected: np.ndarray, rtol: float = RTOL_F32) -> None:
    """Float32 outputs within rtol (1 + |y|)."""
    dtype = actual.dtype
    assert dtype in (torch.float32, np.dtype(np.float32)), f"computed in {dtype}"
    assert excess(actual, expected, rtol) <= 1
