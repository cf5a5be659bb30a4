"""Temperature scaling per modality and availability pattern (Guo et al. 2017, arXiv:1706.04599).

A model set may carry ``calibration.json``::

    {"temperatures": {"photometry": {"default": 1.3}, "fused": {"default": 1.1, "photometry+image": 1.2}}}

The inner key is the pattern of the modalities available to the row, joined with ``+`` in the order photometry,
image, spectra; ``default`` serves all others.  Without the file every temperature is 1 and the id is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from applecider_batch.digest import json_digest
from applecider_batch.errors import UserError
from applecider_batch.inference.fusion import MODALITIES, MODALITY_BITS

FUSED = "fused"
DEFAULT = "default"


@dataclass(frozen=True)
class Calibration:
    """Temperatures by modality (or ``fused``) and availability pattern.

    Attributes
    ----------
    temperatures : mapping
        ``{modality or "fused": {pattern or "default": T > 0}}``; empty is the identity.
    calibration_id : str or None
        Digest of the temperatures; None is the identity.
    """

    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration_id: str | None = None

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "calibration.json") -> Calibration:
        """Read and check a calibration document.

        Raises
        ------
        UserError
            If it is not JSON of the form above, or a temperature is not a positive finite number.
        """
        try:
            temperatures = json.loads(text)["temperatures"]
            table = {str(k): {str(p): float(t) for p, t in v.items()} for k, v in temperatures.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The calibration '{source}' cannot be read: {error!r}.") from error
        allowed = (*MODALITIES, FUSED)
        for name, patterns in table.items():
            if name not in allowed:
                raise UserError(f"The calibration '{source}' names '{name}'; allowed are {', '.join(allowed)}.")
            for key, value in patterns.items():
                if not (math.isfinite(value) and value > 0):
                    raise UserError(
                        f"The calibration '{source}' has temperature {value} for {name}/{key}; it must be > 0."
                    )
        return cls(table, json_digest({"temperatures": table}))

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
