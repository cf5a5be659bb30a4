"""The learned gate: gradient-boosted trees as plain arrays, evaluated with NumPy alone.

A file of it is a safetensors file: per node ``feature``, ``threshold``, ``left``, ``right``, ``value``; per
tree ``root`` and ``output``; ``base`` and ``calibration``.  Its metadata hold one JSON document ``gate``
with the features and classes in order, the threshold and what it was trained on and worth.
``training/gate.py`` makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.cuts import Preset
from applecider_batch.features.gate_features import FEATURES
from applecider_batch.features.trees import leaf_nodes
from applecider_batch.taxonomy import GATES

FORMAT = "applecider-batch gate 1"
#: Outputs that a gate may have; too_few_detections is a rule, never learned.
OUTPUTS: tuple[str, ...] = tuple(name for name in GATES if name != "too_few_detections")
IN_SCOPE = GATES[0]
#: What stands for a missing number: below every feature's range, so that a tree can tell it.
MISSING = -1000.0
_NODES = {
    "feature": np.int16, "threshold": np.float32, "left": np.int32, "right": np.int32, "value": np.float64
}  # fmt: skip
_CHUNK = 1024
_TREES = {"root": np.int32, "output": np.int8}


@dataclass(frozen=True)
class LearnedGate:
    """Trees, calibration and threshold.

    Attributes
    ----------
    arrays : dict of str -> ndarray
        Nodes (of all trees, one behind the other), trees, ``base`` (one per output) and ``calibration``
        (slope and intercept on the log odds of in_scope).
    document : dict
        ``format``, ``features``, ``outputs``, ``threshold``, ``depth``, and the card.
    gate_id : str
        First 16 hex digits of the file's SHA-256.
    """

    arrays: dict[str, np.ndarray]
    document: dict[str, Any]
    gate_id: str

    @property
    def outputs(self) -> list[str]:
        """Gates in the order of the trees' outputs."""
        return list(self.document["outputs"])

    @property
    def threshold(self) -> float:
        """Smallest probability that counts as in scope."""
        return float(self.document["threshold"])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Raw score of every output.

        Parameters
        ----------
        features : ndarray, shape (v, F)
            In the order of ``gate_features.FEATURES``; NaN for missing.

        Returns
        -------
        ndarray of float64, shape (v, n_outputs)
            Each row depends on its own features only, to the last bit.
        """
        a = self.arrays
        filled = prepared(features)
        out = np.tile(a["base"], (len(filled), 1))
        nodes = (a["feature"], a["threshold"], a["left"], a["right"], a["root"], int(self.document["depth"]))
        for start in range(0, len(filled), _CHUNK):
            said = a["value"][leaf_nodes(filled[start : start + _CHUNK], *nodes)]
            # Tree by tree: a sum over an axis may change its order with the number of rows.
            for tree, output in enumerate(a["output"].tolist()):
                out[start : start + _CHUNK, output] += said[:, tree]
        return out

    def judge(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated probability of in_scope, and what each object is taken for if it is not.

        Returns
        -------
        probability : ndarray of float64, shape (v,)
            sigmoid(slope log(p / (1 - p)) + intercept) of the trees' softmax p (Platt 1999); NaN where no
            feature is known.
        otherwise : ndarray of object (str), shape (v,)
            Most probable of the other outputs.
        """
        scores = self.scores(features)
        own = self.outputs.index(IN_SCOPE)
        others = np.delete(scores, own, axis=1)
        log_odds = scores[:, own] - np.logaddexp.reduce(others, axis=1)
        slope, intercept = self.arrays["calibration"]
        with np.errstate(over="ignore"):
            probability = 1.0 / (1.0 + np.exp(-(slope * log_odds + intercept)))
        names = np.array([name for name in self.outputs if name != IN_SCOPE], object)
        unknown = np.isnan(features).all(axis=1)
        return np.where(unknown, np.nan, probability), names[others.argmax(axis=1)]

    def to_bytes(self) -> bytes:
        """The file's bytes; equal gates give equal bytes."""
        from safetensors.numpy import save

        return bytes(
            save(dict(sorted(self.arrays.items())), {"gate": json.dumps(self.document, sort_keys=True)})
        )

    @classmethod
    def build(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> LearnedGate:
        """A gate from arrays and document, with its digest."""
        full = {"format": FORMAT, "features": list(FEATURES), **document}
        return cls.from_bytes(cls(arrays, full, "").to_bytes(), "gate")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> LearnedGate:
        """Read a gate's file.

        Raises
        ------
        UserError
            If it is no such file, or was made for other features.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            document = json.loads(header["__metadata__"]["gate"])
            version, features, outputs = document["format"], document["features"], document["outputs"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{where}' is no learned gate: {error}.") from error
        if version != FORMAT or features != list(FEATURES) or not _fits(arrays, document, outputs):
            raise UserError(
                f"The learned gate '{where}' was made for another version ({version}, {len(features)} "
                f"features); this one reads '{FORMAT}' with {len(FEATURES)} features.",
                hint="Train it again: applecider-batch train gate.",
            )
        return cls(arrays, document, hashlib.sha256(data).hexdigest()[:16])


@dataclass(frozen=True)
class Judges:
    """What judges a row beside the rules of the gate.

    Attributes
    ----------
    cuts : sequence of Preset
        The user's own presets, beside the packaged ones.
    gate : LearnedGate or None
        The model set's; without one the rules decide alone and ``prob_in_scope`` is null.
    """

    cuts: Sequence[Preset] = ()
    gate: LearnedGate | None = None


def prepared(features: np.ndarray) -> np.ndarray:
    """Features as the trees compare them: float32, missing as :data:`MISSING`, (v, F)."""
    return np.where(np.isfinite(features), features, MISSING).astype(np.float32)


def _fits(arrays: dict[str, np.ndarray], document: dict[str, Any], outputs: list[str]) -> bool:
    """Whether the arrays are trees over the features and outputs that the document names."""
    kinds = {**_NODES, **_TREES, "base": np.float64, "calibration": np.float64}
    if set(arrays) != set(kinds) or any(arrays[name].dtype != kind for name, kind in kinds.items()):
        return False
    n = len(arrays["feature"])
    good = all(arrays[name].shape == (n,) for name in _NODES) and len(arrays["root"]) == len(arrays["output"])
    for name in ("left", "right", "root"):
        good = good and bool(((arrays[name] >= 0) & (arrays[name] < n)).all())
    return (
        good
        and arrays["base"].shape == (len(outputs),)
        and arrays["calibration"].shape == (2,)
        and bool(((arrays["output"] >= 0) & (arrays["output"] < len(outputs))).all())
        and bool(((arrays["feature"] >= 0) & (arrays["feature"] < len(FEATURES))).all())
        and IN_SCOPE in outputs
        and len(outputs) >= 2
        and set(outputs) <= set(OUTPUTS)
        and 0 < float(document["threshold"]) < 1
        and int(document["depth"]) > 0
    )
