"""The float32 logarithm against the C library's own, where that is glibc's."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform

import numpy as np
import pytest

from applecider_batch.features.float32_log import log10_float32


def test_is_the_c_librarys_to_the_bit() -> None:
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split("."))) < (2, 28):
        pytest.skip(f"the C library here is {name or 'unknown'} {version}, not glibc from 2.28 on")
    c_log10f = ctypes.CDLL(ctypes.util.find_library("m")).log10f
    c_log10f.restype, c_log10f.argtypes = ctypes.c_float, [ctypes.c_float]
    x = np.exp(np.random.default_rng(1).uniform(-80, 80, 50_000)).astype(np.float32)
    x[:6] = [1.0, 10.0, 0.5, np.nextafter(np.float32(1), np.float32(0)), np.finfo(np.float32).tiny, 3e38]
    expected = np.array([c_log10f(float(v)) for v in x], np.float32)
    np.testing.assert_array_equal(log10_float32(x), expected)


def test_within_two_steps_of_the_true_logarithm_and_numpys_elsewhere() -> None:
    x = np.exp(np.random.default_rng(2).uniform(-80, 80, 10_000)).astype(np.float32)
    np.testing.assert_allclose(log10_float32(x), np.log10(x.astype(np.float64)), rtol=2.5e-7, atol=1e-7)
    odd = np.array([0.0, np.inf, np.nan, -1.0], np.float32)
    np.testing.assert_array_equal(log10_float32(odd), [-np.inf, np.inf, np.nan, np.nan])
