"""Networks whose fresh weights are never drawn, because stored ones take their place at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = (torch.Tensor.normal_, torch.Tensor.uniform_)  # what the rest of torch.nn.init draws with


class _LeaveAsIs(TorchFunctionMode):
    """``torch.nn.init`` leaves tensors as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _DRAWN:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


@contextmanager
def unfilled() -> Iterator[None]:
    """Build networks without drawing their weights, which is most of the time that building takes.

    What else a network computes (fixed tables) is there; the caller's random numbers are not moved.
    """
    with torch.random.fork_rng(devices=[]), _LeaveAsIs():
        yield
