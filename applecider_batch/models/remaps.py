"""The explicit changes that bring an upstream checkpoint's names in line with a network; all are reported.

Only what UPSTREAM names: prefixes of wrappers, stage names of the two SpectraNets, ``head`` of paper-era
classifiers, ConvNeXt's names elsewhere, and the image channels where the card says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from applecider_batch.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]
PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
CLASSIFIERS = ("head", "fc")
REMAP_OPTIONS = ("classifier", "stem_channels")

# ConvNeXt's original names (facebookresearch/ConvNeXt), then torchvision's, to timm's.
_CONVNEXT = [
    (r"(^|\.)downsample_layers\.0\.([01])\.", r"\1stem.\2."),
    (r"(^|\.)downsample_layers\.([123])\.([01])\.", r"\1stages.\2.downsample.\3."),
    (r"(^|\.)stages\.(\d)\.(\d+)\.dwconv\.", r"\1stages.\2.blocks.\3.conv_dw."),
    (r"(^|\.)stages\.(\d)\.(\d+)\.pwconv([12])\.", r"\1stages.\2.blocks.\3.mlp.fc\4."),
    (r"(^|\.)stages\.(\d)\.(\d+)\.(norm\.|gamma$)", r"\1stages.\2.blocks.\3.\4"),
    (r"(^|backbone\.)norm\.", r"\1head.norm."),
]
_TORCHVISION_STAGE = {1: 0, 3: 1, 5: 2, 7: 3}
_TORCHVISION_BLOCK = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}


def remap(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    profile: str,
    options: Mapping[str, Any],
) -> tuple[State, list[str], list[str]]:
    """Rename a checkpoint's tensors for a network.

    Parameters
    ----------
    state : mapping of str to Tensor
        The checkpoint's.
    wanted : mapping of str to tuple of int
        The network's names and shapes.
    profile : str
        Decides between ``head`` and ``fc`` where the file has both.
    options : mapping
        ``classifier`` ("head" or "fc") instead of the profile's choice; ``stem_channels``: for each image
        channel of the network the file's channel, -1 for zeros.

    Returns
    -------
    state : dict of str to Tensor
    done : list of str
        What was changed, a line each.
    unused : list of str
        Names of the file that are deliberately left out.
    """
    if unknown := sorted(set(options) - set(REMAP_OPTIONS)):
        raise UserError(
            f"Unknown remap {', '.join(unknown)} in the card; allowed: {', '.join(REMAP_OPTIONS)}."
        )
    found: State = dict(state)
    done: list[str] = []
    for step in (_prefixes, _stages, _convnext):
        found = step(found, wanted, done)
    found, unused = _classifier(found, wanted, profile, options.get("classifier"), done)
    found = _stem_channels(found, wanted, options.get("stem_channels"), done)
    return found, done, unused


def _rename(state: State, rule: Callable[[str], str], done: list[str], what: str) -> State:
    """Apply a rule to all names; two names must not become one."""
    renamed: State = {}
    changed = 0
    for name, tensor in state.items():
        new = rule(name)
        if new in renamed:
            raise UserError(f"The checkpoint cannot be renamed ({what}): two of its tensors become '{new}'.")
        renamed[new] = tensor
        changed += new != name
    if changed:
        done.append(f"{what} ({changed} tensors)")
    return renamed


def _prefixes(state: State, wanted: Collection[str], done: list[str]) -> State:
    again = True
    while again:
        again = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in state) and not any(
                n.startswith(prefix) for n in wanted
            ):
                state = _rename(state, lambda n, p=prefix: n[len(p) :], done, f"prefix '{prefix}' removed")  # type: ignore[misc]
                again = bool(state)
    return state


def _stages(state: State, wanted: Collection[str], done: list[str]) -> State:
    """``stage1.0`` (archive) and ``all_stages.0.0`` (main) are the same block."""
    main, archive = re.compile(r"^all_stages\.(\d+)\."), re.compile(r"^stage(\d+)\.")
    if any(main.match(n) for n in wanted) and any(archive.match(n) for n in state):
        return _rename(
            state,
            lambda n: archive.sub(lambda m: f"all_stages.{int(m[1]) - 1}.", n),
            done,
            "stageN -> all_stages.(N-1)",
        )
    if any(archive.match(n) for n in wanted) and any(main.match(n) for n in state):
        return _rename(
            state,
            lambda n: main.sub(lambda m: f"stage{int(m[1]) + 1}.", n),
            done,
            "all_stages.N -> stage(N+1)",
        )
    return state


def _convnext(state: State, wanted: Mapping[str, tuple[int, ...]], done: list[str]) -> State:
    if any(".dwconv." in name for name in state):
        state = _rename(state, _original_convnext, done, "ConvNeXt's original names -> timm's")
    elif any(name.endswith(".layer_scale") for name in state):
        state = _rename(state, _torchvision_convnext, done, "torchvision's ConvNeXt names -> timm's")
    flat = [
        n for n, t in state.items() if n.endswith(".gamma") and tuple(t.shape[1:]) == (1, 1) and n in wanted
    ]
    if flat:
        state |= {name: state[name].flatten() for name in flat}
        done.append(f"layer scale (C, 1, 1) -> (C,) ({len(flat)} tensors)")
    return state


def _original_convnext(name: str) -> str:
    for pattern, new in _CONVNEXT:
        renamed = re.sub(pattern, new, name)
        if renamed != name:
            return renamed
    return name


def _torchvision_convnext(name: str) -> str:
    match = re.match(r"^(.*?)features\.(\d+)\.(\d+)\.(.*)$", name)
    if match is None:
        return re.sub(r"(^|backbone\.)classifier\.0\.", r"\1head.norm.", name)
    head, layer, part, rest = match[1], int(match[2]), match[3], match[4]
    if layer == 0:
        return f"{head}stem.{part}.{rest}"
    if layer not in _TORCHVISION_STAGE:
        return f"{head}stages.{layer // 2}.downsample.{part}.{rest}"
    for old, new in _TORCHVISION_BLOCK.items():
        rest = re.sub(rf"^{re.escape(old)}\.", f"{new}.", rest)
    rest = "gamma" if rest == "layer_scale" else rest
    return f"{head}stages.{_TORCHVISION_STAGE[layer]}.blocks.{part}.{rest}"


def _classifier(
    state: State, wanted: Collection[str], profile: str, asked: str | None, done: list[str]
) -> tuple[State, list[str]]:
    """``head`` or ``fc`` of the photometry classifier.

    Checkpoints of the paper's time classify with ``head`` and have no ``fc``; newer ones have both and
    classify with ``fc``. So where both are there the profile decides, unless the card does.
    """
    if "cls_tok" not in wanted or "fc.weight" not in wanted or "head.weight" not in state:
        return state, []
    if asked is not None and asked not in CLASSIFIERS:
        raise UserError(f"remap.classifier must be {' or '.join(CLASSIFIERS)}, not '{asked}'.")
    both = "fc.weight" in state
    chosen = (asked or ("head" if profile == "paper" else "fc")) if both else "head"
    unused = []
    if chosen == "head":
        why = (
            "by the card" if both and asked else f"by the profile {profile}" if both else "the file has no fc"
        )
        state = state | {f"fc.{leaf}": state[f"head.{leaf}"] for leaf in ("weight", "bias")}
        done.append(f"head -> fc ({why})")
        if both:
            unused = ["fc.weight", "fc.bias"]
    if "head.weight" not in wanted:
        state = {k: v for k, v in state.items() if not k.startswith("head.")}
        if chosen == "fc":
            unused = ["head.weight", "head.bias"]
    return state, unused


def _stem_channels(
    state: State, wanted: Mapping[str, tuple[int, ...]], channels: Any, done: list[str]
) -> State:
    """Pick, reorder or add image channels of the ConvNeXt stem, as the card says."""
    if channels is None:
        return state
    stems = [name for name in wanted if name.endswith("stem.0.weight") and name in state]
    if not stems:
        raise UserError("remap.stem_channels was given, but the network or the checkpoint has no image stem.")
    for name in stems:
        has, needs = state[name].shape[1], wanted[name][1]
        good = isinstance(channels, list | tuple) and len(channels) == needs
        if not good or any(not isinstance(c, int) or not -1 <= c < has for c in channels):
            raise UserError(
                f"remap.stem_channels must be {needs} channel numbers of the file (0..{has - 1}, or -1 for"
                f" zeros); given {channels}."
            )
        source = state[name]
        picked = source.new_zeros((source.shape[0], needs, *source.shape[2:]))
        for to, channel in enumerate(channels):
            if channel >= 0:
                picked[:, to] = source[:, channel]
        state = state | {name: picked}
        done.append(f"{name}: channels {list(channels)} of {has}")
    return state
