"""Temperature scaling per modality and availability pattern (Guo et al. 2017, arXiv:1706.04599).

A model set carries a calibration document::

    {"calibrated": true, "temperature": {"photometry": 1.3, "fused": {"default": 1.1, "photometry+image":
    1.2}}}

A temperature is a number or one per pattern of the modalities available to the row, joined with ``+`` in
the order photometry, image, spectra; ``default`` serves all other patterns, and 1 whatever is not given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS

FUSED = "fused"
DEFAULT = "default"


@dataclass(frozen=True)
class Calibration:
    """Temperatures by modality (or ``fused``) and availability pattern; empty is the identity.

    Attributes
    ----------
    temperatures : mapping
        ``{modality or "fused": {pattern or "default": T > 0}}``.
    calibrated : bool
        Whether the temperatures were fitted.
    """

    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibrated: bool = False

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Calibration:
        """Read and check a model set's calibration document.

        Raises
        ------
        UserError
            If it is not of the form above, or a temperature is not a positive finite number.
        """
        allowed = (*MODALITIES, FUSED)
        patterns = {DEFAULT, *(pattern_name(bits) for bits in range(1, 1 << len(MODALITIES)))}
        table: dict[str, dict[str, float]] = {}
        given = document.get("temperature", {})
        for name, value in given.items():
            entries = value if isinstance(value, Mapping) else {DEFAULT: value}
            if name not in allowed or not patterns.issuperset(entries):
                raise UserError(
                    f"The calibration has temperatures for {name}/{list(entries)}; allowed are "
                    f"{', '.join(allowed)} and the patterns {', '.join(sorted(patterns))}."
                )
            for key, number in entries.items():
                if not isinstance(number, int | float) or not (math.isfinite(number) and number > 0):
                    raise UserError(
                        f"The calibration's temperature for {name}/{key} is {number!r}; it must be > 0."
                    )
            table[name] = {key: float(number) for key, number in entries.items()}
        return cls(table, bool(document.get("calibrated", False)))

    def temperature(self, modality: str, mask: np.ndarray) -> np.ndarray:
        """Temperature of each row.

        Parameters
        ----------
        modality : str
            ``photometry``, ``image``, ``spectra`` or ``fused``.
        mask : ndarray, int, shape (n,)
            Modalities available to the row (sum of bits).

        Returns
        -------
        ndarray, float64, shape (n,)
        """
        patterns = self.temperatures.get(modality, {})
        by_mask = np.full(1 << len(MODALITIES), float(patterns.get(DEFAULT, 1.0)))
        for bits in range(len(by_mask)):
            by_mask[bits] = patterns.get(pattern_name(bits), by_mask[bits])
        return by_mask[np.asarray(mask, np.int64)]

    def apply(self, modality: str, logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits divided by their row's temperature.

        Parameters
        ----------
        modality : str
            ``photometry``, ``image``, ``spectra`` or ``fused`` (then ``logits`` are log-probabilities).
        logits : ndarray, float, shape (n, C)
        mask : ndarray, int, shape (n,)

        Returns
        -------
        ndarray, float64, shape (n, C)
        """
        return np.asarray(logits, np.float64) / self.temperature(modality, mask)[:, None]


def pattern_name(mask: int) -> str:
    """The pattern's key of a modality mask, for example ``photometry+image``; empty for none."""
    return "+".join(name for name in MODALITIES if mask & MODALITY_BITS[name])
