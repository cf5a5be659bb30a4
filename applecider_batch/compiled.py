"""Loops over bytes that NumPy has no word for, compiled when they are first called."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from applecider_batch.errors import UserError


@dataclass(frozen=True)
class CFunction:
    """A function of a C library that an extension module of another package holds.

    Compiled code calls it like a function of Python, if it is named in ``calls`` of `compiled`.

    Attributes
    ----------
    module : str
        The extension module, with its package.
    symbol : str
        The function's name in C.
    signature : str
        Result and arguments as Numba writes them; pointers are ``uintp``, of arrays ``array.ctypes.data``.
    """

    module: str
    symbol: str
    signature: str

    @functools.cached_property
    def _numba_type_(self) -> Any:
        from numba import types
        from numba.core.sigutils import normalize_signature

        arguments, result = normalize_signature(self.signature)
        return types.ExternalFunction(self._name, result(*arguments))

    @property
    def _name(self) -> str:
        return f"applecider_batch.{self.symbol}"

    def link(self) -> None:
        """Tell LLVM where the function is in this process.

        Code from Numba's cache holds the name alone, so this comes before it is loaded, too.

        Raises
        ------
        UserError
            If the module does not hold the function, or not for others.
        """
        from llvmlite import binding

        try:
            found = importlib.util.find_spec(self.module)
            if found is None or found.origin is None:
                raise ImportError("it is not installed")
            function = getattr(ctypes.CDLL(found.origin), self.symbol)
        except (ImportError, OSError, AttributeError) as error:
            package = self.module.partition(".")[0]
            raise UserError(
                f"The package '{package}' as it is installed has no {self.symbol} to call ({error}).",
                hint=f"Install its wheel from PyPI: pip install --force-reinstall {package}",
            ) from error
        binding.add_symbol(self._name, ctypes.cast(function, ctypes.c_void_p).value)


def compiled(
    function: Callable[..., Any], *, calls: Iterable[CFunction] = (), **options: Any
) -> Callable[..., Any]:
    """A function compiled by Numba at its first call and kept beside the package for the next process.

    Numba is not imported before that call, and the interpreter's lock is not held during it. Where its
    folders cannot be written to, each process compiles anew. ``calls`` names the functions of C it calls.
    """

    @functools.cache
    def made() -> Callable[..., Any]:
        import numba

        for each in calls:
            each.link()
        try:
            return numba.njit(function, cache=True, nogil=True, **options)
        except RuntimeError:  # no folder for the cache
            return numba.njit(function, nogil=True, **options)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    return call
