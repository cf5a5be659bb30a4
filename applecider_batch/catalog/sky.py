"""Positions on the sky: the HEALPix index of HATS."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from applecider_batch.catalog.columns import float_values


def healpix29(ra: pa.Array | pa.ChunkedArray, dec: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Nested HEALPix index of order 29 (``_healpix_29`` of HATS).

    Parameters
    ----------
    ra, dec : array of float64, shape (n,)
        ICRS, degrees; null where unknown.

    Returns
    -------
    pyarrow.Array of int64, shape (n,), null without a position.
    """
    from cdshealpix.nested import lonlat_to_healpix

    ra_deg, dec_deg = (float_values(column) for column in (ra, dec))
    known = np.isfinite(ra_deg) & np.isfinite(dec_deg) & (np.abs(np.nan_to_num(dec_deg)) <= 90.0)
    index = np.zeros(len(ra_deg), np.int64)
    if known.any():
        from astropy.coordinates import Latitude, Longitude

        lon, lat = Longitude(ra_deg[known], unit="deg"), Latitude(dec_deg[known], unit="deg")
        index[known] = lonlat_to_healpix(lon, lat, depth=29).astype(np.int64)
    return pa.array(index, mask=~known)
