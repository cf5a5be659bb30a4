"""A cone on the sky as a selection of objects by their mean position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.errors import UsageError


@dataclass(frozen=True)
class Region:
    """All positions within ``radius`` degrees of (``ra``, ``dec``), ICRS degrees.

    Raises
    ------
    UsageError
        If the centre is not on the sky or the radius not in (0, 180].
    """

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        if not (0 <= self.ra < 360 and -90 <= self.dec <= 90 and 0 < self.radius <= 180):
            raise UsageError(
                f"A region is RA,DEC,RADIUS in degrees (0..360, -90..90, 0..180), given was "
                f"{self.ra},{self.dec},{self.radius}."
            )

    def contains(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Which positions lie inside; NaN does not.

        Parameters
        ----------
        ra, dec : ndarray, float64, shape (n,), deg

        Returns
        -------
        ndarray, bool, shape (n,)
        """
        ra, dec = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
        ra0, dec0 = np.radians(self.ra), np.radians(self.dec)
        # Haversine: exact for small separations too.
        half = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
        return np.asarray(half <= np.sin(np.radians(self.radius) / 2) ** 2)


def select_region(data: Any, region: Region) -> Any:
    """Keep a shard's objects whose mean position lies in the region.

    Parameters
    ----------
    data : archive.read.ShardData
        The mean is over the object's alerts, or over its points where it has no alert, on the sphere; an
        object without any position is left out.
    region : Region
    """
    with_alerts = pc.unique(data.alerts.column("objectId"))
    bare = data.photometry.filter(pc.invert(pc.is_in(data.photometry.column("objectId"), with_alerts)))
    kept = pa.concat_arrays([_inside(table, region) for table in (data.alerts, bare)])
    wanted = set(kept.to_pylist())

    def chosen(table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table.column("objectId"), value_set=kept))

    return replace(
        data,
        objects=[name for name in data.objects if name in wanted],
        alerts=chosen(data.alerts),
        photometry=chosen(data.photometry),
        spectra=chosen(data.spectra),
    )


def _inside(table: pa.Table, region: Region) -> pa.Array:
    """Names of the objects of a table whose mean position lies in the region."""
    table = table.select(["objectId", "ra", "dec"]).drop_null()
    names = table.column("objectId").cast(pa.string()).combine_chunks().dictionary_encode()
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    if not len(names):
        return pa.array([], pa.string())
    index = names.indices.to_numpy(zero_copy_only=False)
    ra, dec = np.radians(table.column("ra").to_numpy()), np.radians(table.column("dec").to_numpy())
    axes = (np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec))
    x, y, z = (np.bincount(index, weights=axis) for axis in axes)
    mean_ra, mean_dec = np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))
    return names.dictionary.filter(pa.array(region.contains(mean_ra, mean_dec)))
