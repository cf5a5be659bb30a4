"""From packets to the archive and back: records, stamps, ingest, compaction, reading."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from applecider_batch.archive.avro import Datum, parse_container
from applecider_batch.archive.avro_reader import compile_schema, read_columns
from applecider_batch.archive.compact import compact
from applecider_batch.archive.history import HISTORY_FIELDS
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.read import Archive
from applecider_batch.archive.stamps import CUTOUTS, decode_stamp
from applecider_batch.inference.shard import PIECE
from applecider_batch.schema import one_array
from benchmarks.stages import Stage
from benchmarks.stages.inputs import Inputs

STAMP_FIELDS = tuple(f"cutout{name}" for name in CUTOUTS)
EVERYTHING = (0, 1 << 64)
_FEW = 100


def astropy_stamp(data: bytes) -> np.ndarray:
    """The straightforward way to a stamp."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
            return np.array(hdus[0].data, np.float32)


def packet_rows(inputs: Inputs) -> Stage:
    """Packets without their stamps to Arrow columns; nights hold one schema, so groups of one are made."""
    groups: dict[bytes, list[bytes]] = defaultdict(list)
    for data in inputs.packets:
        groups[next(parse_container(data)).schema.fingerprint].append(data)
    files = max(groups.values(), key=len)
    night = (files * (2000 // len(files) + 1))[:2000]
    datums: list[Datum] = [next(parse_container(data)) for data in night]
    few = night[:_FEW]

    def ours() -> int:
        plan = compile_schema(datums[0].schema, HISTORY_FIELDS)
        found, data = read_columns(plan, [datum.body for datum in datums])
        for name in STAMP_FIELDS:
            found.fields.pop(name, None)
        found.to_arrow(data.buffer)
        return len(datums)

    def reference() -> int:
        for data in few:
            list(fastavro.reader(io.BytesIO(data)))
        return len(few)

    note = f"{len(files)} {inputs.kind} packets of one schema, repeated to {len(night)}"
    return Stage("packet to rows", "packets", ours, reference, "byte-wise work in NumPy", 5, notes=[note])


def _stamps(inputs: Inputs) -> list[bytes]:
    records = [record for data in inputs.packets[:300] for record in fastavro.reader(io.BytesIO(data))]
    kept = [r for r in records if all(r.get(name) and r[name].get("stampData") for name in STAMP_FIELDS)]
    return [record[name]["stampData"] for record in kept for name in STAMP_FIELDS]


def stamps_from_packets(inputs: Inputs) -> Stage:
    """Gzipped FITS to float32."""
    stamps = _stamps(inputs)

    def ours() -> int:
        for data in stamps:
            decode_stamp(data)
        return len(stamps) // 3

    few = stamps[: 3 * _FEW]

    def reference() -> int:
        for data in few:
            astropy_stamp(data)
        return len(few) // 3

    def same() -> None:
        for data in few:
            image, _ = decode_stamp(data)
            np.testing.assert_array_equal(image, astropy_stamp(data))

    note = f"{len(stamps) // 3} {inputs.kind} triplets"
    return Stage("stamps from packets", "triplets", ours, reference, "inflate", 10, same, notes=[note])


def stamps_from_archive(inputs: Inputs) -> Stage:
    """The stamps table against the packets' gzip; an archive of few stamps is read again and again."""
    stamps = _stamps(inputs)[: 3 * _FEW]
    archive = Archive.open(inputs.archive)
    lost = archive.duplicates(*EVERYTHING)
    candids = archive.read_packets("stamps", *EVERYTHING, ["candid"], lost).column("candid").to_numpy()
    pieces = [candids[i : i + PIECE] for i in range(0, len(candids), PIECE)]
    again = max(1, 1000 // max(len(candids), 1))

    def ours() -> int:
        for _ in range(again):
            for piece in pieces:
                found = archive.read_stamps(*EVERYTHING, piece)
                for name in CUTOUTS:  # as the cutouts take them: one view of all pixels
                    one_array(found.column(f"cutout{name}")).flatten().to_numpy(zero_copy_only=False)
        return again * len(candids)

    def reference() -> int:
        for data in stamps:
            astropy_stamp(data)
        return len(stamps) // 3

    record = [part.record.tables["stamps"] for part in archive.parts if "stamps" in part.record.tables]
    stored = sum(each.bytes for each in record) / max(sum(each.rows for each in record), 1)
    gzipped = 3 * float(np.mean([len(data) for data in stamps]))
    note = (
        f"{len(candids)} {inputs.kind} triplets; {stored / 1000:.1f} kB stored a triplet, keys included, "
        f"{gzipped / 1000:.1f} kB gzipped ({stored / gzipped:.2f})"
    )
    return Stage(
        "stamps from the archive",
        "triplets",
        ours,
        reference,
        "LZ4, copies, calls of Python",
        50,
        notes=[note],
    )


def _plain_ingest(night: Path, out: Path) -> int:
    """What a script does: fastavro, astropy, Parquet."""
    candidates: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    with tarfile.open(night) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is None:
                continue
            for record in fastavro.reader(io.BytesIO(stream.read())):
                keys = {"objectId": record["objectId"], "candid": record["candid"]}
                candidates.append(keys | record["candidate"])
                for part in ("prv_candidates", "fp_hists"):
                    history.extend(keys | row for row in record.get(part) or ())
                cut = {n: record.get(n) for n in STAMP_FIELDS}
                pixels = {n: astropy_stamp(c["stampData"]).ravel() for n, c in cut.items() if c}
                images.append(keys | pixels)
    for name, rows in (("candidates", candidates), ("history", history), ("stamps", images)):
        pq.write_table(pa.Table.from_pylist(rows), out / f"{name}.parquet", compression="zstd")
    return len(candidates)


def whole_ingest(inputs: Inputs) -> Stage:
    """A tarball to Parquet; the simulated night, because real ones here are small."""
    nights = sorted((inputs.survey() / "alerts").glob("*.tar.gz"), key=lambda path: path.stat().st_size)
    ours_night, reference_night = nights[-8:], nights[len(nights) // 2]
    archive, plain = inputs.work / "ingest-ours", inputs.work / "ingest-reference"

    def ours() -> int:
        shutil.rmtree(archive, ignore_errors=True)
        answer = ingest([str(night) for night in ours_night], str(archive))
        return int(answer["packets_in"])

    def reference() -> int:
        shutil.rmtree(plain, ignore_errors=True)
        plain.mkdir()
        return _plain_ingest(reference_night, plain)

    note = "simulated nights, with stamps; sorted, de-duplicated, digested and indexed on our side only"
    return Stage("ingest", "packets", ours, reference, "inflate, digests, records, copies", 8, notes=[note])


def compaction(inputs: Inputs) -> Stage:
    """All runs of an archive into one; the reference reads, sorts and writes the same tables at once."""
    source = inputs.work / "runs"
    if not source.exists():
        nights = sorted((inputs.survey() / "alerts").glob("*.tar.gz"))
        part = inputs.work / "runs.part"  # an interrupted one must not pass for the whole
        shutil.rmtree(part, ignore_errors=True)
        for start in range(0, len(nights), 15):
            ingest([str(night) for night in nights[start : start + 15]], str(part))
        part.rename(source)
    target = inputs.work / "compacted"

    def ours() -> int:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        compact(str(target), full=True)
        archive = Archive.open(str(target))
        return sum(part.record.tables["alerts"].rows for part in archive.parts)

    return Stage(
        "compaction",
        "alerts",
        ours,
        None,
        "copies of the stamps, digests",
        notes=["runs of 15 simulated nights"],
    )


def shard_read(inputs: Inputs) -> Stage:
    """Alerts, stitched photometry and spectra of a whole archive; pyarrow reading the same files whole."""
    archive = Archive.open(inputs.simulated_archive)
    files = [path for path in Path(inputs.simulated_archive).rglob("*.parquet") if "stamps" not in path.name]

    def ours() -> int:
        return archive.read_shard(*EVERYTHING).alerts.num_rows

    def reference() -> int:
        alerts = 0
        for path in files:
            table = pq.read_table(path)
            alerts += table.num_rows if path.name.startswith("alerts") else 0
        return alerts

    note = "reference: pyarrow reads the same files, nothing resolved or stitched"
    return Stage("shard read", "alerts", ours, reference, "Parquet decoding", notes=[note])


STAGES: tuple[Callable[[Inputs], Stage], ...] = (
    packet_rows,
    stamps_from_packets,
    stamps_from_archive,
    whole_ingest,
    compaction,
    shard_read,
)
