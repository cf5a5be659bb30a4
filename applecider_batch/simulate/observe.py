"""From true flux to detections: what each exposure measures and which exposures issue an alert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from applecider_batch.simulate.cadence import SURVEY_START_JD, FloatArray, IntArray, Visits
from applecider_batch.simulate.environment import Environment
from applecider_batch.simulate.source import Source, ujy

BoolArray = npt.NDArray[np.bool_]

ALERT_SNR = 5.0  # an alert is issued at 5 sigma (Masci et al. 2019, doi:10.1088/1538-3873/aae8ac)
RAW_SNR = 3.0  # `ndethist` counts raw detections down to about 3
GAIN = 6.2  # electrons per DN
FORCED_NOISE = 0.65  # PSF-fit forced photometry is quieter than the global limit says (real 4.02 packets)
LOST_ALERTS = 0.02  # alerts whose own packet never reached the archive; later histories bring the point


@dataclass(frozen=True)
class Observations:
    """Everything the survey measures of one object; arrays over the field's n exposures.

    Fluxes in DN of the exposure (mag = zero_point - 2.5 log10 |flux|), signed.  `alert`: this exposure
    issued a packet; `in_history`: detection that histories show (also those whose packet was lost); `raw`:
    counted by `ndethist`; `covered`: the exposure saw the position; `xpos`, `ypos` pixels.
    """

    visits: Visits
    rcid: int
    limit: FloatArray
    true_dn: FloatArray
    flux_dn: FloatArray
    sigma_dn: FloatArray
    alert: BoolArray
    in_history: BoolArray
    raw: BoolArray
    covered: BoolArray
    xpos: FloatArray
    ypos: FloatArray
    forced_dn: FloatArray
    forced_sigma: FloatArray
    earlier_visits: int
    earlier_detections: int
    first_earlier_jd: float | None

    @property
    def magpsf(self) -> FloatArray:
        """PSF magnitude of the difference flux, either sign (n,)."""
        return np.asarray(self.visits.zero_point - 2.5 * np.log10(np.maximum(np.abs(self.flux_dn), 1e-3)))

    @property
    def sigmapsf(self) -> FloatArray:
        """Its 1 sigma error, with the 0.01 mag floor of real packets (n,)."""
        snr = np.abs(self.flux_dn) / self.sigma_dn
        return np.asarray(np.hypot(1.0857 / np.maximum(snr, 1e-3), 0.012))

    def counts(self) -> tuple[IntArray, IntArray, FloatArray]:
        """`ndethist`, `ncovhist` and `jdstarthist` at each exposure (n,)."""
        ndet = self.earlier_detections + np.cumsum(self.raw)
        ncov = self.earlier_visits + np.cumsum(self.covered)
        first = self.first_earlier_jd
        if first is None:
            hits = np.flatnonzero(self.raw)
            first = float(self.visits.jd[hits[0]]) if len(hits) else float(self.visits.jd[0])
        return ndet.astype(np.int64), ncov.astype(np.int64), np.full(len(ndet), first)


def observe(
    source: Source,
    environment: Environment,
    visits: Visits,
    rcid: int,
    x0: float,
    y0: float,
    rng: np.random.Generator,
) -> Observations:
    """Measure `source` in every exposure of its field.

    Parameters
    ----------
    source, environment, visits
        What is seen, what lies around it, and the exposures.
    rcid : int
        Readout channel 0..63.
    x0, y0 : float
        Mean pixel position in that channel.
    rng : numpy.random.Generator
        The object's own generator: results do not depend on other objects.
    """
    n = len(visits.jd)
    to_dn = 10.0 ** (0.4 * (visits.zero_point - 23.9))
    true_dn = source.flux(visits.jd, visits.fid) * to_dn
    if source.only_visits is not None:
        keep = np.zeros(n, bool)
        keep[source.only_visits] = True
        true_dn = np.where(keep, true_dn, 0.0)
    limit = visits.limit + rng.normal(0.0, 0.15)  # references differ in depth
    limit_sigma = 10.0 ** (0.4 * (visits.zero_point - limit)) / 5.0
    light = np.zeros(n)
    under = environment.distance < 2.0
    if under.any():
        per_band = ujy(environment.mag[under]).sum(axis=0)
        light = per_band[visits.fid - 1] * to_dn
    # Photon noise of what is underneath and of the source, and a residual of what was
    # subtracted.
    scatter = min(float(rng.lognormal(np.log(0.03), 0.5)), 0.09)
    sigma = np.sqrt(
        limit_sigma**2 + (light + np.abs(true_dn)) / GAIN + (0.005 * light) ** 2 + (scatter * true_dn) ** 2
    )
    flux = true_dn + sigma * rng.normal(size=n)
    xpos, ypos = x0 + visits.dither_x, y0 + visits.dither_y
    covered = (xpos > 10.0) & (ypos > 10.0) & (xpos < 3062.0) & (ypos < 3070.0)
    snr = np.abs(flux) / sigma
    allowed = covered.copy()
    if source.only_visits is not None:
        allowed &= true_dn != 0.0
    in_history = allowed & (snr >= ALERT_SNR)
    raw = covered & (snr >= RAW_SNR) | in_history
    lost = rng.random(n) < LOST_ALERTS
    alert = in_history & ~lost
    forced_sigma = sigma * FORCED_NOISE
    forced = true_dn + forced_sigma * rng.normal(size=n)
    years_before = visits.jd[0] - SURVEY_START_JD
    earlier = int(years_before * rng.uniform(0.05, 1.7))
    detections = int(rng.binomial(earlier, source.past_detection_rate)) if source.past_detection_rate else 0
    first = float(np.round(SURVEY_START_JD + rng.exponential(120.0), 7)) if detections else None
    return Observations(
        visits=visits, rcid=rcid, limit=limit, true_dn=true_dn, flux_dn=flux, sigma_dn=sigma, alert=alert,
        in_history=in_history, raw=raw, covered=covered, xpos=xpos, ypos=ypos, forced_dn=forced,
        forced_sigma=forced_sigma, earlier_visits=earlier, earlier_detections=detections,
        first_earlier_jd=first,
    )  # fmt: skip
