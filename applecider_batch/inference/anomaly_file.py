"""The anomaly reference as a file of a model set: safetensors, arrays and one JSON document, no pickle.

::

    document                      JSON as bytes: format, horizons, classes, digests, counts
    reference/values, divergence, mask, predicted
    <modality>/whole/*            isolation forest on the latents of all classes (`forest.Forest`)
    <modality>/class/<class>/*    one per class
    <modality>/knn/*              whitening and training latents
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from applecider_batch.errors import UserError
from applecider_batch.inference.anomaly import LatentScorer
from applecider_batch.inference.anomaly_reference import AnomalyReference
from applecider_batch.inference.fusion import MODALITIES

FORMAT = "applecider-batch anomaly reference 1"
FILE = "anomaly.safetensors"
_PARTS = ("values", "divergence", "mask", "predicted")
_AGAIN = "Fit it again with 'applecider-batch models fit-anomaly'."


def to_bytes(reference: AnomalyReference) -> bytes:
    """The file; equal references give equal bytes."""
    head = {
        **reference.document,
        "format": FORMAT,
        "horizons": list(reference.horizons),
        "classes": list(reference.classes),
    }
    arrays = {f"reference/{name}": getattr(reference, name) for name in _PARTS}
    arrays["document"] = np.frombuffer(json.dumps(head, sort_keys=True).encode(), np.uint8)
    for modality, scorer in reference.scorers.items():
        arrays |= {f"{modality}/{name}": a for name, a in scorer.arrays().items()}
    data: bytes = save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())})
    return data


def from_bytes(data: bytes) -> AnomalyReference:
    """The inverse of :func:`to_bytes`; a UserError where the bytes are not of this format."""
    try:
        arrays = load(data)
        head = json.loads(arrays["document"].tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"The anomaly reference is no file of this program: {error}.", hint=_AGAIN) from error
    if head.get("format") != FORMAT:
        raise UserError(
            f"The anomaly reference has the format {head.get('format')!r}; this version reads '{FORMAT}'.",
            hint=_AGAIN,
        )
    scorers = {}
    for modality in MODALITIES:
        own = f"{modality}/"
        found = {name[len(own) :]: a for name, a in arrays.items() if name.startswith(own)}
        if found:
            scorers[modality] = LatentScorer.from_arrays(found)
    return AnomalyReference(
        scorers=scorers,
        horizons=tuple(head["horizons"]),
        classes=tuple(head["classes"]),
        document=head,
        **{name: arrays[f"reference/{name}"] for name in _PARTS},  # type: ignore[arg-type]
    )


def load_reference(model_set: Any) -> AnomalyReference | None:
    """The reference of a model set, None where it has none.

    Raises
    ------
    UserError
        If it was fitted with other networks or another calibration than the set's.
    """
    if not model_set.anomaly_ref_id:
        return None
    reference = from_bytes(model_set.anomaly_bytes())
    if reference.document["fitted_with"] != fitted_with(model_set):
        raise UserError(
            f"The anomaly reference of '{model_set.name}' was fitted with other networks or another "
            "calibration than the set has now.",
            hint=_AGAIN,
        )
    return reference


def fitted_with(model_set: Any) -> dict[str, str]:
    """Digests of what a reference depends on: the weights in use and the calibration."""
    weights = {m: entry.card.weights_sha256 for m, entry in model_set.defaults.items()}
    return {**weights, "calibration": model_set.calibration_id}
