"""The model card: what a weights file is, what it eats and what its outputs mean.

A card is one JSON file beside the weights (``schemas/model_card.json`` lists its fields). Every number that
a network needs and that is not in its weights stands here: class order, feature names, statistics. Nothing
is guessed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import SUMMARY_NAMES
from applecider_batch.features.spectra_raster import PICTURE_SIZE
from applecider_batch.models import network_spec
from applecider_batch.schema import schemas_folder
from applecider_batch.taxonomy import CLASSES, to_class5

CARD_FORMAT = "applecider-batch model card 1"
PHOTOMETRY_CHANNELS = ("log1p_dt", "log1p_dt_prev", "logflux", "logflux_err", "band_g", "band_r", "band_i")
N_STANDARDISED = 4  # the one-hot bands are left alone
STD_EPSILON = 1e-8  # upstream's guard, part of the function (golden README section 4)


@dataclass(frozen=True)
class Statistics:
    """Training-set mean and standard deviation, feature by feature.

    Attributes
    ----------
    mean, std : tuple of float or None
        None leaves that feature in its own unit (ra and dec of the paper's AstroMiNN, which are angles).
    clip : float or None
        Bound on the standardised value, so that a missing value (-999) is far out but not absurd.
    """

    mean: tuple[float | None, ...]
    std: tuple[float | None, ...]
    clip: float | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise UserError(
                f"A card's mean has {len(self.mean)} numbers and its std {len(self.std)}; they must agree."
            )
        for mean, std in zip(self.mean, self.std, strict=True):
            if (mean is None) != (std is None):
                raise UserError("A card's mean and std must be null for the same features.")
            if (
                mean is not None
                and std is not None
                and not (np.isfinite(mean) and np.isfinite(std) and std > 0)
            ):
                raise UserError(
                    f"A card's statistics must be finite with std > 0; given mean {mean}, std {std}."
                )

    def as_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"mean": list(self.mean), "std": list(self.std), "clip": self.clip}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """The inverse of :meth:`as_json`; ``clip`` may be left out."""
        if absent := [key for key in ("mean", "std") if not isinstance(value.get(key), list | tuple)]:
            raise UserError(f"A card's statistics need lists of numbers under {' and '.join(absent)}.")
        numbers = [tuple(None if v is None else float(v) for v in value[key]) for key in ("mean", "std")]
        clip = value.get("clip")
        return cls(numbers[0], numbers[1], None if clip is None else float(clip))


@dataclass(frozen=True)
class ModelCard:
    """What a network of a model set is.

    Attributes
    ----------
    name, profile, network, modality : str
        Name in the set; the registry's profile and network; what it eats.
    config : dict
        Given to :func:`applecider_batch.models.build_network`.
    class_order : tuple of str
        Meaning of the network's outputs, in order; empty for networks that do not classify.
    class_map : tuple of tuples, (5, C)
        1 where an output counts for one of `taxonomy.CLASSES`; a column of zeros is a class outside them.
    feature_names : tuple of str
        Columns of the input in order (photometry channels, metadata, channels of a picture); empty for
        spectra on a grid.
    normalisation : dict
        ``photometry``: :class:`Statistics` of the first four channels; ``summary``: of the summary numbers
        of light curves, there only where the network reads them; ``metadata``: of the metadata, or None where
        the network takes them as they are.
    missing_value : float
        Stands for a missing metadata value (-999); NaN is turned into it.
    trained : bool
    training_data, notes : str
    metrics : dict
    profile_digest : str
        Digest of the feature profile that the network was made for.
    training_ids, training_ids_sha256 : str
        File beside the card with the names of the objects that trained the network, one a line, and its
        SHA-256; empty where they are not known.
    weights, weights_sha256 : str
        File name beside the card, and its SHA-256.
    """

    name: str
    profile: str
    network: str
    modality: str
    config: dict[str, Any] = field(default_factory=dict)
    class_order: tuple[str, ...] = CLASSES
    class_map: tuple[tuple[float, ...], ...] = ()
    feature_names: tuple[str, ...] = ()
    normalisation: dict[str, Statistics | None] = field(default_factory=dict)
    missing_value: float = -999.0
    trained: bool = False
    training_data: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: str = ""
    profile_digest: str = ""
    training_ids: str = ""
    training_ids_sha256: str = ""
    weights: str = ""
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if self.class_order and not self.class_map:
            object.__setattr__(self, "class_map", class_map_of(self.class_order))
        matrix = np.array(self.class_map, dtype=float)
        if self.class_order and matrix.shape != (len(CLASSES), len(self.class_order)):
            raise UserError(
                f"The card '{self.name}' has a class_map of shape {matrix.shape}; its"
                f" {len(self.class_order)} classes need ({len(CLASSES)}, {len(self.class_order)})."
            )
        photometry = self.normalisation.get("photometry")
        if photometry is not None and len(photometry.mean) != N_STANDARDISED:
            raise UserError(
                f"The card '{self.name}' gives {len(photometry.mean)} photometry statistics; the first"
                f" {N_STANDARDISED} channels are standardised"
                f" ({', '.join(PHOTOMETRY_CHANNELS[:N_STANDARDISED])})."
            )
        summary = self.normalisation.get("summary")
        names = self.feature_names[len(PHOTOMETRY_CHANNELS) :]
        if summary is not None and (names != SUMMARY_NAMES or len(summary.mean) != len(names)):
            raise UserError(
                f"The card '{self.name}' was made for other summary numbers of light curves than this version"
                " makes.",
                hint="Use the version it was made with, or train again.",
            )
        metadata = self.normalisation.get("metadata")
        if metadata is not None and len(metadata.mean) != len(self.feature_names):
            raise UserError(
                f"The card '{self.name}' gives {len(metadata.mean)} metadata statistics for"
                f" {len(self.feature_names)} features."
            )

    def standardise_photometry(self, values: np.ndarray) -> np.ndarray:
        """Standardise sequences: (v - mean) / (std + 1e-8) on the first four channels, in a new array.

        Parameters
        ----------
        values : ndarray, float32, shape (..., 7)

        Returns
        -------
        ndarray, float32, shape (..., 7)
        """
        out = np.array(values, dtype=np.float32)
        statistics = self.normalisation.get("photometry")
        if statistics is not None:
            mean = np.array(statistics.mean, dtype=np.float32)
            std = np.array(statistics.std, dtype=np.float32)
            out[..., :N_STANDARDISED] = (out[..., :N_STANDARDISED] - mean) / (std + np.float32(STD_EPSILON))
        return out

    @property
    def picture_size(self) -> int | None:
        """Pixels a side of the pictures of spectra that the network reads; None: it reads none."""
        if self.modality != "spectra" or not network_spec(self.profile, self.network).reads_pictures:
            return None
        return int(self.config.get("image_size", PICTURE_SIZE))

    @property
    def reads_summary(self) -> bool:
        """Whether the network reads the summary numbers of light curves."""
        return "summary" in self.normalisation

    def standardise_summary(self, values: np.ndarray) -> np.ndarray:
        """Summary numbers of light curves: (v - mean) / std within the card's clip; NaN stays.

        Parameters
        ----------
        values : ndarray, float32, shape (n, F)

        Returns
        -------
        ndarray, float32, shape (n, F)
        """
        statistics = self.normalisation["summary"]
        if statistics is None:
            return values
        mean, std = (np.array(v, np.float32) for v in (statistics.mean, statistics.std))
        limit = np.inf if statistics.clip is None else statistics.clip
        return np.clip((values - mean) / std, -limit, limit)

    def standardise_metadata(self, values: np.ndarray) -> np.ndarray:
        """Metadata as the network wants them: NaN to the missing value, then the card's mean and std, if any.

        The missing value is standardised like any other and then clipped, so it stays recognisable.

        Parameters
        ----------
        values : ndarray, float32, shape (n, F)
            Columns in the order of ``feature_names``.

        Returns
        -------
        ndarray, float32, shape (n, F)
        """
        out = np.array(values, dtype=np.float32)
        out[np.isnan(out)] = self.missing_value
        statistics = self.normalisation.get("metadata")
        if statistics is None:
            return out
        chosen = np.array([mean is not None for mean in statistics.mean], dtype=bool)
        mean = np.array([m for m in statistics.mean if m is not None], dtype=np.float32)
        std = np.array([s for s in statistics.std if s is not None], dtype=np.float32)
        scaled = (out[:, chosen] - mean) / std
        if statistics.clip is not None:
            scaled = np.clip(scaled, -statistics.clip, statistics.clip)
        out[:, chosen] = scaled
        return out

    def to_five(self, logits: np.ndarray) -> np.ndarray:
        """Logits of the five classes: the network's own, or the logarithms of summed probabilities.

        Parameters
        ----------
        logits : ndarray, float32, shape (n, C)
            In ``class_order``.

        Returns
        -------
        ndarray, float32, shape (n, 5)
            In the order of `taxonomy.CLASSES`. Where the network has exactly these classes its logits are
            reordered and otherwise untouched; else log probabilities, renormalised over the five.
        """
        if not self.class_order:
            raise UserError(f"The network '{self.name}' ({self.network}) does not classify.")
        if logits.ndim != 2 or logits.shape[1] != len(self.class_order):
            raise ValueError(
                f"logits of shape {logits.shape}; '{self.name}' has {len(self.class_order)} classes"
            )
        matrix = np.array(self.class_map, dtype=float)
        if is_permutation(matrix):
            return np.ascontiguousarray(logits[:, matrix.argmax(axis=1)], dtype=np.float32)
        wide = logits.astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row with infinities becomes NaN, without a word
            groups = [
                np.logaddexp.reduce(wide[:, row > 0] + np.log(row[row > 0]), axis=1, initial=-np.inf)
                for row in matrix
            ]
            five = np.stack(groups, axis=1)
            return (five - np.logaddexp.reduce(five, axis=1, keepdims=True)).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "format": CARD_FORMAT,
            "name": self.name,
            "profile": self.profile,
            "profile_digest": self.profile_digest,
            "network": self.network,
            "modality": self.modality,
            "config": self.config,
            "class_order": list(self.class_order),
            "class_map": [list(row) for row in self.class_map],
            "feature_names": list(self.feature_names),
            "normalisation": {k: v.as_json() if v else None for k, v in sorted(self.normalisation.items())},
            "missing_value": self.missing_value,
            "trained": self.trained,
            "training_data": self.training_data,
            "metrics": self.metrics,
            "notes": self.notes,
            "training_ids": self.training_ids,
            "training_ids_sha256": self.training_ids_sha256,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelCard:
        """Read a card's JSON document; missing, unknown or mistyped fields are a UserError."""
        check_fields(document, complete=True)
        if document["format"] != CARD_FORMAT:
            raise UserError(
                f"Unknown card format '{document['format']}'; this version reads '{CARD_FORMAT}'."
            )
        rest = {k: v for k, v in document.items() if k != "format"}
        for key in ("class_order", "feature_names"):
            rest[key] = tuple(rest[key])
        rest["class_map"] = tuple(tuple(float(v) for v in row) for row in rest["class_map"])
        rest["missing_value"] = float(rest["missing_value"])
        rest["normalisation"] = {
            k: Statistics.from_json(v) if v is not None else None for k, v in rest["normalisation"].items()
        }
        return cls(**rest)


def is_permutation(matrix: np.ndarray) -> bool:
    """Whether a class map only reorders: one 1 in every row and column, 0 elsewhere."""
    square = matrix.shape[0] == matrix.shape[1]
    return bool(
        square and (matrix.sum(0) == 1).all() and (matrix.sum(1) == 1).all() and (matrix.max(0) == 1).all()
    )


def class_map_of(
    class_order: Sequence[str], explicit: Mapping[str, str] | None = None
) -> tuple[tuple[float, ...], ...]:
    """Class map of a network's outputs, from their names.

    Parameters
    ----------
    class_order : sequence of str
        For example ``["AGN", "CV", "IIP", "Ia", "SLSN-I"]``.
    explicit : mapping of str to str, optional
        Output name -> one of `taxonomy.CLASSES` or ``"OTHER"``, for names that say nothing by themselves.

    Returns
    -------
    tuple of tuples of float, (5, C)
        A class outside the five ("OTHER") has a column of zeros: probabilities are then conditional on the
        five.

    Raises
    ------
    UserError
        If a name is not understood, is there twice, or one of the five classes has no output.
    """
    explicit = explicit or {}
    if len(set(class_order)) != len(class_order):
        raise UserError(f"The class order names a class twice: {', '.join(class_order)}.")
    targets = [explicit.get(name) or to_class5(name) for name in class_order]
    bad = [n for n, t in zip(class_order, targets, strict=True) if t is None or t not in (*CLASSES, "OTHER")]
    if bad:
        raise UserError(
            f"The classes {', '.join(map(repr, bad))} cannot be assigned to {', '.join(CLASSES)} or OTHER.",
            hint='Say it in the card, for example: class_map = {"' + bad[0] + '" = "SN I"}.',
        )
    if lacking := [name for name in CLASSES if name not in targets]:
        raise UserError(
            f"The class order {', '.join(class_order)} has no output for {', '.join(lacking)}; all of"
            f" {', '.join(CLASSES)} are needed."
        )
    return tuple(tuple(float(target == name) for target in targets) for name in CLASSES)


@functools.cache
def card_fields() -> dict[str, dict[str, Any]]:
    """Fields of a card from ``schemas/model_card.json``: name -> type, required, description."""
    document: dict[str, dict[str, Any]] = json.loads(
        (schemas_folder() / "model_card.json").read_text(encoding="utf-8")
    )["fields"]
    return document


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bool": (bool,),
    "number": (int, float),
    "object": (dict,),
    "array": (list, tuple),
}


def check_fields(document: Mapping[str, Any], *, complete: bool) -> None:
    """Refuse a card with unknown fields, wrong types or, where ``complete``, missing fields."""
    fields = card_fields()
    if unknown := sorted(set(document) - set(fields)):
        raise UserError(
            f"The card has unknown fields: {', '.join(unknown)}; allowed: {', '.join(sorted(fields))}."
        )
    needed = [k for k, f in fields.items() if f["stored"] and not f.get("optional", False)]
    if complete and (missing := sorted(k for k in needed if k not in document)):
        raise UserError(f"The card lacks the fields {', '.join(missing)}.")
    for name, value in document.items():
        allowed = tuple(kind for text in fields[name]["type"].split("|") for kind in _TYPES[text])
        if not isinstance(value, allowed):
            raise UserError(
                f"The card's field '{name}' is {type(value).__name__}, it must be {fields[name]['type']}."
            )
