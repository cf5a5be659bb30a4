"""Truth, spectra and known-transient list beside the nights."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from applecider_batch.simulate.cadence import Season, night_date
from applecider_batch.simulate.source import AB_ZERO_UJY
from applecider_batch.simulate.spectra import make_spectrum

if TYPE_CHECKING:
    from applecider_batch.simulate.objects import SimulatedObject

SIMULATION_FILE = "simulation.json"
NOTE = "SIMULATED by applecider-batch: no row, packet or stamp in this folder is an observation."
KNOWN_SHARE = 0.7
SPECTRUM_SHARE = {"SN I": 0.5, "SN II": 0.5, "CV": 0.25, "AGN": 0.4, "TDE": 0.6}

_TRUTH = pa.schema(
    [
        ("objectId", pa.string()), ("class", pa.string()), ("type", pa.string()), ("gate", pa.string()),
        ("t_onset", pa.float64()), ("t_peak", pa.float64()), ("t0", pa.float64()), ("z", pa.float64()),
        ("mag_peak_g", pa.float64()), ("mag_peak_r", pa.float64()), ("ra", pa.float64()), ("dec",
        pa.float64()),
        ("n_alerts", pa.int32()), ("n_alerts_positive", pa.int32()), ("jd_first", pa.float64()),
        ("jd_last", pa.float64()), ("in_known_list", pa.bool_()), ("known_name", pa.string()),
        ("n_spectra", pa.int32()), ("ssnamenr", pa.string()), ("artefact_kind", pa.string()),
        ("simulated", pa.bool_()),
    ]
)  # fmt: skip
_SPECTRA = pa.schema(
    [
        ("objectId", pa.string()), ("mjd", pa.float64()), ("wavelength", pa.list_(pa.float32())),
        ("flux", pa.list_(pa.float32())), ("redshift", pa.float64()), ("instrument", pa.string()),
        ("flux_unit", pa.string()), ("simulated", pa.bool_()),
    ]
)  # fmt: skip
_KNOWN = [
    "name",
    "objectId",
    "iau_name",
    "ra",
    "dec",
    "type_raw",
    "redshift",
    "discovery_date",
    "peak_mag",
    "source",
]
_MARK = {b"simulated": b"true", b"note": NOTE.encode()}


class Catalogues:
    """Collects the small tables while objects are made."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._truth: list[dict[str, Any]] = []
        self._spectra: list[dict[str, Any]] = []
        self._known: list[dict[str, Any]] = []

    def add(self, made: SimulatedObject) -> None:
        """Take down the truth of one object, and draw its spectra and whether it is on the known list."""
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(3, made.slot.index)))
        source, seen, index = made.source, made.seen, made.alert_index
        jd = seen.visits.jd[index]
        positive = seen.flux_dn[index] > 0
        peaks = _peak_mags(made)
        hours = float(np.ptp(jd[positive])) * 24.0 if positive.any() else 0.0
        gate = source.gate
        if gate == "in_scope" and (positive.sum() < 2 or hours < 0.5):
            gate = "too_few_detections"
        truth: dict[str, Any] = {
            "objectId": made.slot.object_id, "class": source.class5, "type": source.kind, "gate": gate,
            "t_onset": source.t_onset, "t_peak": source.t_peak,
            "t0": float(jd[positive][0]) if positive.any() else None,
            "z": source.redshift, "mag_peak_g": peaks[1], "mag_peak_r": peaks[2], "ra": made.environment.ra,
            "dec": made.environment.dec, "n_alerts": len(index), "n_alerts_positive": int(positive.sum()),
            "jd_first": float(jd[0]) if len(jd) else None, "jd_last": float(jd[-1]) if len(jd) else None,
            "in_known_list": False, "known_name": None, "n_spectra": 0,
            "ssnamenr": source.moving[0] if source.moving else None, "artefact_kind": source.artefact,
            "simulated": True,
        }  # fmt: skip
        if source.class5 is not None and positive.any():
            if rng.random() < KNOWN_SHARE:
                self._add_known(made, truth, float(jd[positive][0] + rng.exponential(2.5)))
            if rng.random() < SPECTRUM_SHARE[source.class5]:
                truth["n_spectra"] = self._add_spectra(made, rng)
        self._truth.append(truth)

    def _add_known(self, made: SimulatedObject, truth: dict[str, Any], jd: float) -> None:
        date = np.datetime64("2017-01-01T00:00:00") + np.timedelta64(int((jd - 2457754.5) * 86400), "s")
        name = f"SIM{made.slot.index:06d}"
        peak = min(m for m in (truth["mag_peak_g"], truth["mag_peak_r"]) if m is not None)
        self._known.append(
            {
                "name": name, "objectId": made.slot.object_id, "iau_name": name, "ra": f"{truth['ra']:.6f}",
                "dec": f"{truth['dec']:.6f}", "type_raw": truth["type"],
                "redshift": "" if truth["z"] is None else f"{truth['z']:.4f}", "discovery_date": str(date),
                "peak_mag": f"{peak:.2f}", "source": "simulated",
            }
        )  # fmt: skip
        truth["in_known_list"], truth["known_name"] = True, name

    def _add_spectra(self, made: SimulatedObject, rng: np.random.Generator) -> int:
        seen, source = made.seen, made.source
        positive = made.alert_index[seen.flux_dn[made.alert_index] > 0]
        when = seen.visits.jd[positive]
        target = source.t_peak if source.t_peak is not None else float(when[len(when) // 2])
        count = 2 if rng.random() < 0.15 else 1
        for _ in range(count):
            k = positive[int(np.argmin(np.abs(when - target - rng.normal(3.0, 9.0))))]
            mjd = float(np.round(seen.visits.jd[k] - 2400000.5 + rng.uniform(0.1, 1.5), 4))
            wave, flux = make_spectrum(source, mjd, float(seen.magpsf[k]), rng)
            redshift = None if source.redshift is None or rng.random() < 0.1 else round(source.redshift, 5)
            self._spectra.append(
                {
                    "objectId": made.slot.object_id, "mjd": mjd, "wavelength": wave.astype(np.float32),
                    "flux": flux.astype(np.float32),
                    "redshift": redshift,
                    "instrument": "simulated", "flux_unit": "erg / (s cm2 Angstrom)", "simulated": True,
                }
            )  # fmt: skip
        return count

    def write(
        self, out: Path, *, parameters: dict[str, int], season: Season, packets_per_night: dict[str, int]
    ) -> dict[str, Any]:
        """Write the tables, then README.md, then simulation.json, which marks the folder as complete."""
        _write_table(self._truth, _TRUTH, out / "truth.parquet")
        _write_table(self._spectra, _SPECTRA, out / "spectra.parquet")
        text = io.StringIO()
        writer = csv.DictWriter(text, _KNOWN, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._known)
        _replace(out / "known_transients.csv", text.getvalue().encode())
        with_alerts = [t for t in self._truth if t["n_alerts"]]
        summary: dict[str, Any] = {
            "simulated": True, "note": NOTE, **parameters, "first_night": night_date(season.first_nid),
            "last_night": night_date(season.last_nid), "schema_402_from": night_date(season.switch_nid),
            "packets": sum(packets_per_night.values()), "objects": len(self._truth),
            "objects_with_packets": len(with_alerts), "spectra": len(self._spectra),
            "known_transients": len(self._known),
            "objects_by_type": dict(sorted(Counter(t["type"] for t in self._truth).items())),
            "packets_by_type": dict(sorted(_sum_by_type(self._truth).items())),
            "packets_per_night": packets_per_night,
        }  # fmt: skip
        lines = [
            "# Simulated survey", "", NOTE, "",
            "Made by `applecider-batch simulate DIR --objects "
            f"{parameters['n_objects']} --nights {parameters['n_nights']} --seed {parameters['seed']} "
            f"--rare {parameters['n_rare']}`.", "",
            "Packets follow ZTF's alert format (schema 3.3, from "
            f"{summary['schema_402_from']} on 4.02); `rbversion` and `drbversion` are `simulated`.",
            "`truth.parquet` holds what each object is; `known_transients.csv` leaves some of the transients "
            "out.", "",
        ]  # fmt: skip
        _replace(out / "README.md", "\n".join(lines).encode())
        _replace(out / SIMULATION_FILE, (json.dumps(summary, indent=1) + "\n").encode())
        (out / ".simulating").unlink(missing_ok=True)
        return summary


def _peak_mags(made: SimulatedObject) -> dict[int, float | None]:
    """Brightest true difference magnitude per band over the season's exposures; None where never positive."""
    seen = made.seen
    out: dict[int, float | None] = {}
    for fid in (1, 2):
        flux = seen.true_dn[seen.visits.fid == fid] * 10.0 ** (
            -0.4 * (seen.visits.zero_point[seen.visits.fid == fid] - AB_ZERO_UJY)
        )
        best = float(flux.max()) if len(flux) else 0.0
        out[fid] = float(np.round(AB_ZERO_UJY - 2.5 * np.log10(best), 4)) if best > 1e-3 else None
    return out


def _sum_by_type(truth: list[dict[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for row in truth:
        total[row["type"]] += row["n_alerts"]
    return total


def _write_table(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> None:
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(_MARK))
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
