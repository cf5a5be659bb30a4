"""log10 in float32 as the GNU C library computes it: the same bits on every processor.

Upstream's tables hold float32 logarithms. NumPy's own float32 log10 takes whatever vector routine the
processor offers and differs in the last bit between machines, and a correctly rounded one differs from the C
library's in one number of thirty. So its two steps are done here: log10 x = k log10(2) + log10(e) ln m in
float32 (fdlibm's ``e_log10f``), and the float32 ln by a table of 16 intervals and a cubic in float64 (ARM's
optimized routines, glibc since 2.28).
"""

from __future__ import annotations

import numpy as np

# 1/c and ln c of the middle c of each interval of [0.7, 1.4).
_INVERSE = np.array([float.fromhex(text) for text in (
    "0x1.661ec79f8f3bep+0", "0x1.571ed4aaf883dp+0", "0x1.49539f0f010bp+0", "0x1.3c995b0b80385p+0",
    "0x1.30d190c8864a5p+0", "0x1.25e227b0b8eap+0", "0x1.1bb4a4a1a343fp+0", "0x1.12358f08ae5bap+0",
    "0x1.0953f419900a7p+0", "0x1p+0", "0x1.e608cfd9a47acp-1", "0x1.ca4b31f026aap-1",
    "0x1.b2036576afce6p-1", "0x1.9c2d163a1aa2dp-1", "0x1.886e6037841edp-1", "0x1.767dcf5534862p-1",
)])  # fmt: skip
_LOG = np.array([float.fromhex(text) for text in (
    "-0x1.57bf7808caadep-2", "-0x1.2bef0a7c06ddbp-2", "-0x1.01eae7f513a67p-2", "-0x1.b31d8a68224e9p-3",
    "-0x1.6574f0ac07758p-3", "-0x1.1aa2bc79c81p-3", "-0x1.a4e76ce8c0e5ep-4", "-0x1.1973c5a611cccp-4",
    "-0x1.252f438e10c1ep-5", "0x0p+0", "0x1.aa5aa5df25984p-5", "0x1.c5e53aa362eb4p-4",
    "0x1.526e57720db08p-3", "0x1.bc2860d22477p-3", "0x1.1058bc8a07ee1p-2", "0x1.4043057b6ee09p-2",
)])  # fmt: skip
_CUBIC = [
    float.fromhex(text) for text in ("-0x1.00ea348b88334p-2", "0x1.5575b0be00b6ap-2", "-0x1.ffffef20a4123p-2")
]
_LN_2 = float.fromhex("0x1.62e42fefa39efp-1")
_OFFSET = 0x3F330000  # the bits of 0.7
_LOG10_2_LOW, _LOG10_2_HIGH = np.float32(7.9034151668e-07), np.float32(3.0102920532e-01)
_LOG10_E = np.float32(4.3429449201e-01)


def log10_float32(x: np.ndarray) -> np.ndarray:
    """log10 of float32 numbers; exact to the C library's bits for positive normal ones, NumPy's for others.

    Parameters
    ----------
    x : ndarray, float32

    Returns
    -------
    ndarray, float32
    """
    normal = np.isfinite(x) & (x >= np.finfo(np.float32).tiny)
    safe = np.where(normal, x, np.float32(1.0))
    mantissa, exponent = np.frexp(safe)  # in [1/2, 1)
    large = exponent > 0  # then in [1, 2) and k one smaller
    k = (exponent - large).astype(np.float32)
    ln = _ln_float32(np.where(large, np.float32(2.0) * mantissa, mantissa))
    found = (k * _LOG10_2_LOW + _LOG10_E * ln) + k * _LOG10_2_HIGH
    if normal.all():
        return found
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(normal, found, np.log10(x))


def _ln_float32(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.int32)
    shifted = bits - np.int32(_OFFSET)
    interval, k = (shifted >> 19) & 15, shifted >> 23
    z = (bits - (k << 23)).view(np.float32).astype(np.float64)
    r = z * _INVERSE[interval] - 1.0
    square = r * r
    cubic = _CUBIC[0] * square + (_CUBIC[1] * r + _CUBIC[2])
    return (cubic * square + (_LOG[interval] + k * _LN_2 + r)).astype(np.float32)
