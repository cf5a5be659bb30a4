"""Classes, gates and the way from a source's type string to them.

The five classes and their order are those of AppleCiDEr (arXiv:2507.16088); the ten finer ones add the
supernova sub-classes.  The order is part of every probability column and never changes.
"""

from __future__ import annotations

import re

CLASSES: tuple[str, ...] = ("SN I", "SN II", "CV", "AGN", "TDE")
CLASS_KEYS: tuple[str, ...] = ("sni", "snii", "cv", "agn", "tde")
CLASSES10: tuple[str, ...] = (
    "SN Ia", "SN Ib", "SN Ic", "SN II", "SN IIP", "SN IIn", "SN IIb", "CV", "AGN", "TDE",
)  # fmt: skip
CLASS10_TO_CLASS5: dict[str, str] = {
    "SN Ia": "SN I",
    "SN Ib": "SN I",
    "SN Ic": "SN I",
    "SN II": "SN II",
    "SN IIP": "SN II",
    "SN IIn": "SN II",
    "SN IIb": "SN II",
    "CV": "CV",
    "AGN": "AGN",
    "TDE": "TDE",
}
OTHER = "OTHER"

GATES: tuple[str, ...] = ("in_scope", "moving", "variable_star", "artefact", "too_few_detections")

BANDS: tuple[str, ...] = ("g", "r", "i")
FID_TO_BAND: dict[int, str] = {1: "g", 2: "r", 3: "i"}

_RULES: tuple[tuple[str, str], ...] = (
    (r"slsn|superlum|ibn|icn|iax|lrn|lbv|ilrt|gap|kilonova|\bgrb", OTHER),
    (r"tde|tidal", "TDE"),
    (r"agn|qso|quasar|seyfert|blazar|bl ?lac|liner|\bbll\b", "AGN"),
    (r"\bcv\b|cataclysmic|(?<!super)nova|\bam ?her", "CV"),
    (r"iib", "SN IIb"),
    (r"iin", "SN IIn"),
    (r"iip", "SN IIP"),
    (r"\bii|^sn ?ii|sn ?ii", "SN II"),
    (r"\bia|sn ?ia", "SN Ia"),
    (r"\bib/c|ibc", "SN I"),
    (r"\bic|sn ?ic", "SN Ic"),
    (r"\bib|sn ?ib", "SN Ib"),
    (r"^(sn ?)?i$", "SN I"),
)


def to_class10(type_raw: str | None) -> str | None:
    """Map a source's type string to one of :data:`CLASSES10`.

    Parameters
    ----------
    type_raw : str or None
        For example ``"SN Ia-91T"``, ``"II-pec"``, ``"QSO"``.

    Returns
    -------
    str or None
        A class of :data:`CLASSES10`; ``"OTHER"`` for a known type outside them; None where the string says
        nothing, or only the broad class (``"SN I"``, ``"Ib/c"``).
    """
    found = _match(type_raw)
    return None if found == "SN I" else found


def to_class5(type_raw: str | None) -> str | None:
    """Map a source's type string to one of :data:`CLASSES`, ``"OTHER"`` or None (see :func:`to_class10`)."""
    found = _match(type_raw)
    if found is None or found in (OTHER, "SN I"):
        return found
    return CLASS10_TO_CLASS5[found]


def _match(type_raw: str | None) -> str | None:
    if type_raw is None:
        return None
    text = type_raw.strip().lower()
    if text in ("", "-", "sn", "at", "unknown", "none", "null", "nan"):
        return None
    for pattern, name in _RULES:
        if re.search(pattern, text):
            return name
    return OTHER
