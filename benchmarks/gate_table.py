"""The gate of real alerts against the types that catalogues give: ``python -m benchmarks.gate_table``.

Ingests alert files into a temporary archive, prepares every object as ``classify`` would (full history, no
networks) and counts its gate by kind of object. The kind comes from a table with the columns objectId, simbad
and vsx_type (and class5 where an own label exists), the cross-matches that came with the alerts. It is no
truth: a catalogue may be wrong, and most real transients match nothing.

Example
-------
python -m benchmarks.gate_table DATA/alerts/fink_parquet/night.parquet --index DATA/alerts/alert_index.parquet
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import polars as pl
import pyarrow as pa

from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.features.inputs import prepare_shard
from applecider_batch.features.profiles import get_profile
from applecider_batch.taxonomy import GATES

NO_TYPE = ("", "nan", "none", "unknown")
# In order; of SIMBAD's object types and of VSX's variability types. What matches nothing is "other type".
SIMBAD_KINDS: tuple[tuple[str, str], ...] = (
    (r"^(CV|No)\*|CataclyV|Nova", "CV"),
    (r"^SN", "supernova"),
    (r"QSO|Seyfert|^AGN|BLLac|Blazar|LINER", "AGN"),
    (r"Galaxy|^G$|EmG|Radio|^X$|GinC|BClG", "galaxy or unidentified radio/X source"),
    (r"EB\*|RRLyr|LP|Mira|Puls|V\*|RR\*|RS\*|BY\*|TTau|Cepheid|dS\*|SB\*|AGB|C\*|Em\*|XB|Star|\*", "star"),
)
VSX_CATACLYSMIC = re.compile(r"^(UG|N[ABCRL]?$|NL|AM$|DQ|CV|IBWD|ZAND|V838)")
VSX_AGN = re.compile(r"^(AGN|QSO|BLLAC|BL LAC|GAL)")


def kind_of(simbad: str | None, vsx: str | None, label: str | None) -> str:
    """Kind of object: the own label, else SIMBAD's type, else VSX's."""
    if label is not None:
        return {"SN I": "supernova", "SN II": "supernova"}.get(label, label)
    simbad, vsx = (simbad or "").strip(), (vsx or "").strip()
    failed = simbad.startswith("Fail")  # the cross-match service gave no answer
    if simbad.lower() not in NO_TYPE and not failed:
        return next((kind for pattern, kind in SIMBAD_KINDS if re.search(pattern, simbad)), "other type")
    if vsx.lower() not in NO_TYPE:
        if VSX_CATACLYSMIC.match(vsx):
            return "CV"
        return "AGN" if VSX_AGN.match(vsx) else "star"
    return "no type"


def gates(files: list[Path]) -> pl.DataFrame:
    """objectId, gate and reason of every object in the files, first episode, full history."""
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "archive")
        ingest([str(file) for file in files], url)
        archive = Archive.open(url)
        shard = archive.read_shard(0, 1 << 64)
        prepared = prepare_shard(
            shard, [None], get_profile("paper"), snapshot_jd_max=archive.snapshot.jd_max, modalities=set()
        )
    rows = prepared.rows.select(["objectId", "episode", "gate", "gate_reason"])
    return pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("episode") <= 1)


def table(found: pl.DataFrame, index: pl.DataFrame) -> str:
    """Markdown: kinds of object in rows, gates in columns, and the reasons below."""
    known = {
        row["objectId"]: kind_of(row.get("simbad"), row.get("vsx_type"), row.get("class5"))
        for row in index.iter_rows(named=True)
    }
    kinds = pl.Series("kind", [known.get(name, "no type") for name in found["objectId"]])
    found = found.with_columns(kinds)
    counts = found.group_by("kind", "gate").len()
    order = found.group_by("kind").len().sort("len", "kind", descending=[True, False])
    lines = [f"| kind | {' | '.join(GATES)} | objects |", "|---" * (len(GATES) + 2) + "|"]
    for kind, total in [*order.iter_rows(), ("all", found.height)]:
        own = counts if kind == "all" else counts.filter(pl.col("kind") == kind)
        cells = [int(own.filter(pl.col("gate") == gate)["len"].sum()) for gate in GATES]
        lines.append(f"| {kind} | {' | '.join(map(str, cells))} | {total} |")
    lines += ["", "| gate | reason | objects |", "|---|---|---|"]
    reasons = found.group_by("gate", "gate_reason").len().sort("gate", "len", descending=[False, True])
    lines += [f"| {gate} | {reason} | {count} |" for gate, reason, count in reasons.iter_rows()]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="alert files: tarballs, Avro, Fink-layout Parquet"
    )
    parser.add_argument(
        "--index", required=True, type=Path, help="Parquet with objectId, simbad, vsx_type, class5"
    )
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    print(table(gates(arguments.files), pl.read_parquet(arguments.index)))


if __name__ == "__main__":
    main()
