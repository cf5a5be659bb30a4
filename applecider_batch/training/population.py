"""Who is on which side: one split for all modalities.

The parts are given to all labelled objects of an archive together, whether they have light curves, stamps or
spectra, on the five classes, and looked up by every data set. So the networks of a set that are trained one
after the other with one label table and one rule have the same test objects, and a name, another name of the
same object, or a neighbour within 2 arcsec can never be on another side in another modality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.archive.objects import objects_table
from applecider_batch.archive.read import Archive
from applecider_batch.errors import UserError
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.training.labels import LabelTable
from applecider_batch.training.splits import SplitRule, split_parts

_RANGE_BYTES = 128 << 20


@dataclass(frozen=True)
class Population:
    """All labelled objects of an archive, of whatever modality.

    Attributes
    ----------
    archive : Archive
    labels : LabelTable
    """

    archive: Archive
    labels: LabelTable
    _parts: dict[SplitRule, dict[str, int]] = field(default_factory=dict, repr=False)

    def parts(self, rule: SplitRule, group: np.ndarray) -> np.ndarray:
        """Part of each group (str, (n,)): position in `splits.PARTS`, -1 for none; int8 (n,).

        Raises
        ------
        UserError
            If the rule needs positions or dates and there are none.
        """
        if rule not in self._parts:
            names = list(self._places)
            owner, stratum = zip(*(self.labels.population[name] for name in names), strict=True)
            place = np.array([self._places[name] for name in names])
            found = split_parts(
                rule,
                np.array(owner, object),
                np.array(stratum, np.int64),
                t0=self._dates(names) if rule.rule == "date" else None,
                ra=place[:, 0],
                dec=place[:, 1],
            )
            self._parts[rule] = dict(zip(owner, found.tolist(), strict=True))
        return np.array([self._parts[rule].get(name, -1) for name in group.tolist()], np.int8)

    @cached_property
    def _places(self) -> dict[str, tuple[float, float, float]]:
        """ra, dec (deg) and, of names that only a spectrum has, its jd; NaN where unknown."""
        wanted = pa.array(list(self.labels.population), pa.string())
        objects = objects_table(self.archive).select(["objectId", "ra", "dec"])
        spectra = self.archive.read_spectra(0, 1 << 64, ["objectId", "object_name", "ra", "dec", "jd"])
        nothing = pa.nulls(objects.num_rows, pa.float64())
        found: dict[str, tuple[float, float, float]] = {}
        for name, table in (
            ("objectId", objects.append_column("jd", nothing)),
            ("objectId", spectra),
            ("object_name", spectra),
        ):
            names = table.column(name).cast(pa.string())
            known = table.filter(pc.is_in(names, value_set=wanted))
            columns = [known.column(name).to_pylist()]
            columns += [known.column(c).cast(pa.float64()).to_pylist() for c in ("ra", "dec", "jd")]
            for own, *numbers in sorted(zip(*columns, strict=True), key=str):
                ra, dec, jd = (np.nan if v is None else v for v in numbers)
                found.setdefault(own, (ra, dec, jd))
        if not found:
            raise UserError(
                "No object of the label table is in the archive.",
                hint="The table's objects must be named as in the archive (see 'archive info').",
            )
        return dict(sorted(found.items()))

    def _dates(self, names: list[str]) -> np.ndarray:
        """t0 of the first episode, or the date of the first spectrum; float64 (n,)."""
        profile, jd_max = get_profile("paper"), self.archive.snapshot.jd_max or 0.0
        t0: dict[str, float] = {}
        for lo, hi in self.archive.ranges(_RANGE_BYTES, ("alerts", "photometry")):
            shard = self.archive.read_shard(lo, hi)
            rows = prepare_shard(shard, [None], profile, snapshot_jd_max=jd_max, modalities=()).rows
            pairs = zip(rows.column("objectId").to_pylist(), rows.column("t0").to_pylist(), strict=True)
            for name, jd in pairs:
                if jd is not None:
                    t0[name] = min(jd, t0.get(name, np.inf))
        return np.array([t0.get(name, self._places[name][2]) for name in names])
