"""Quality flags of a row: facts that a reader of the catalogue should know, none of which removes
anything."""

from __future__ import annotations

from enum import IntFlag


class Quality(IntFlag):
    """Bits of ``quality_flags``."""

    NO_T0 = 1 << 0
    NO_ALERTS = 1 << 1
    ABSURD_PHOTOMETRY = 1 << 2
    EVENTS_NOT_POSITIVE = 1 << 3
    SEQUENCE_CUT = 1 << 4
    NO_STAMPS = 1 << 5
    NEGATIVE_DETECTIONS = 1 << 6
    SOLAR_SYSTEM_DETECTIONS = 1 << 7
    DRB_MISSING = 1 << 8
    BRIGHT_STAR_NEAR = 1 << 11
    HOST_SPECTRUM = 1 << 12
    REDSHIFT_MARGINALISED = 1 << 13
    SPECTRUM_UNDATED = 1 << 14
    SPECTRUM_FLATTENED = 1 << 15
    SPECTRUM_PARTIAL = 1 << 16
    LATER_EPISODE = 1 << 17


#: What each bit says, for the documentation and the report.
DESCRIPTIONS: dict[Quality, str] = {
    Quality.NO_T0: "no eligible alert: t0 is null",
    Quality.NO_ALERTS: "no packet seen: known from a photometry table only",
    Quality.ABSURD_PHOTOMETRY: "detections or forced points with unusable numbers were left out",
    Quality.EVENTS_NOT_POSITIVE: "merged events with flux <= 0 left the light curve's sequence",
    Quality.SEQUENCE_CUT: "the sequence has more events than the network takes",
    Quality.NO_STAMPS: "no eligible packet with three decodable stamps",
    Quality.NEGATIVE_DETECTIONS: "at least one negative detection",
    Quality.SOLAR_SYSTEM_DETECTIONS: "at least one alert with a known solar-system object within 12 arcsec",
    Quality.DRB_MISSING: "no alert carries drb",
    Quality.BRIGHT_STAR_NEAR: "ZTFReST's bright star: PS1 source within 15 arcsec, r < 15, sgscore >= .5",
    Quality.HOST_SPECTRUM: "a spectrum taken before t0 exists and was not used",
    Quality.REDSHIFT_MARGINALISED: "the spectrum has no redshift: the mean over trial redshifts was taken",
    Quality.SPECTRUM_UNDATED: "the spectrum has no date",
    Quality.SPECTRUM_FLATTENED: "a spectrum with the continuum removed was not used",
    Quality.SPECTRUM_PARTIAL: "the spectrum covers less than half of the grid",
    Quality.LATER_EPISODE: "not the object's first episode",
}


def describe(flags: int) -> list[str]:
    """The meaning of every bit that is set, lowest first."""
    return [text for bit, text in DESCRIPTIONS.items() if flags & bit]
