"""The gate: is the object one that the five classes can describe? By rules first, each with its source.

Rules, in the order in which they decide; ``gate_reason`` names the one that did:

1. ``moving``: half of the alerts seen, or all, have a known solar-system object within 12" (BOOM: 0 <=
   ssdistnr <= 12). Rejection is per detection: alerts with a match set no t0 and count for nothing else here.
2. ``variable_star``: the nearest PS1 source is a star within 2" (BOOM: sgscore1 > .76, distpsnr1 <= 2), or a
   Gaia source brighter than 14 mag lies within 2". *Except* outbursts: an eligible alert, or an
   eligible detection of its history, that lifts the source by 2 mag or more above its reference (the
   amplitude of the cataclysmic-variable filter of Szkody et al. 2020, doi:10.3847/1538-3881/ab7cce), because
   CVs are in scope and sit on stars.
3. ``artefact``: no eligible alert is clean: nbad = 0 (Fink), fwhm <= 5 (IPAC), drb >= .5 where given (half of
   the score's range, Duev et al. 2019, arXiv:1907.11259); or a Gaia star brighter than 12 mag lies within 20"
   (BOOM). IPAC's elong <= 1.2 is a quality flag only: it takes away real events near galaxies.
4. ``too_few_detections``: fewer than two eligible detections 30 minutes or more apart (moving objects that no
   catalogue knows look like one-night events). prv_candidates known by then count.
5. ``in_scope``.

An object without t0 is judged by the same rules on all of its alerts; with only low rb it is an ``artefact``,
otherwise it has ``too_few_detections``.

Where the model set has a learned gate (`features.gate_model`), its score takes the place of the star rule: an
object whose ``prob_in_scope`` is below the gate's threshold is what the gate takes it for (``gate_reason`` is
``score``), one above it goes on to the rules behind, and is ``in_scope`` by ``score`` or, where the star rule
would have said otherwise, by ``score_over_star_rule``.  All other rules stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from applecider_batch.features.asof import View
from applecider_batch.features.points import RB_MIN, Alerts, Points
from applecider_batch.features.segments import counts_of, int_column, reduce_segments

MIN_SEPARATION_DAYS = 30.0 / 1440.0
MOVING_FRACTION = 0.5
STAR_SGSCORE, STAR_ARCSEC = 0.76, 2.0
OUTBURST_MAG = 2.0
GAIA_STAR_ARCSEC = 2.0
BRIGHT_GAIA_ARCSEC, BRIGHT_GAIA_MAG = 20.0, 12.0
FWHM_MAX, DRB_MIN = 5.0, 0.5
_SENTINEL = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Gate:
    """Gate and reason of each view, str (v,)."""

    gate: np.ndarray
    reason: np.ndarray


def latest_alert(view: View) -> np.ndarray:
    """Position of the last alert of each view, -1 where it has none, int64 (v,)."""
    return np.where(view.last > view.first, view.last - 1, -1)


@dataclass(frozen=True)
class Score:
    """What a learned gate says of each view.

    Attributes
    ----------
    probability : ndarray of float64, shape (v,)
        Of in_scope; NaN where it says nothing.
    otherwise : ndarray of object (str), shape (v,)
        What the object is taken for below the threshold.
    threshold : float
    """

    probability: np.ndarray
    otherwise: np.ndarray
    threshold: float


def judge(
    alerts: Alerts,
    view: View,
    points: Points,
    point_view: View,
    has_t0: np.ndarray,
    score: Score | None = None,
) -> Gate:
    """Apply the rules to each pair of views.

    Parameters
    ----------
    alerts, points : Alerts, Points
    view, point_view : View
        Alerts and points visible; segments of both are numbered alike (one pair per row).
    has_t0 : ndarray of bool, shape (v,)
    score : Score, optional
        Of the learned gate.

    Returns
    -------
    Gate
    """
    n, segment, position = len(view), view.segment, view.position
    n_alerts = counts_of(segment, n)
    n_rock = counts_of(segment, n, alerts.solar_system[position])
    eligible = alerts.eligible[position]
    n_eligible = counts_of(segment, n, eligible)
    latest = latest_alert(view)

    star = on_star(alerts)
    in_history = _history_outbursts(alerts, latest, points, point_view)
    outburst = in_history | (
        reduce_segments(np.maximum, (eligible & outbursts(alerts)[position]).astype(np.int8), segment, n, 0)
        > 0
    )
    on_a_star = (latest >= 0) & _pick(star, latest) & ~outburst
    gaia = (latest >= 0) & _pick(_gaia_star(alerts), latest) & ~outburst
    n_clean = counts_of(segment, n, (eligible & clean(alerts)[position]))
    bright = (latest >= 0) & _pick(_bright_gaia(alerts), latest)
    positive = alerts.positive[position] & ~alerts.solar_system[position]
    n_bogus = counts_of(segment, n, positive & (alerts.floats("rb") < RB_MIN)[position])

    scored = np.zeros(n, bool) if score is None else np.isfinite(score.probability)
    below = np.full(n, "", object)
    if score is not None:
        low = scored & (score.probability < score.threshold)
        below[low] = score.otherwise[low]

    rules: list[tuple[np.ndarray, str, str]] = [
        ((n_alerts > 0) & (n_rock == n_alerts), "moving", "solar_system_all"),
        ((n_alerts > 0) & (n_rock >= MOVING_FRACTION * n_alerts), "moving", "solar_system_half"),
        *((below == name, name, "score") for name in ("moving", "variable_star", "artefact")),
        (on_a_star & ~scored, "variable_star", "ps1_star"),
        (gaia & ~scored, "variable_star", "gaia_star"),
        (bright, "artefact", "bright_gaia_star"),
        (has_t0 & (n_eligible > 0) & (n_clean == 0), "artefact", "no_clean_alert"),
        (~has_t0 & (n_bogus > 0), "artefact", "rb_low"),
        (
            ~has_t0 & (n_alerts > 0) & (counts_of(segment, n, positive) == 0),
            "too_few_detections",
            "only_negative",
        ),
        (~has_t0, "too_few_detections", "no_eligible_detection"),
        (~_two_apart(alerts, view, points, point_view), "too_few_detections", "not_two_30_min_apart"),
        (scored & (on_a_star | gaia), "in_scope", "score_over_star_rule"),
        (scored, "in_scope", "score"),
        (on_outburst_star(latest, star, outburst), "in_scope", "outburst_on_star"),
    ]
    gate = np.full(n, "in_scope", object)
    reason = np.full(n, "passed", object)
    for condition, name, why in reversed(rules):
        gate[condition], reason[condition] = name, why
    return Gate(gate, reason)


def on_outburst_star(latest: np.ndarray, star: np.ndarray, outburst: np.ndarray) -> np.ndarray:
    """Views whose object would be a star but for its outburst."""
    return (latest >= 0) & _pick(star, latest) & outburst


def _pick(flags: np.ndarray, position: np.ndarray) -> np.ndarray:
    return flags[position] if len(flags) else np.zeros(len(position), flags.dtype)


def on_star(alerts: Alerts) -> np.ndarray:
    """BOOM's star: sgscore1 > .76 and 0 <= distpsnr1 <= 2 arcsec, bool (n_alerts,)."""
    distance = alerts.floats("distpsnr1")
    return (alerts.floats("sgscore1") > STAR_SGSCORE) & (distance >= 0) & (distance <= STAR_ARCSEC)


def _gaia_star(alerts: Alerts) -> np.ndarray:
    distance = alerts.floats("neargaiabright")
    return (distance >= 0) & (distance <= GAIA_STAR_ARCSEC)


def _bright_gaia(alerts: Alerts) -> np.ndarray:
    distance, mag = alerts.floats("neargaiabright"), alerts.floats("maggaiabright")
    return (distance >= 0) & (distance <= BRIGHT_GAIA_ARCSEC) & (mag > 0) & (mag <= BRIGHT_GAIA_MAG)


def outbursts(alerts: Alerts) -> np.ndarray:
    """Alerts whose positive difference flux lifts the source 2 mag above its reference, bool (n_alerts,)."""
    amplitude = amplitudes(alerts)
    return alerts.positive & (amplitude >= OUTBURST_MAG) & np.isfinite(amplitude)


def amplitudes(alerts: Alerts) -> np.ndarray:
    """Magnitudes by which the difference flux of each alert would lift its source, NaN without one.

    The reference is ``magnr`` within 2 arcsec, else the PS1 magnitude of the same band within 2 arcsec.
    """
    mag, fid = alerts.floats("magpsf"), alerts.fid
    distnr, distpsnr = alerts.floats("distnr"), alerts.floats("distpsnr1")
    ps1 = np.select([fid == 1, fid == 2, fid == 3], [alerts.floats(f"s{band}mag1") for band in "gri"], np.nan)
    reference = np.where((distpsnr >= 0) & (distpsnr <= STAR_ARCSEC) & (ps1 > 0), ps1, np.nan)
    reference = np.where((distnr >= 0) & (distnr <= STAR_ARCSEC), alerts.floats("magnr"), reference)
    return _amplitude(mag, reference)


def _history_outbursts(alerts: Alerts, latest: np.ndarray, points: Points, view: View) -> np.ndarray:
    """Views in which an eligible detection, history included, is as far above the PS1 source, bool (v,)."""
    good = points.good[view.position] & (latest[view.segment] >= 0)
    segment, position = view.segment[good], view.position[good]
    packet, fid = latest[segment], points.fid[position]
    at_source = (alerts.floats("distpsnr1") >= 0) & (alerts.floats("distpsnr1") <= STAR_ARCSEC)
    ps1 = np.full(len(segment), np.nan)
    for number, band in enumerate("gri", 1):
        mag = np.where(at_source, alerts.floats(f"s{band}mag1"), np.nan)
        ps1 = np.where(fid == number, _pick(mag, packet), ps1)
    lifted = _amplitude(points.mag[position], np.where(ps1 > 0, ps1, np.nan)) >= OUTBURST_MAG
    return counts_of(segment, len(view), lifted) > 0


def _amplitude(mag: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Magnitudes by which a difference flux of ``mag`` lifts a source of ``reference``; NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        return 2.5 * np.log10(1.0 + 10.0 ** (0.4 * (reference - mag)))


def clean(alerts: Alerts) -> np.ndarray:
    """nbad = 0, fwhm <= 5 pixels, drb >= .5; each where given, bool (n_alerts,)."""
    nbad = int_column(alerts.table, "nbad", 0)
    return (nbad == 0) & ~(alerts.floats("fwhm") > FWHM_MAX) & ~(alerts.floats("drb") < DRB_MIN)


def _two_apart(alerts: Alerts, view: View, points: Points, point_view: View) -> np.ndarray:
    """True where the eligible detections span 30 minutes or more."""
    n = len(view)
    seen = alerts.eligible[view.position]
    good = points.good[point_view.position]
    # Alerts count by themselves too: their points are normally in the photometry as well.
    spans = [
        (alerts.jd[view.position[seen]], view.segment[seen]),
        (points.jd[point_view.position[good]], point_view.segment[good]),
    ]
    first, last = np.full(n, np.inf), np.full(n, -np.inf)
    for jd, segment in spans:
        if len(jd):
            by_segment = np.argsort(segment, kind="stable")
            first = np.minimum(
                first, reduce_segments(np.minimum, jd[by_segment], segment[by_segment], n, np.inf)
            )
            last = np.maximum(
                last, reduce_segments(np.maximum, jd[by_segment], segment[by_segment], n, -np.inf)
            )
    with np.errstate(invalid="ignore"):
        return last - first >= MIN_SEPARATION_DAYS
