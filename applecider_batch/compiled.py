"""Loops over bytes that NumPy has no word for, compiled when they are first called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function compiled by Numba at its first call and kept beside the package for the next process.

    Numba is not imported before that call, and the interpreter's lock is not held during it. Where its
    folders cannot be written to, each process compiles anew.
    """

    @functools.cache
    def made() -> Callable[..., Any]:
        import numba

        try:
            return numba.njit(function, cache=True, nogil=True, **options)
        except RuntimeError:  # no folder for the cache
            return numba.njit(function, nogil=True, **options)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    return call
