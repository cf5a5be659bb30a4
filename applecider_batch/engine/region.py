"""A cone on the sky as a selection of objects by their mean position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
