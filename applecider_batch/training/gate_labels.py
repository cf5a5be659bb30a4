"""What objects are, for the gate: from a survey's truth, from own labels, or from catalogue types.

A table (Parquet or CSV) has the object's name and one or more of: ``gate`` (in_scope, variable_star,
artefact, moving), a class column as label tables have it, ``simbad`` and ``vsx_type`` (types of the
catalogues by position, as brokers add them).  They are asked in this order.  A catalogue's type is no
truth: it may be wrong, and what varies need not be what is catalogued there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from applecider_batch.errors import UserError
from applecider_batch.features.gate_model import IN_SCOPE, OUTPUTS
from applecider_batch.taxonomy import CLASSES, to_class5
from applecider_batch.training.labels import (
    CLASS_COLUMNS,
    GROUP_COLUMNS,
    OBJECT_COLUMNS,
    column_texts,
    find_column,
    read_table,
)

#: Kinds that objects are counted by, and the gate of each.
KIND_GATES: dict[str, str] = {
    "supernova": IN_SCOPE, "CV": IN_SCOPE, "AGN": IN_SCOPE, "TDE": IN_SCOPE,
    "star": "variable_star", "artefact": "artefact", "mover": "moving",
}  # fmt: skip
NO_TYPE = ("", "nan", "none", "null", "unknown")
# In order; of SIMBAD's object types, long and short, and of VSX's variability types.
SIMBAD_KINDS: tuple[tuple[str, str], ...] = (
    (r"^(CV|No)\*|Catac|Nova|^CV", "CV"),
    (r"^SN|Supernova|^SLSN", "supernova"),
    (r"^TDE", "TDE"),
    (r"QSO|Seyfert|^AGN$|BLLac|Blazar|LINER", "AGN"),
    (
        r"Galaxy|^G$|EmG|Radio|^X$|GinC|BClG|GinPair|HII_G|LensedImage",
        "galaxy or unidentified radio/X source",
    ),
    (
        r"EclBin|RRLyr|LP|Mira|Puls|BYDra|TTau|Cep|AGB|XB|Star|YSO|SG$|SG_C|WhiteDwarf|ubdwarf|Hsd|EllipVar|"
        r"OH/IR|PlanetaryNeb|\*",
        "star",
    ),
)
VSX_CATACLYSMIC = re.compile(r"^(UG|N[ABCRL]?$|NL|AM$|DQ|CV|IBWD|ZAND|V838)")
VSX_AGN = re.compile(r"^(AGN|QSO|BLLAC|BL LAC|GAL)")
UNTYPED, OTHER = "no type", "other type"


@dataclass(frozen=True)
class GateLabels:
    """Kind (of :data:`KIND_GATES`) and group (one object of the sky) of each object that can be used."""

    kind: dict[str, str]
    group: dict[str, str]


def kind_of(simbad: str | None = None, vsx: str | None = None, label: str | None = None) -> str:
    """Kind of object: its own class where there is one, else SIMBAD's type, else VSX's."""
    found = label if label in CLASSES else to_class5(label)
    if found in CLASSES:
        return "supernova" if found.startswith("SN") else found
    if label is not None and label.startswith("SLSN"):
        return "supernova"
    simbad, vsx = (simbad or "").strip(), (vsx or "").strip()
    failed = simbad.startswith("Fail")  # the cross-match service gave no answer
    simbad = re.sub(r"^\((TNS|SIMBAD)\) ", "", simbad)
    if simbad.lower() not in NO_TYPE and not failed:
        return next((kind for pattern, kind in SIMBAD_KINDS if re.search(pattern, simbad)), OTHER)
    if vsx.lower() not in NO_TYPE:
        if VSX_CATACLYSMIC.match(vsx):
            return "CV"
        return "AGN" if VSX_AGN.match(vsx) else "star"
    return UNTYPED


def read_gate_labels(url: str, storage_options: Any = None) -> GateLabels:
    """Read a table of what objects are.

    Raises
    ------
    UserError
        If it cannot be read, lacks the columns, or has no object that can be used.
    """
    table = read_table(url, storage_options)
    names = column_texts(table, find_column(table, OBJECT_COLUMNS, "object", url))

    def optional(wanted: tuple[str, ...]) -> list[str | None]:
        name = next((name for name in wanted if name in table.column_names), None)
        return [None] * table.num_rows if name is None else column_texts(table, name)

    gates, classes, raw = optional(("gate",)), optional(CLASS_COLUMNS["five"]), optional(("type_raw", "type"))
    simbad, vsx, groups = optional(("simbad",)), optional(("vsx_type",)), optional(GROUP_COLUMNS)
    kinds: dict[str, str] = {}
    group: dict[str, str] = {}
    of_gate = {gate: kind for kind, gate in KIND_GATES.items() if gate != IN_SCOPE}
    for i, name in enumerate(names):
        kind = of_gate.get(gates[i] or "") or kind_of(simbad[i], vsx[i], classes[i] or raw[i])
        if name is not None and kind in KIND_GATES:
            kinds.setdefault(name, kind)
            group.setdefault(name, groups[i] or name)
    if not kinds:
        raise UserError(
            f"'{url}' has no object whose gate is known; it needs a column gate (of {', '.join(OUTPUTS)}), "
            f"{', '.join(CLASS_COLUMNS['five'])}, simbad or vsx_type.",
            hint="A simulated survey's truth.parquet has them.",
        )
    return GateLabels(kinds, group)


def counts(kind: np.ndarray) -> dict[str, int]:
    """Objects of each kind, in the order of :data:`KIND_GATES`."""
    return {name: int((kind == name).sum()) for name in KIND_GATES if (kind == name).any()}


def interval(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, k of n seen (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
