"""From what a user says about a checkpoint to a full card, or a refusal that names all that is missing.

A card to import AstroMiNN with, in TOML (``schemas/model_card.json`` lists all fields)::

    class_order = ["SN I", "SN II", "CV", "AGN", "TDE"]   # of the outputs, in order
    training_data = "ZTF BTS, 18,245 objects"             # optional, as are metrics, notes, trained
    training_ids = "ZTF_IDs.txt"                          # optional: who trained it, a name a line
    feature_names = ["sgscore1", "sgscore2", …]           # only where the columns stood in another order

    [normalisation.metadata]                              # or metadata = "none" under [normalisation]
    mean = [0.5, …]
    std = [0.4, …]

    [config]                                              # only what differs from the profile's network
    towers_outdims = 4

A photometry network needs ``[normalisation.photometry]`` with four numbers each; a spectra network none.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from applecider_batch.errors import UserError
from applecider_batch.features.curve_summary import SUMMARY_NAMES
from applecider_batch.features.profiles import UPSTREAM_METADATA, get_profile
from applecider_batch.features.spectra_raster import CHANNELS
from applecider_batch.models import CLASSIFYING, NetworkSpec, network_spec
from applecider_batch.models.card import (
    PHOTOMETRY_CHANNELS,
    ModelCard,
    Statistics,
    card_fields,
    check_fields,
    class_map_of,
)
from applecider_batch.taxonomy import CLASSES

# What a card must say, by modality: the parts of `normalisation`.
_STATISTICS: dict[str, tuple[str, ...]] = {
    "photometry": ("photometry",),
    "pretraining": ("photometry",),
    "image": ("metadata",),
    "fusion": ("photometry", "metadata"),
}


def read_card(card: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """A card to import with: a mapping, or a TOML or JSON file of the fields of ``schemas/model_card.json``.

    TOML has no null: ``metadata = "none"`` under ``[normalisation]`` says that the network takes them raw.
    """
    if card is None:
        return {}
    if isinstance(card, Mapping):
        document = dict(card)
    else:
        path = Path(card)
        try:
            text = path.read_text(encoding="utf-8")
            document = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        except FileNotFoundError as error:
            raise UserError(f"There is no card '{card}'.") from error
        except (ValueError, OSError) as error:
            raise UserError(f"The card '{card}' is neither TOML nor (.json) JSON: {error}.") from error
        if not isinstance(document, dict):
            raise UserError(f"The card '{card}' must be an object of fields.")
    check_fields(document, complete=False)
    if made := sorted(k for k in document if not card_fields()[k]["given"]):
        raise UserError(f"The card's fields {', '.join(made)} are written by the import; leave them out.")
    return document


def read_training_ids(
    document: Mapping[str, Any], card: Mapping[str, Any] | str | Path | None
) -> list[str] | None:
    """Names in the file that a card to import with calls ``training_ids``, one a line; None without one.

    Raises
    ------
    UserError
        If the file cannot be read or names nothing.
    """
    file = document.get("training_ids")
    if not file:
        return None
    folder = Path(card).parent if isinstance(card, str | Path) else Path()
    try:
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card's training_ids '{folder / file}' cannot be read: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"The card's training_ids '{folder / file}' names no object.")
    return names


def complete_card(
    document: Mapping[str, Any], profile: str, network: str, *, name: str, trained: bool = True
) -> tuple[ModelCard, list[str]]:
    """Make a full card of what was given; what cannot be made is refused.

    Returns
    -------
    card : ModelCard
        Without weights.
    from_profile : list of str
        Fields that the profile decided because they were not given.

    Raises
    ------
    UserError
        If a required field is missing (all of them are named), or contradicts the profile.
    """
    spec = network_spec(profile, network)
    for key, value in (("profile", profile), ("network", network)):
        if document.get(key, value) != value:
            raise UserError(
                f"The card says {key} = '{document[key]}', the import '{value}'; they must agree."
            )
    given = document.get("normalisation", {})
    parts = _STATISTICS.get(spec.modality, ()) + (("summary",) if spec.reads_summary else ())
    if len(parts) == 1 and "mean" in given:
        given = {parts[0]: given}
    lacking = ["class_order"] if spec.modality in CLASSIFYING and not document.get("class_order") else []
    for part in parts:
        if part not in given or (part == "photometry" and not isinstance(given[part], Mapping)):
            lacking.append(f"normalisation.{part} (mean and std{_or_none(part)})")
        elif isinstance(given[part], Mapping):
            lacking += [f"normalisation.{part}.{k}" for k in ("mean", "std") if k not in given[part]]
    if lacking:
        raise UserError(
            f"The card for the {spec.modality} network '{network}' of '{profile}' cannot be completed;"
            f" it lacks: {', '.join(lacking)}.",
            hint="They are not in a checkpoint and are never guessed; ask whoever trained it.",
        )
    if strange := sorted(set(given) - set(parts)):
        raise UserError(
            f"The card gives normalisation of {', '.join(strange)}; the {spec.modality} network '{network}'"
            f" takes {', '.join(parts) or 'none (each spectrum is normalised by itself)'}."
        )
    statistics = {k: _statistics(v) for k, v in given.items()}
    config = dict(document.get("config", {}))
    classes = tuple(str(c) for c in document.get("class_order", ()))
    if spec.modality in CLASSIFYING:
        config.setdefault("n_classes", len(classes))
    elif classes:
        raise UserError(
            f"The network '{network}' ({spec.modality}) does not classify; its card needs no class_order."
        )
    features, from_profile = _features(document, spec, profile, config, statistics)
    missing_value = get_profile(profile).missing_value
    if document.get("missing_value", missing_value) != missing_value:
        raise UserError(
            f"The card's missing_value {document['missing_value']} differs from {missing_value}, which the"
            f" profile '{profile}' writes."
        )
    card = ModelCard(
        name=name,
        profile=profile,
        network=network,
        modality=spec.modality,
        config=config,
        class_order=classes,
        class_map=_class_map(classes, document.get("class_map")) if classes else (),
        feature_names=features,
        normalisation=statistics,
        missing_value=missing_value,
        trained=bool(document.get("trained", trained)),
        training_data=str(document.get("training_data", "not stated")),
        metrics=dict(document.get("metrics", {})),
        notes=str(document.get("notes", "")),
        profile_digest=get_profile(profile).digest(),
    )
    return card, from_profile


def _or_none(part: str) -> str:
    return ', or "none" if the network takes raw metadata' if part == "metadata" else ""


def _statistics(value: Any) -> Statistics | None:
    if value is None or value == "none":
        return None
    if not isinstance(value, Mapping):
        raise UserError(f'Statistics must be an object with mean and std, or "none"; given {value!r}.')
    return Statistics.from_json(value)


def _class_map(classes: Sequence[str], given: Any) -> tuple[tuple[float, ...], ...]:
    """The map to the five classes: from the names, an object output -> class, or a matrix."""
    if given is None or isinstance(given, Mapping):
        return class_map_of(classes, given)
    try:
        matrix = tuple(tuple(float(v) for v in row) for row in given)
    except (TypeError, ValueError) as error:
        raise UserError(f"The card's class_map must be numbers, 0 or 1: {error}.") from error
    columns = list(zip(*matrix, strict=False))
    if any(v not in (0.0, 1.0) for row in matrix for v in row) or any(sum(column) > 1 for column in columns):
        raise UserError(
            "The card's class_map must hold 0 and 1, and every output count for one class at most."
        )
    if any(not sum(row) for row in matrix):
        raise UserError(f"The card's class_map leaves one of {', '.join(CLASSES)} without an output.")
    return matrix


def _fixed_channels(spec: NetworkSpec) -> tuple[str, tuple[str, ...]] | None:
    """What the input's channels are called, and their names, where no profile or card can change them."""
    if spec.modality in ("photometry", "pretraining"):
        return "photometry", PHOTOMETRY_CHANNELS + (SUMMARY_NAMES if spec.reads_summary else ())
    return ("picture", CHANNELS) if spec.reads_pictures else None


def _features(
    document: Mapping[str, Any],
    spec: NetworkSpec,
    profile: str,
    config: dict[str, Any],
    statistics: dict[str, Statistics | None],
) -> tuple[tuple[str, ...], list[str]]:
    """Feature names of the network's input, as the profile delivers them.

    A card may name metadata columns in another order than the profile's, because upstream trained with
    several. Upstream's towers read by position: the card's names say what stood there, and the towers are
    pointed at those features. ``config`` and ``statistics`` are brought into the profile's order in place.
    """
    given = tuple(str(n) for n in document.get("feature_names", ()))
    modality = spec.modality
    if fixed := _fixed_channels(spec):
        what, channels = fixed
        if given and given != channels:
            raise UserError(
                f"The {what} channels are {', '.join(channels)}, in this order; the card says"
                f" {', '.join(given)}."
            )
        return channels, [] if given else ["feature_names"]
    if modality not in ("image", "fusion"):
        return (), []
    provided = get_profile(profile).metadata_names
    if not given or given == provided:
        return provided, [] if given else ["feature_names"]
    if modality == "fusion":
        raise UserError(
            f"The metadata of '{profile}' are {', '.join(provided)}; the card says {', '.join(given)}."
        )
    if len(set(given)) != len(given):
        raise UserError("The card's feature_names hold a name twice.")
    if provided == UPSTREAM_METADATA and "towers" not in config:
        if len(given) != len(UPSTREAM_METADATA):
            raise UserError(
                f"Upstream's AstroMiNN reads {len(UPSTREAM_METADATA)} columns; the card names {len(given)}."
            )
        from applecider_batch.models.astrominn import UPSTREAM_TOWERS

        column = dict(zip(UPSTREAM_METADATA, given, strict=True))
        config["towers"] = {tower: [column[n] for n in names] for tower, names in UPSTREAM_TOWERS.items()}
    read = {n for names in config.get("towers", {}).values() for n in names}
    if absent := sorted(read - set(provided)):
        raise UserError(
            f"The card's feature_names make the network read {', '.join(absent)}, which the profile"
            f" '{profile}' does not deliver; it delivers {', '.join(provided)}."
        )
    if (old := statistics.get("metadata")) is not None:
        if len(old.mean) != len(given):
            raise UserError(f"The card gives {len(old.mean)} metadata statistics for {len(given)} features.")
        at = {n: i for i, n in enumerate(given)}
        statistics["metadata"] = Statistics(
            mean=tuple(old.mean[at[n]] if n in at else None for n in provided),
            std=tuple(old.std[at[n]] if n in at else None for n in provided),
            clip=old.clip,
        )
    return provided, []
