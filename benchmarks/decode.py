"""How fast alert packets and stamps are decoded, against fastavro and astropy, on one core.

    taskset -c 0 python benchmarks/decode.py ZTF_TARBALL...

The packets are repeated to nights of 2,000 packets of one schema each; best of three runs.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import fastavro
from astropy.io import fits

from applecider_batch.archive.avro import parse_container
from applecider_batch.archive.avro_reader import compile_schema, read_columns
from applecider_batch.archive.history import HISTORY_FIELDS
from applecider_batch.archive.sources import open_sources
from applecider_batch.archive.stamps import decode_stamp

SIZE = 2000
STAMPS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def rate(count: int, work: Callable[[], object]) -> float:
    """Units per second, best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return count / best


def astropy_stamp(data: bytes) -> object:
    """The reference."""
    with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
        return hdus[0].data


def main(paths: list[str]) -> None:
    """Measure each schema's night."""
    warnings.simplefilter("ignore")
    nights: dict[bytes, list[bytes]] = defaultdict(list)
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                nights[next(parse_container(data)).schema.fingerprint].append(data)
    for files in sorted(nights.values(), key=len, reverse=True)[:3]:
        night = (files * (SIZE // len(files) + 1))[:SIZE]
        datums = [next(parse_container(data)) for data in night]
        plan = compile_schema(datums[0].schema, HISTORY_FIELDS)
        records = [record for data in files for record in fastavro.reader(io.BytesIO(data))]
        stamps = [record[name]["stampData"] for record in records for name in STAMPS if record.get(name)]
        few = night[:200]
        print(f"{len(files)} packets of schema {records[0].get('schemavsn')}, repeated to {SIZE}")
        read = rate(200, lambda few=few: [list(fastavro.reader(io.BytesIO(data))) for data in few])
        bodies = [datum.body for datum in datums]

        def columns(plan: object = plan, bodies: list[bytes] = bodies) -> object:
            found, data = read_columns(plan, bodies)
            for name in STAMPS:
                found.fields.pop(name, None)
            return found.to_arrow(data.buffer)

        ours = rate(SIZE, columns)
        print(f"  body to columns  fastavro.reader {read:8,.0f}/s   ours {ours:8,.0f}/s   x{ours / read:.1f}")
        slow = rate(len(stamps), lambda stamps=stamps: [astropy_stamp(d) for d in stamps]) / 3
        fast = rate(len(stamps), lambda stamps=stamps: [decode_stamp(d) for d in stamps]) / 3
        print(f"  stamp triplets   gzip + astropy  {slow:8,.0f}/s   ours {fast:8,.0f}/s   x{fast / slow:.1f}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "night.tar.gz"
            with tarfile.open(path, "w:gz", compresslevel=1) as tar:
                for i, data in enumerate(night):
                    info = tarfile.TarInfo(f"{i}.avro")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            (source,) = open_sources(path)
            assert source.source_id
            whole = rate(SIZE, lambda source=source: [b.packets_in for b in source.batches()])
        both = 1 / (1 / read + 1 / slow)
        print(
            f"  tarball to rows  reader + astropy{both:8,.0f}/s   ours {whole:8,.0f}/s   x{whole / both:.1f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
