"""log10 in float32 as the C library computes it, which is how upstream's recorded tables were made.

NumPy's own float32 log10 takes whatever vector routine the processor offers and differs in the last bit
between machines; Arrow's calls the C library, whose answer does not depend on the processor.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def log10_float32(x: np.ndarray) -> np.ndarray:
    """log10 of float32 numbers: -inf of 0, NaN of negative ones.

    Parameters
    ----------
    x : ndarray, float32, shape (n,)

    Returns
    -------
    ndarray, float32, shape (n,)
    """
    return pc.log10(pa.array(x)).to_numpy()
