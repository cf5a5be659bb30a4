"""Splits into training, validation and test, by object of the sky.

A rule gives a part to a *group* (an object of the sky), never to a row, so that no object can be on two
sides: names with the same group, and names whose positions lie within 2 arcsec of each other, go together.
Every rule depends on the groups' own properties and the seed alone, not on the order of rows.

- ``object``: stratified by class; inside a class the groups are ordered by SHA-256 of seed and name.
- ``date``: by t0 (of a group the earliest): everything before the first cut trains, from the second on tests.
- ``healpix``: whole HEALPix blocks of the sky.
- ``hash``: test where ``int(sha256(name)[8:16], 16) % 4 == 0``, validation where ``int(sha256(name)[16:24],
  16) % 6`` is the seed's remainder: the development split of this project's figures, in six folds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from applecider_batch.errors import InternalError, UserError

PARTS = ("train", "validation", "test")
RULES = ("object", "date", "healpix", "hash")
SIBLING_ARCSEC = 2.0
FOLDS = 6
#: Which options a rule uses, beside its name.
_USED = {
    "object": ("seed", "validation", "test"),
    "date": ("validation", "test"),
    "healpix": ("seed", "validation", "test", "nside"),
    "hash": ("seed",),
}
_HASH_TEST = "int(sha256(name)[8:16], 16) % 4 == 0"
_HASH_VALIDATION = "of the others, int(sha256(name)[16:24], 16) % 6 == {fold}"


@dataclass(frozen=True)
class SplitRule:
    """How to split.

    Attributes
    ----------
    rule : {"object", "date", "healpix", "hash"}
    seed : int
        Of ``object`` and ``healpix``; of ``hash`` the validation fold.
    validation, test : float
        Fractions of the groups (``date``: of the groups by t0; ``healpix``: of the blocks).
    nside : int
        Of the HEALPix blocks.
    """

    rule: str = "object"
    seed: int = 0
    validation: float = 0.15
    test: float = 0.15
    nside: int = 8

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"Unknown split '{self.rule}'; allowed are {', '.join(RULES)}.")
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise UserError(
                f"The fractions of validation ({self.validation}) and test ({self.test}) must lie between 0"
                " and 1 and leave something to train on."
            )

    def record(self) -> dict[str, Any]:
        """The rule as cards and documents state it: its name and what it uses, nothing else; JSON-ready."""
        used = {"rule": self.rule, **{name: getattr(self, name) for name in _USED[self.rule]}}
        if self.rule == "hash":
            used |= {"test": _HASH_TEST, "validation": _HASH_VALIDATION.format(fold=self.seed % FOLDS)}
        return used


def split_parts(
    rule: SplitRule,
    group: np.ndarray,
    label: np.ndarray,
    *,
    t0: np.ndarray | None = None,
    ra: np.ndarray | None = None,
    dec: np.ndarray | None = None,
) -> np.ndarray:
    """Part of every object.

    Parameters
    ----------
    rule : SplitRule
    group : ndarray of str, shape (n,)
    label : ndarray of int64, shape (n,)
    t0 : ndarray of float64, shape (n,), optional
        JD; needed by ``date``.
    ra, dec : ndarray of float64, shape (n,), optional
        Degrees, NaN where unknown; needed by ``healpix``, and tie siblings together.

    Returns
    -------
    ndarray of int8, shape (n,)
        Position in :data:`PARTS`; -1 where the rule has nothing to go by (no date, no position).
    """
    names, of_row = tie_siblings(group, ra, dec)
    n = len(names)
    cls = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(cls, of_row, label)
    if rule.rule == "object":
        part = _stratified(rule, names, cls)
    elif rule.rule == "hash":
        part = np.array([development_part(name, rule.seed) for name in names], np.int8)
    elif rule.rule == "date":
        part = _by_date(rule, _lowest(t0, of_row, n, "date", "t0"))
    else:
        part = _by_healpix(rule, _lowest(ra, of_row, n, "healpix", "ra"), _first_dec(ra, dec, of_row, n))
    out = part[of_row]
    check_no_leak(out, of_row)
    return out


def check_no_leak(part: np.ndarray, group: np.ndarray) -> None:
    """Raise InternalError if a group is on two sides."""
    pairs = {(g, p) for g, p in zip(group.tolist(), part.tolist(), strict=True) if p >= 0}
    if len(pairs) != len({g for g, _ in pairs}):
        raise InternalError("An object is on two sides of a split.")


def development_part(name: str, fold: int = 0) -> int:
    """Part of an object under the ``hash`` rule; all folds have the same test objects."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    if int(digest[8:16], 16) % 4 == 0:
        return 2
    return 1 if int(digest[16:24], 16) % FOLDS == fold % FOLDS else 0


def tie_siblings(
    group: np.ndarray, ra: np.ndarray | None, dec: np.ndarray | None
) -> tuple[list[str], np.ndarray]:
    """Groups by name and by position within 2 arcsec.

    Returns
    -------
    names : list of str
        The first name of each group, sorted.
    of_row : ndarray of int64, shape (n,)
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(group)
    _, first, inverse = np.unique(group.astype(str), return_index=True, return_inverse=True)
    links = [np.stack([np.arange(n), first[inverse]])]
    if ra is not None and dec is not None:
        known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        if len(known) > 1:
            a, d = np.radians(ra[known]), np.radians(dec[known])
            unit = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
            chord = 2 * np.sin(np.radians(SIBLING_ARCSEC / 3600) / 2)
            links.append(known[cKDTree(unit).query_pairs(chord, output_type="ndarray")].T)
    row, col = np.concatenate(links, axis=1)
    _, component = connected_components(
        coo_array((np.ones(len(row)), (row, col)), shape=(n, n)), directed=False
    )
    first_name: dict[int, str] = {}
    for name, number in sorted(zip(group.astype(str).tolist(), component.tolist(), strict=True)):
        first_name.setdefault(number, name)
    names = sorted(first_name.values())
    position = {name: i for i, name in enumerate(names)}
    return names, np.array([position[first_name[c]] for c in component.tolist()], np.int64)


def _order(seed: int, names: list[str]) -> list[str]:
    return [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in names]


def _cut(rule: SplitRule, n: int) -> np.ndarray:
    """Parts of n things in order: test first, then validation, so that small classes are tested at all."""
    n_test, n_validation = max(round(rule.test * n), 1), max(round(rule.validation * n), 1)
    part = np.zeros(n, np.int8)
    part[:n_test] = 2
    part[n_test : n_test + n_validation] = 1
    return part


def _stratified(rule: SplitRule, names: list[str], cls: np.ndarray) -> np.ndarray:
    key = np.array(_order(rule.seed, names))
    part = np.zeros(len(names), np.int8)
    for number in np.unique(cls):
        of_class = np.flatnonzero(cls == number)
        of_class = of_class[np.argsort(key[of_class])]
        part[of_class] = _cut(rule, len(of_class))
    return part


def _by_date(rule: SplitRule, t0: np.ndarray) -> np.ndarray:
    known = np.sort(t0[np.isfinite(t0)])
    if not len(known):
        raise UserError("A split by date needs objects with a t0, and none has one.")
    cuts = np.quantile(known, [1 - rule.test - rule.validation, 1 - rule.test])
    return np.where(np.isfinite(t0), np.searchsorted(cuts, t0, "right"), -1).astype(np.int8)


def _by_healpix(rule: SplitRule, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    part = np.full(len(ra), -1, np.int8)
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    if not len(known):
        raise UserError("A split by HEALPix block needs positions, and no object has one.")
    depth = int(np.log2(rule.nside))
    if 2**depth != rule.nside:
        raise UserError(f"nside must be a power of two; given {rule.nside}.")
    block = lonlat_to_healpix(
        Longitude(ra[known], unit="deg"), Latitude(dec[known], unit="deg"), np.uint8(depth)
    )
    blocks, inverse = np.unique(block, return_inverse=True)
    order = np.argsort(np.array(_order(rule.seed, [str(b) for b in blocks])))
    of_block = np.empty(len(blocks), np.int8)
    of_block[order] = _cut(rule, len(blocks))
    part[known] = of_block[inverse]
    return part


def _lowest(values: np.ndarray | None, of_row: np.ndarray, n: int, rule: str, what: str) -> np.ndarray:
    if values is None:
        raise UserError(f"A split by {rule} needs {what}, which these data do not have.")
    out = np.full(n, np.inf)
    np.minimum.at(out, of_row, np.where(np.isfinite(values), values, np.inf))
    return np.where(np.isfinite(out), out, np.nan)


def _first_dec(ra: np.ndarray | None, dec: np.ndarray | None, of_row: np.ndarray, n: int) -> np.ndarray:
    """Declination of the row whose right ascension stands for the group."""
    out = np.full(n, np.nan)
    if ra is None or dec is None:
        return out
    for row in np.lexsort((dec, ra))[::-1]:
        if np.isfinite(ra[row]) and np.isfinite(dec[row]):
            out[of_row[row]] = dec[row]
    return out
