"""What the learned gate sees of an object behind its wall: numbers of the packets, none of them a position.

Every feature follows from alerts and points visible in the view, so it cannot see a later packet.  Left out
on purpose, though packets have them: right ascension and declination (the distance from the Galactic plane
is in); the brightness of the source, because stars that a catalogue has typed are brighter than stars at
large; drb and the length and depth of the history (ndethist, jdstarthist), which tell the survey's year;
the distance to known solar-system objects, which is a rule of its own and which unknown ones do not have.
"""

from __future__ import annotations

import numpy as np

from applecider_batch.features.asof import View
from applecider_batch.features.gate import amplitudes
from applecider_batch.features.points import TABLE, Alerts, Points
from applecider_batch.features.segments import counts_of, median_of, reduce_segments

#: Names, in the order of the columns of :func:`gate_features`.
FEATURES: tuple[str, ...] = (
    "sgscore1", "sgscore2", "sgscore3", "distpsnr1", "distpsnr2", "distpsnr3", "ps1_g_r", "ps1_r_i",
    "ps1_i_z", "neargaia", "neargaiabright", "distnr", "chinr", "sharpnr", "amplitude_max",
    "peak_minus_srmag1", "rb_median", "fwhm_median", "elong_median", "nbad_min", "abs_magdiff_median",
    "sumrat_median", "classtar_median", "det_fraction", "n_good", "span_days", "negative_fraction",
    "flux_scatter", "colour_g_r", "abs_galactic_b",
)  # fmt: skip
_NAN = float("nan")
_OF_LATEST = (
    "sgscore1", "sgscore2", "sgscore3", "distpsnr1", "distpsnr2", "distpsnr3", "neargaia", "neargaiabright",
    "distnr", "chinr", "sharpnr",
)  # fmt: skip
_MEDIANS = {
    "rb_median": "rb", "fwhm_median": "fwhm", "elong_median": "elong", "abs_magdiff_median": "magdiff",
    "sumrat_median": "sumrat", "classtar_median": "classtar",
}  # fmt: skip


def gate_features(
    alerts: Alerts, view: View, points: Points, point_view: View, galactic_b: np.ndarray
) -> np.ndarray:
    """Features of each view.

    Parameters
    ----------
    alerts, points : Alerts, Points
    view, point_view : View
        Visible alerts and points, numbered alike.
    galactic_b : ndarray, shape (v,)
        Galactic latitude of the visible detections, degrees.

    Returns
    -------
    ndarray of float64, shape (v, F)
        Columns in the order of :data:`FEATURES`, NaN where unknown; all NaN for a view without alerts.

    Notes
    -----
    Numbers about neighbours and the reference come from the latest alert that is no known solar-system
    object's (else from the latest), medians are over such alerts.  Magnitudes of the event are those of its
    positive detections.  Points of light-curve tables are left out: which objects have one is the choice of
    whoever made the table.
    """
    n = len(view)
    known = ~alerts.solar_system[view.position]
    only_rocks = counts_of(view.segment, n, known) == 0
    use = known | only_rocks[view.segment]
    segment, position = view.segment[use], view.position[use]
    n_alerts = counts_of(segment, n)
    latest = reduce_segments(np.maximum, position, segment, n, 0)

    def value(name: str) -> np.ndarray:
        return alerts.floats(name)

    def at_latest(values: np.ndarray) -> np.ndarray:
        return np.where(n_alerts > 0, values[latest] if len(alerts) else _NAN, _NAN)

    def reduced(operation: np.ufunc, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        of_pair = values[position]
        given = np.isfinite(of_pair) if where is None else np.isfinite(of_pair) & where[position]
        return reduce_segments(operation, of_pair[given], segment[given], n, _NAN)

    out = {name: at_latest(value(name)) for name in _OF_LATEST}
    for first, second in ("gr", "ri", "iz"):
        out[f"ps1_{first}_{second}"] = at_latest(value(f"s{first}mag1") - value(f"s{second}mag1"))
    for name, column in _MEDIANS.items():
        of_pair = value(column)[position]
        out[name] = median_of(np.abs(of_pair) if name.startswith("abs") else of_pair, segment, n)
    out["nbad_min"] = reduced(np.minimum, value("nbad"))
    out["amplitude_max"] = reduced(np.maximum, amplitudes(alerts), alerts.positive)
    peak = reduced(np.minimum, value("magpsf"), alerts.positive)
    out["peak_minus_srmag1"] = peak - at_latest(value("srmag1"))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["det_fraction"] = at_latest(value("ndethist") / value("ncovhist"))
    out["abs_galactic_b"] = np.abs(galactic_b)
    out |= _of_points(points, point_view)
    features = np.stack([out[name] for name in FEATURES], axis=1)
    features[n_alerts == 0] = _NAN
    return np.where(np.isfinite(features), features, _NAN)


def _of_points(points: Points, view: View) -> dict[str, np.ndarray]:
    """Numbers of the light curve: detections, their span, signs, scatter and colour."""
    n, packets = len(view), points.origin[view.position] != TABLE
    segment, position = view.segment[packets], view.position[packets]
    good = points.good[position]
    detection = points.detection[position] & np.isfinite(points.flux[position])
    n_detection = counts_of(segment, n, detection)
    negative = counts_of(segment, n, detection & (points.flux[position] < 0))
    jd = points.jd[position]
    first = reduce_segments(np.minimum, jd[detection], segment[detection], n, _NAN)
    last = reduce_segments(np.maximum, jd[detection], segment[detection], n, _NAN)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = {
            "n_good": counts_of(segment, n, good).astype(np.float64),
            "span_days": last - first,
            "negative_fraction": negative / n_detection,
        }
    fid, mag = points.fid[position], points.mag[position]
    in_band = {k: median_of(mag[good & (fid == k)], segment[good & (fid == k)], n) for k in (1, 2)}
    out["colour_g_r"] = in_band[1] - in_band[2]
    scatter = []
    for k in (1, 2):
        mine = detection & (fid == k)
        flux, of = points.flux[position][mine], segment[mine]
        middle = median_of(flux, of, n)
        spread = median_of(np.abs(flux - middle[of]), of, n)
        few = counts_of(of, n) < 3
        with np.errstate(divide="ignore", invalid="ignore"):
            scatter.append(np.where(few, _NAN, spread / np.abs(middle)))
    out["flux_scatter"] = np.fmax(*scatter)
    return out
