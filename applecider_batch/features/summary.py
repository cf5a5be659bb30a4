"""Columns of a row that say what was seen behind its wall: counts, extremes, positions, quality flags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from applecider_batch.features.asof import View
from applecider_batch.features.cuts import packaged
from applecider_batch.features.gate import latest_alert
from applecider_batch.features.points import (
    NO_ID,
    TABLE,
    Alerts,
    Points,
    latest_revisions,
    repeated_measurements,
)
from applecider_batch.features.quality import Quality
from applecider_batch.features.segments import (
    counts_of,
    int_column,
    median_of,
    reduce_segments,
    starts_of,
    text_column,
)

# North galactic pole (J2000): the ICRS position of b = +90 deg.
_NGP_RA, _NGP_DEC = np.deg2rad(192.85948), np.deg2rad(27.12825)
_NAN = float("nan")


@dataclass(frozen=True)
class Summary:
    """Named columns, one value per view, and the quality bits that follow from them."""

    columns: dict[str, pa.Array]
    quality: np.ndarray
    last_alert_jd: np.ndarray


def nullable(values: np.ndarray, kind: pa.DataType, missing: np.ndarray | None = None) -> pa.Array:
    """Arrow array in which NaN (or ``missing``) is null."""
    if missing is None:
        missing = np.isnan(values)
    if pa.types.is_integer(kind):
        values = np.where(missing, 0, values).astype(np.int64)
    return pa.array(values, mask=missing).cast(kind)


def summarise(alerts: Alerts, view: View, points: Points, point_view: View) -> Summary:
    """Everything the catalogue says about detections and alerts seen.

    Parameters
    ----------
    alerts, points : Alerts, Points
    view, point_view : View
        Visible alerts and points, numbered alike (one pair per row).

    Returns
    -------
    Summary
    """
    columns, bits_points = _point_columns(points, point_view)
    more, bits_alerts = _alert_columns(alerts, view)
    last = latest_alert(view)
    jd = np.where(last >= 0, alerts.jd[last] if len(alerts) else _NAN, _NAN)
    return Summary({**columns, **more}, bits_points | bits_alerts, jd)


def _point_columns(points: Points, view: View) -> tuple[dict[str, pa.Array], np.ndarray]:
    n, segment, position = len(view), view.segment, view.position
    once = ~(repeated_measurements(points, segment, position) & (points.origin[position] == TABLE))
    segment, position = segment[once], position[once]
    detection, sign, fid = points.detection[position], points.sign[position], points.fid[position]
    negative = detection & (sign < 0)
    jd, mag = points.jd[position], points.mag[position]
    forced = points.forced[position] & latest_revisions(points, segment, position)

    def extreme(operation: np.ufunc, values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return reduce_segments(operation, values[where], segment[where], n, _NAN)

    bright = detection & (sign > 0) & np.isfinite(mag)
    ra, dec = _mean_positions(points, view)
    sin_b = np.sin(np.deg2rad(dec)) * np.sin(_NGP_DEC)
    sin_b += np.cos(np.deg2rad(dec)) * np.cos(_NGP_DEC) * np.cos(np.deg2rad(ra) - _NGP_RA)
    counts = {
        "n_det": detection,
        "n_det_g": detection & (fid == 1),
        "n_det_r": detection & (fid == 2),
        "n_det_i": detection & (fid == 3),
        "n_neg": negative,
        "n_nondet": ~detection & ~points.forced[position],
        "n_fp": forced,
    }
    numbers = {name: counts_of(segment, n, where) for name, where in counts.items()}
    columns = {name: pa.array(values, pa.int64()).cast(pa.int32()) for name, values in numbers.items()}
    columns |= {
        "jd_first": nullable(extreme(np.minimum, jd, detection), pa.float64()),
        "jd_last": nullable(extreme(np.maximum, jd, detection), pa.float64()),
        "mag_peak_g": nullable(extreme(np.minimum, mag, bright & (fid == 1)), pa.float32()),
        "mag_peak_r": nullable(extreme(np.minimum, mag, bright & (fid == 2)), pa.float32()),
        "ra": nullable(ra, pa.float64()),
        "dec": nullable(dec, pa.float64()),
        "galactic_b": nullable(np.rad2deg(np.arcsin(np.clip(sin_b, -1.0, 1.0))), pa.float32()),
    }
    bits = np.where(numbers["n_neg"] > 0, Quality.NEGATIVE_DETECTIONS, 0)
    bits |= np.where(counts_of(segment, n, points.absurd[position]) > 0, Quality.ABSURD_PHOTOMETRY, 0)
    return columns, bits


def _mean_positions(points: Points, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Mean position of the positive detections, else of all detections; degrees, NaN where there is none."""
    n, segment, position = len(view), view.segment, view.position
    ra, dec = points.ra[position], points.dec[position]
    usable = points.detection[position] & np.isfinite(ra) & (np.abs(dec) <= 90.0)
    positive = usable & (points.sign[position] > 0)
    use = np.where((counts_of(segment, n, positive) > 0)[segment], positive, usable)
    segment, ra, dec = segment[use], ra[use], dec[use]
    out_ra, out_dec = np.full(n, _NAN), np.full(n, _NAN)
    starts = starts_of(segment)
    if len(starts):
        size = np.diff(np.append(starts, len(segment)))
        # Offsets from the first position: right ascension wraps at 360 deg.
        offset = (ra - np.repeat(ra[starts], size) + 180.0) % 360.0 - 180.0
        out_ra[segment[starts]] = (ra[starts] + np.add.reduceat(offset, starts) / size) % 360.0
        out_dec[segment[starts]] = np.add.reduceat(dec, starts) / size
    return out_ra, out_dec


def _alert_columns(alerts: Alerts, view: View) -> tuple[dict[str, pa.Array], np.ndarray]:
    n, segment, position = len(view), view.segment, view.position
    n_alerts = counts_of(segment, n)
    none = n_alerts == 0
    latest = latest_alert(view)

    def values(name: str) -> np.ndarray:
        return alerts.floats(name)[position]

    def extreme(operation: np.ufunc, name: str) -> np.ndarray:
        given = np.isfinite(values(name))
        return reduce_segments(operation, values(name)[given], segment[given], n, _NAN)

    def of_latest(name: str) -> np.ndarray:
        return np.where(none, _NAN, alerts.floats(name)[latest] if len(alerts) else _NAN)

    rocks = counts_of(segment, n, alerts.solar_system[position])
    distance = values("ssdistnr")
    near = np.isfinite(distance) & (distance >= 0)
    n_drb = counts_of(segment, n, np.isfinite(values("drb")))
    candids = alerts.candid if len(alerts) else np.array([NO_ID])
    oldest, newest = _schema_versions(alerts, view)
    columns = {
        "programid_mask": nullable(_programmes(alerts, view), pa.int16(), none),
        "candid_first": nullable(candids[np.where(none, 0, view.first)], pa.int64(), none),
        "candid_last": nullable(candids[np.where(none, 0, latest)], pa.int64(), none),
        "rb_max": nullable(extreme(np.maximum, "rb"), pa.float32()),
        "drb_max": nullable(extreme(np.maximum, "drb"), pa.float32()),
        "drb_median": nullable(median_of(values("drb"), segment, n), pa.float32()),
        "drb_available": nullable(n_drb > 0, pa.bool_(), none),
        "frac_ss": nullable(np.where(none, _NAN, rocks / np.maximum(n_alerts, 1)), pa.float32()),
        "ssdistnr_min": nullable(
            reduce_segments(np.minimum, distance[near], segment[near], n, _NAN), pa.float32()
        ),
        "distpsnr1": nullable(of_latest("distpsnr1"), pa.float32()),
        "sgscore1": nullable(of_latest("sgscore1"), pa.float32()),
        "schemavsn_min": oldest,
        "schemavsn_max": newest,
        "simulated": _simulated(alerts, view),
    }
    return columns, _alert_bits(alerts, view, rocks, n_drb, none)


def _alert_bits(
    alerts: Alerts, view: View, rocks: np.ndarray, n_drb: np.ndarray, none: np.ndarray
) -> np.ndarray:
    n, segment, position = len(view), view.segment, view.position
    bright = packaged()["ztfrest"].rejects(alerts, "bright_star")
    bits = np.where(none, Quality.NO_ALERTS, 0)
    bits |= np.where(rocks > 0, Quality.SOLAR_SYSTEM_DETECTIONS, 0)
    bits |= np.where(~none & (n_drb == 0), Quality.DRB_MISSING, 0)
    bits |= np.where(counts_of(segment, n, bright[position]) > 0, Quality.BRIGHT_STAR_NEAR, 0)
    return bits


def _programmes(alerts: Alerts, view: View) -> np.ndarray:
    programme = int_column(alerts.table, "programid", 0)[view.position]
    bit = np.where((programme >= 1) & (programme <= 15), 1 << np.clip(programme - 1, 0, 14), 0)
    return reduce_segments(np.bitwise_or, bit, view.segment, len(view), 0)


def _schema_versions(alerts: Alerts, view: View) -> tuple[pa.Array, pa.Array]:
    """Oldest and newest schemavsn of each view, ordered as numbers; null where no alert says."""
    versions = text_column(alerts.table, "schemavsn").dictionary_encode()
    names = versions.dictionary.to_pylist()
    ranked = sorted(range(len(names)), key=lambda i: (_version_number(names[i]), names[i]))
    rank = np.empty(len(names), np.int64)
    rank[ranked] = np.arange(len(names))
    code = versions.indices.fill_null(-1).to_numpy(zero_copy_only=False)[view.position]
    said = code >= 0
    code, segment, n = rank[code[said]] if len(names) else code[said], view.segment[said], len(view)
    ordered = pa.array([names[i] for i in ranked], pa.string())
    out = []
    for operation in (np.minimum, np.maximum):
        best = reduce_segments(operation, code.astype(np.float64), segment, n, _NAN)
        out.append(ordered.take(nullable(best, pa.int64())))
    return out[0], out[1]


def _version_number(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return float("inf")


def _simulated(alerts: Alerts, view: View) -> pa.Array:
    """True where a packet's publisher says that it was simulated, null where no packet names its
    publisher."""
    publisher = text_column(alerts.table, "publisher")
    says = pc.fill_null(pc.match_substring(publisher, "simulat", ignore_case=True), False)
    n, segment, position = len(view), view.segment, view.position
    simulated = counts_of(segment, n, says.to_numpy(zero_copy_only=False)[position]) > 0
    named = counts_of(segment, n, publisher.is_valid().to_numpy(zero_copy_only=False)[position]) > 0
    return pa.array(simulated, mask=~named)
