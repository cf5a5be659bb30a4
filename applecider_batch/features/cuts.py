"""Cuts as named presets: what a survey's or a user's selection says of each row, removing nothing.

``cuts.toml`` beside this file holds the packaged ones and the rules of the format, which is also that of a
user's own file.  No preset (``none`` in other tools) is the catalogue itself.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from applecider_batch.errors import UserError
from applecider_batch.features.asof import View
from applecider_batch.features.points import Alerts
from applecider_batch.features.segments import counts_of, float_column
from applecider_batch.schema import load_table

#: What a condition of ``row`` may ask: numbers of the catalogue that are known of everything seen.
ROW_COLUMNS: tuple[str, ...] = (
    "n_det", "n_det_g", "n_det_r", "n_det_i", "n_neg", "n_nondet", "n_fp", "mag_peak_g", "mag_peak_r",
    "galactic_b", "rb_max", "drb_max", "drb_median", "frac_ss", "ssdistnr_min", "distpsnr1", "sgscore1",
)  # fmt: skip
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
MAX_OWN = 15
NEIGHBOURS = ("1", "2", "3")
_CONDITION = re.compile(r"^\s*(?:abs\(\s*(\w+#?)\s*\)|(\w+#?))\s*(\S*?)\s*(-?[\d.][\d.eE+-]*)\s*$")
_NUMBERS = ("int8", "int16", "int32", "float32", "float64")


@dataclass(frozen=True)
class Condition:
    """``column operator value``, of the absolute value where ``absolute``; missing numbers meet none.

    The value has the precision of its column: an ``rb`` of 0.65, stored as float32, meets ``rb >= 0.65``.
    """

    column: str
    absolute: bool
    operator: str
    value: float

    def met(self, values: np.ndarray) -> np.ndarray:
        """Which values (float64, NaN for missing) meet it, bool of the same shape."""
        if self.absolute:
            values = np.abs(values)
        return np.isfinite(values) & OPERATORS[self.operator](values, self.value)


Group = tuple[Condition, ...]


@dataclass(frozen=True)
class Preset:
    """A named cut: conditions on an alert, groups that reject one, conditions on the row."""

    name: str
    description: str
    alert: Group
    reject: Mapping[str, Group]
    row: Group

    def rejects(self, alerts: Alerts, group: str) -> np.ndarray:
        """Alerts that meet a group of ``reject``, bool (n_alerts,)."""
        return _all_met(alerts, self.reject[group])

    def evaluate(self, alerts: Alerts, view: View, row: Mapping[str, pa.Array]) -> pa.Array:
        """Whether each view passes.

        Parameters
        ----------
        alerts : Alerts
        view : View
            Alerts visible.
        row : mapping of column -> array (v,)
            The catalogue's numbers of each view (:data:`ROW_COLUMNS`).

        Returns
        -------
        pyarrow bool array, shape (v,)
            Null where the preset is not applicable.
        """
        n, segment, position = len(view), view.segment, view.position
        passes = _all_met(alerts, self.alert)
        for group in self.reject:
            passes &= ~self.rejects(alerts, group)
        passed = np.ones(n, bool)
        known = np.ones(n, bool)
        if self.alert or self.reject:
            passed = counts_of(segment, n, passes[position]) > 0
            known = counts_of(segment, n) > 0
        for condition in self.alert:
            given = np.zeros(len(alerts), bool)
            for name in _names(condition.column):
                given |= np.isfinite(alerts.floats(name))
            known &= counts_of(segment, n, given[position]) > 0
        for condition in self.row:
            values = float_column(pa.table({condition.column: row[condition.column]}), condition.column)
            known &= np.isfinite(values)
            passed &= condition.met(values)
        return pa.array(passed, mask=~known)


def _names(column: str) -> list[str]:
    return [column.replace("#", k) for k in NEIGHBOURS] if "#" in column else [column]


def _all_met(alerts: Alerts, group: Group) -> np.ndarray:
    """Alerts that meet all conditions; with ``#`` in one of them, all for the same neighbour."""
    any_neighbour = np.zeros(len(alerts), bool)
    for k in NEIGHBOURS if any("#" in condition.column for condition in group) else NEIGHBOURS[:1]:
        met = np.ones(len(alerts), bool)
        for condition in group:
            met &= condition.met(alerts.floats(condition.column.replace("#", k)))
        any_neighbour |= met
    return any_neighbour


@cache
def packaged() -> dict[str, Preset]:
    """The presets that come with the package, by name; the catalogue has a column ``cut_<name>`` of each."""
    path = Path(__file__).with_name("cuts.toml")
    return _parse(tomllib.loads(path.read_text(encoding="utf-8")), path.name)


def read_own(text: str, where: str) -> dict[str, Any]:
    """A user's presets as a plain document, checked.

    Parameters
    ----------
    text : str
        TOML in the format of ``cuts.toml``.
    where : str
        Name of the file, for messages.

    Returns
    -------
    dict
        Preset name -> its tables; goes into a run's identity and back through :func:`own_presets`.

    Raises
    ------
    UserError
        For what is no TOML, an unknown column, operator or key, a packaged name, or more than 15 presets.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The cuts file '{where}' is not TOML: {error}.") from error
    taken = sorted({*packaged(), "none"} & set(document))
    if taken:
        raise UserError(
            f"The cuts file '{where}' names a preset '{taken[0]}', which is a packaged one.",
            hint=f"Choose another name than {', '.join(packaged())} or none.",
        )
    if not 1 <= len(document) <= MAX_OWN:
        raise UserError(f"The cuts file '{where}' has {len(document)} presets; allowed are 1 to {MAX_OWN}.")
    _parse(document, where)
    return {
        name: {
            "description": str(value.get("description", "")),
            **{key: value[key] for key in ("alert", "reject", "row") if value.get(key)},
        }
        for name, value in sorted(document.items())
    }


def own_presets(document: Mapping[str, Any]) -> tuple[Preset, ...]:
    """The presets of a document of :func:`read_own`, in order of their names: the bits of ``cuts_own``."""
    return tuple(preset for _, preset in sorted(_parse(document, "plan").items()))


def cut_columns(
    own: Sequence[Preset], alerts: Alerts, view: View, row: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """Columns of the catalogue, one value per view: ``cut_<packaged>``, ``cuts_own``, ``cuts_own_na``."""
    columns = {f"cut_{name}": cut.evaluate(alerts, view, row) for name, cut in packaged().items()}
    passed, not_applicable = np.zeros(len(view), np.int64), np.zeros(len(view), np.int64)
    for bit, preset in enumerate(own):
        verdict = preset.evaluate(alerts, view, row)
        passed |= verdict.fill_null(False).to_numpy(zero_copy_only=False).astype(np.int64) << bit
        not_applicable |= verdict.is_null().to_numpy(zero_copy_only=False).astype(np.int64) << bit
    none = np.full(len(view), not own)
    for name, bits in (("cuts_own", passed), ("cuts_own_na", not_applicable)):
        columns[name] = pa.array(bits, pa.int16(), mask=none)
    return columns


def _parse(document: Mapping[str, Any], where: str) -> dict[str, Preset]:
    return {name: _preset(name, value, where) for name, value in document.items()}


def _preset(name: str, value: Any, where: str) -> Preset:
    keys = ("description", "alert", "reject", "row")
    if not isinstance(value, dict) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"'{name}' of the cuts file '{where}' is no preset: a preset is a table named in lower-case "
            f"letters, digits and _, with the keys {', '.join(keys)}."
        )
    for key in value:
        if key not in keys:
            raise UserError(
                f"The preset '{name}' of '{where}' has the key '{key}'; allowed are {', '.join(keys)}."
            )
    if not any(value.get(key) for key in keys[1:]):
        raise UserError(f"The preset '{name}' of '{where}' has no condition.")
    at = f"the preset '{name}' of '{where}'"
    groups = value.get("reject", {})
    if not isinstance(groups, dict):
        raise UserError(f"'reject' in {at} must be a table of named groups, each a list of conditions.")
    of_alerts = {c.name: c.type for c in load_table("alerts").columns if c.type in _NUMBERS}
    of_row = {name: load_table("catalogue").column(name).type for name in ROW_COLUMNS}
    return Preset(
        name,
        str(value.get("description", "")),
        _group(value.get("alert", []), of_alerts, at),
        {group: _group(conditions, of_alerts, at) for group, conditions in groups.items()},
        _group(value.get("row", []), of_row, at),
    )


def _group(texts: Any, allowed: Mapping[str, str], at: str) -> Group:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f'Conditions must be a list of texts such as "rb >= 0.65"; {at} has {texts!r}.')
    return tuple(_condition(text, allowed, at) for text in texts)


def _condition(text: str, allowed: Mapping[str, str], at: str) -> Condition:
    found = _CONDITION.match(text)
    try:
        value = float(found[4]) if found else float("nan")
    except ValueError:
        found = None
    if found is None:
        raise UserError(
            f"'{text}' in {at} is no condition.",
            hint='Write column, operator and number, for example "rb >= 0.65" or "abs(magdiff) <= 0.1".',
        )
    column, sign = found[1] or found[2], found[3]
    if sign not in OPERATORS:
        raise UserError(
            f"'{text}' in {at} has the operator '{sign}'; allowed are {', '.join(sorted(OPERATORS))}."
        )
    if any(name not in allowed for name in _names(column)):
        near = ", ".join([name for name in allowed if name[:2] == column[:2]] or [*allowed][:12])
        raise UserError(
            f"'{text}' in {at} asks for the column '{column}', which is not there; "
            f"allowed are for example {near}.",
            hint="Conditions of 'alert' and 'reject' take the numbers of docs/schemas.md's alerts table, "
            f"those of 'row' take {', '.join(ROW_COLUMNS)}.",
        )
    if allowed[_names(column)[0]] == "float32":
        value = float(np.float32(value))
    return Condition(column, found[1] is not None, sign, value)
