"""One object's alert packets: observations, stamps and histories put together."""

from __future__ import annotations

import numpy as np

from applecider_batch.simulate.avro_schema import CANDIDATE, field_names
from applecider_batch.simulate.cadence import CHANNEL_X, CHANNEL_Y, LOOKBACK_DAYS, Season
from applecider_batch.simulate.environment import Environment
from applecider_batch.simulate.measure import (
    ForcedHistory,
    candidate_columns,
    detection_columns,
    exposure_columns,
    non_detection,
)
from applecider_batch.simulate.observe import Observations
from applecider_batch.simulate.packets import Stamp, encode_record, fits_gz, packet_bytes
from applecider_batch.simulate.plan import Slot
from applecider_batch.simulate.source import Source
from applecider_batch.simulate.stamps import Stamps, crop_bounds, render


class SimulatedObject:
    """One object with its observations; `packets` yields its alert packets in time order."""

    def __init__(
        self,
        slot: Slot,
        source: Source,
        environment: Environment,
        seen: Observations,
        season: Season,
        rng: np.random.Generator,
    ) -> None:
        self.slot, self.source, self.environment, self.seen = slot, source, environment, seen
        self._season, self._rng = season, rng
        nid = seen.visits.nid
        self.alert_index = np.flatnonzero(seen.alert & (nid >= season.first_nid) & (nid <= season.last_nid))

    def packets(self) -> list[tuple[int, str, bytes]]:
        """(night number, member name, packet) of every alert of the season."""
        index = self.alert_index
        if not len(index):
            return []
        seen, rng, season = self.seen, self._rng, self._season
        rendered = render(self.source, self.environment, seen, index, rng)
        exposures = exposure_columns(seen)
        # Histories of the first packet reach back a month: those detections have columns too, without stamps.
        earliest = seen.visits.jd[index[0]] - LOOKBACK_DAYS
        detected = np.flatnonzero(seen.in_history & (seen.visits.jd >= earliest))
        stamp_row = {int(k): row for row, k in enumerate(index)}
        shared = detection_columns(
            self.source,
            self.environment,
            seen,
            detected,
            self.slot.tblid,
            stamp_row,
            rendered,
            exposures,
            rng,
        )
        columns = candidate_columns(self.environment, seen, detected, shared, rng)
        row_of = {int(k): row for row, k in enumerate(detected)}
        forced = ForcedHistory(exposures, seen, self.environment, rng)
        hidden = rng.random(len(seen.visits.jd)) < 0.04  # limits that the pipeline never reported
        no_stamps = rng.random(len(index)) < 0.004
        borders = rng.random(len(index)) < 0.012
        points: dict[tuple[str, int], bytes] = {}
        names = field_names(CANDIDATE)
        out = []
        for row, k in enumerate(index):
            version = "4.02" if seen.visits.nid[k] >= season.switch_nid else "3.3"
            record = {name: columns[name][row_of[int(k)]] for name in names}
            window = np.flatnonzero(
                (seen.visits.jd < seen.visits.jd[k]) & (seen.visits.jd >= seen.visits.jd[k] - LOOKBACK_DAYS)
            )
            history = []
            for j in window.tolist():
                if not seen.covered[j] or (hidden[j] and not seen.in_history[j]):
                    continue
                key = (version, j)
                if key not in points:
                    if seen.in_history[j]:
                        point = {name: values[row_of[j]] for name, values in shared.items()}
                    else:
                        point = non_detection(exposures, seen, j)
                    points[key] = encode_record("prv_candidate", version, point)
                history.append(points[key])
            fp = None
            if version.startswith("4"):
                fp = [forced.point(j, row // 4, version) for j in window[::-1].tolist() if seen.covered[j]]
            candid = int(record["candid"])
            stamps: list[Stamp | None] = [None] * 3
            if not no_stamps[row]:
                stamps = self._stamps(rendered, row, int(k), candid, record["pid"], bool(borders[row]))
            data = packet_bytes(
                version, self.slot.object_id, candid, encode_record("candidate", version, record),
                history or None,
                fp, stamps,
            )  # fmt: skip
            out.append((int(seen.visits.nid[k]), f"{candid}.avro", data))
        return out

    def _stamps(
        self, rendered: Stamps, row: int, k: int, candid: int, pid: int, border: bool
    ) -> list[Stamp | None]:
        y0, y1, x0, x1 = crop_bounds(self.seen.xpos[k], self.seen.ypos[k], CHANNEL_X, CHANNEL_Y)
        side = "scimref" if self.seen.flux_dn[k] > 0 else "refmsci"
        names = (
            f"candid{candid}_pid{pid}_targ_sci.fits.gz",
            f"candid{candid}_ref.fits.gz",
            f"candid{candid}_pid{pid}_targ_{side}.fits.gz",
        )
        images = [
            rendered.science[row, y0:y1, x0:x1],
            rendered.template[row, y0:y1, x0:x1],
            rendered.difference[row, y0:y1, x0:x1],
        ]
        if border:  # the reference does not cover the last columns
            for which in (1, 2):
                images[which] = images[which].copy()
                images[which][:, -int(3 + candid % 14) :] = np.nan
        return [(name, fits_gz(image)) for name, image in zip(names, images, strict=True)]
