"""Sources: what a URL holds, tarballs whole and damaged, folders, bounded batches."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileOpener
from hypothesis import given
from hypothesis import strategies as st

from applecider_batch.archive import sources as sources_module
from applecider_batch.archive.gzip_stream import GzipStream
from applecider_batch.archive.packets import PacketBatch
from applecider_batch.archive.sources import Source, open_sources
from applecider_batch.errors import StorageError, UserError
from tests.archive import avro_maker as make

FILES = [(f"{make.CANDID0 + i}.avro", make.container([make.record(i)])) for i in range(7)]


def read(source: Source, max_packets: int = 2000, max_bytes: int = 64 << 20) -> tuple[list[int], list[dict]]:
    """candids and quarantine rows of a source; every batch adds up."""
    candids: list[int] = []
    aside: list[dict] = []
    for batch in source.batches(max_packets, max_bytes):
        assert batch.packets_in == batch.alerts.num_rows + batch.quarantine.num_rows
        candids += batch.alerts["candid"].to_pylist()
        aside += batch.quarantine.to_pylist()
    return candids, aside


def night(folder: Path, data: bytes, name: str = "ztf_public_20200102.tar.gz") -> Source:
    path = folder / name
    path.write_bytes(data)
    return make.opened(path)


def numbers(candids: Sequence[int]) -> list[int]:
    return [candid - make.CANDID0 for candid in candids]


# --- tarballs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode"), [("n.tar.gz", "w:gz"), ("n.tgz", "w:gz"), ("n.tar", "w"), ("n", "w:gz")]
)
def test_a_night(tmp_path: Path, name: str, mode: str) -> None:
    source = night(tmp_path, make.tarball(FILES, mode), name)
    assert (source.kind, source.name) == ("tarball", name)
    candids, aside = read(source)
    assert numbers(candids) == list(range(7))
    assert aside == []


def test_members_in_any_folder_with_any_name(tmp_path: Path) -> None:
    deep = "/".join(f"folder{i:040d}" for i in range(9))
    names = ["./a.avro", "x/y/z.avro", f"{deep}/é.avro", "noending"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz", format=form) as tar:
            folder = tarfile.TarInfo("x")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for i, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size = len(FILES[i][1])
                tar.addfile(info, io.BytesIO(FILES[i][1]))
            link = tarfile.TarInfo("again.avro")
            link.type, link.linkname = tarfile.SYMTYPE, "./a.avro"
            tar.addfile(link)
            readme = tarfile.TarInfo("README")
            readme.size = 5
            tar.addfile(readme, io.BytesIO(b"hello"))
            broken = tarfile.TarInfo(names[2].replace("é", "broken"))
            broken.size = 5
            tar.addfile(broken, io.BytesIO(b"hello"))
        candids, aside = read(night(tmp_path, out.getvalue()))
        assert numbers(candids) == [0, 1, 2, 3]
        assert [(row["member"], row["reason"]) for row in aside] == [(f"{deep}/broken.avro", "not_avro")]


def test_an_empty_night(tmp_path: Path) -> None:
    for mode in ("w:gz", "w"):
        assert read(night(tmp_path, make.tarball([], mode))) == ([], [])


@pytest.mark.parametrize("data", [b"", gzip.compress(b"", mtime=0)])
def test_an_empty_file(tmp_path: Path, data: bytes) -> None:
    candids, aside = read(night(tmp_path, data))
    assert candids == []
    assert [row["reason"] for row in aside] == ["truncated"]
    assert "empty" in aside[0]["message"]


def _member_ends(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset_data + member.size for member in tar]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.52, 0.77, 0.95])
def test_a_truncated_tarball_keeps_every_complete_member(tmp_path: Path, part: float, zipped: bool) -> None:
    plain = make.tarball(FILES, "w")
    whole = gzip.compress(plain, mtime=0) if zipped else plain
    cut = whole[: int(len(whole) * part)]
    there = len(cut)
    if zipped:
        inflate = zlib.decompressobj(31)
        there = len(inflate.decompress(cut))
    complete = sum(end <= there for end in _member_ends(plain))
    candids, aside = read(night(tmp_path, cut))
    assert numbers(candids) == list(range(complete))
    assert len(aside) == 1
    assert aside[0]["reason"] == "truncated"
    if aside[0]["member"] is not None:
        assert aside[0]["member"] == FILES[len(candids)][0]
        assert aside[0]["candid"] == make.CANDID0 + len(candids)
        assert f"of {len(FILES[len(candids)][1])} bytes are there" in aside[0]["message"]


def test_damaged_gzip_bytes(tmp_path: Path) -> None:
    whole = bytearray(make.tarball(FILES))
    whole[len(whole) // 2 : len(whole) // 2 + 8] = b"\xff" * 8
    candids, aside = read(night(tmp_path, bytes(whole)))
    assert 0 < len(candids) < 7
    assert numbers(candids) == list(range(len(candids)))
    assert len(aside) >= 1


def test_a_wrong_checksum_at_the_end_is_told(tmp_path: Path) -> None:
    whole = bytearray(make.tarball(FILES))
    whole[-8] ^= 0xFF
    candids, aside = read(night(tmp_path, bytes(whole)))
    assert numbers(candids) == list(range(7))
    assert [row["reason"] for row in aside] == ["undecodable"]


def test_a_damaged_header_is_told(tmp_path: Path) -> None:
    plain = bytearray(make.tarball(FILES, "w"))
    ends = _member_ends(bytes(plain))
    header = -(-ends[2] // 512) * 512
    plain[header + 10] ^= 0x40
    candids, aside = read(night(tmp_path, bytes(plain), "n.tar"))
    assert numbers(candids) == [0, 1, 2]
    assert "no tar header" in aside[0]["message"]


def test_a_missing_end_marker_is_told(tmp_path: Path) -> None:
    plain = make.tarball(FILES, "w")
    end = -(-_member_ends(plain)[-1] // 512) * 512
    candids, aside = read(night(tmp_path, plain[:end], "n.tar"))
    assert numbers(candids) == list(range(7))
    assert "no end marker" in aside[0]["message"]


def test_a_text_named_tarball(tmp_path: Path) -> None:
    candids, aside = read(night(tmp_path, b"<html>not found</html>" * 60))
    assert candids == []
    assert [row["reason"] for row in aside] == ["undecodable"]


def test_one_broken_packet_of_a_night(tmp_path: Path) -> None:
    files = list(FILES)
    files[3] = (files[3][0], b"a text file\n")
    files[5] = (files[5][0], files[5][1][:900])
    candids, aside = read(night(tmp_path, make.tarball(files)))
    assert numbers(candids) == [0, 1, 2, 4, 6]
    assert [(row["candid"], row["reason"]) for row in aside] == [
        (make.CANDID0 + 3, "not_avro"),
        (make.CANDID0 + 5, "truncated"),
    ]


def test_gzip_stream_equals_gzip() -> None:
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 40, 300_000, np.uint8).tobytes()
    named = io.BytesIO()
    with gzip.GzipFile("night.tar", "wb", fileobj=named) as out:
        out.write(plain[:1000])
    extra = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\x00abc" + b"name\0" + b"comment\0" + b"hc"
    raw = zlib.compressobj(wbits=-15)
    body = raw.compress(b"tail") + raw.flush()
    fourth = extra + body + zlib.crc32(b"tail").to_bytes(4, "little") + (4).to_bytes(4, "little")
    whole = gzip.compress(plain) + named.getvalue() + gzip.compress(b"") + fourth + bytes(100)
    assert gzip.decompress(whole) == plain + plain[:1000] + b"tail"
    stream = GzipStream(io.BytesIO(whole))
    parts = [stream.read(int(size)) for size in rng.integers(1, 5000, 1000)]
    assert b"".join(parts) == plain + plain[:1000] + b"tail"
    assert stream.read(10) == b""


@pytest.mark.parametrize("name", ["night.tar.gz", "night.tar", "night.avro", "night.parquet"])
def test_a_storage_that_fails_on_the_way_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Or the rest of a night would be set aside for good, as a source is read once."""
    path = tmp_path / name
    if name.endswith("avro"):
        path.write_bytes(make.container([make.record(i) for i in range(7)]))
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist([make.record(i) for i in range(7)]), path)
    else:
        path.write_bytes(make.tarball(FILES, "w:gz" if name.endswith("gz") else "w"))
    source = make.opened(path)
    assert source.source_id
    plain, asked = LocalFileOpener.read, []

    def failing(self: LocalFileOpener, size: int = -1) -> bytes:
        asked.append(size)
        if len(asked) > 1 or name.endswith("avro"):
            raise OSError(errno.EIO, "Input/output error")
        return plain(self, size)

    monkeypatch.setattr(LocalFileOpener, "read", failing)
    with pytest.raises(StorageError, match=r"could not be read to its end: .*Input/output error"):
        read(source)


def drained(data: bytes) -> tuple[bytes, Exception | None]:
    stream = GzipStream(io.BytesIO(data))
    found = b""
    try:
        while part := stream.read(1000):
            found += part
    except (EOFError, zlib.error) as error:
        return found, error
    return found, None


@given(st.integers(0, 3000), st.integers(0, 255))
def test_gzip_stream_gives_what_is_before_the_damage(at: int, value: int) -> None:
    plain = bytes(range(256)) * 40
    whole = gzip.compress(plain, mtime=0)
    at %= len(whole)
    found, error = drained(whole[:at])
    assert found == zlib.decompressobj(31).decompress(whole[:at])
    assert isinstance(error, EOFError) == (at > 0)
    found, error = drained(whole[:at] + bytes([value]) + whole[at + 1 :])
    assert error is not None or found == plain


# --- batches ------------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_content_does_not_depend_on_it(tmp_path: Path) -> None:
    source = night(tmp_path, make.tarball(FILES))
    size = len(FILES[0][1])

    def batches(packets: int, n_bytes: int) -> list[PacketBatch]:
        return list(source.batches(packets, n_bytes))

    assert [b.packets_in for b in batches(3, 1 << 30)] == [3, 3, 1]
    assert [b.packets_in for b in batches(100, 1)] == [1] * 7
    assert all(b.packets_in <= 3 for b in batches(100, int(2.5 * size)))
    whole = batches(100, 1 << 30)[0]
    parts = pa.concat_tables([b.alerts for b in batches(2, 1 << 30)])
    assert parts.combine_chunks().equals(whole.alerts.combine_chunks())


def test_quarantine_fills_batches_too(tmp_path: Path) -> None:
    bad = [(f"{i}.avro", b"x") for i in range(10)]
    source = night(tmp_path, make.tarball(bad))
    assert [b.packets_in for b in source.batches(4)] == [4, 4, 2]


def test_large_avro_files_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "_IN_MEMORY", 1000)
    blocks = make.container([make.record(0)])[:-16] + b"0123456789abcdef"
    for i in range(1, 5):
        one = make.container([make.record(i)])
        start = one.index(b"0123456789abcdef") + 16
        blocks += one[start:]
    (tmp_path / "night.avro").write_bytes(blocks)
    assert numbers(read(make.opened(tmp_path / "night.avro"), max_packets=2)[0]) == [0, 1, 2, 3, 4]
    tarred = night(tmp_path, make.tarball([("a/night.avro", blocks[:-30]), FILES[6]]))
    candids, aside = read(tarred)
    assert numbers(candids) == [0, 1, 2, 3, 6]
    assert [(row["member"], row["reason"]) for row in aside] == [("a/night.avro#4", "truncated")]


# --- files and folders --------------------------------------------------------------------------------------


def test_a_folder_of_avro_files(tmp_path: Path) -> None:
    for i in (3, 1, 2):
        path = tmp_path / "night" / f"sub{i}" / FILES[i][0]
        path.parent.mkdir(parents=True)
        path.write_bytes(FILES[i][1])
    (tmp_path / "night" / "notes.txt").write_text("hello")
    (tmp_path / "night" / ".hidden.avro").write_text("hello")
    source = make.opened(f"{tmp_path / 'night'}/")
    assert (source.kind, source.name) == ("avro_folder", "night/")
    assert numbers(read(source)[0]) == [1, 2, 3]
    batch = next(iter(source.batches()))
    assert set(batch.alerts["source_id"].to_pylist()) == {source.source_id}
    os.rename(tmp_path / "night", tmp_path / "moved")
    assert make.opened(tmp_path / "moved").source_id == source.source_id
    (tmp_path / "moved" / "sub1" / FILES[1][0]).write_bytes(FILES[4][1])
    assert make.opened(tmp_path / "moved").source_id != source.source_id


def test_source_id_is_the_content(tmp_path: Path) -> None:
    data = make.tarball(FILES)
    source = night(tmp_path, data)
    assert source.source_id == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert night(tmp_path, data, "other.tar.gz").source_id == source.source_id
    assert source.n_bytes == len(data)


def test_a_folder_of_nights_in_parts(tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(make.tarball(FILES[:2]))
    (tmp_path / "a.tar.gz").write_bytes(make.tarball(FILES[2:4]))
    (tmp_path / "loose.avro").write_bytes(FILES[5][1])
    parts = open_sources(tmp_path)
    assert [part.name for part in parts] == ["a.tar.gz", "b.tar.gz", f"{tmp_path.name}/"]
    assert [numbers(read(part)[0]) for part in parts] == [[2, 3], [0, 1], [5]]


def test_kind_by_content(tmp_path: Path) -> None:
    (tmp_path / "packet").write_bytes(FILES[0][1])
    assert make.opened(tmp_path / "packet").kind == "avro"
    (tmp_path / "strange.bin").write_bytes(b"\x00\x01" * 500)
    with pytest.raises(UserError, match=r"'strange\.bin' is of no known kind\. Give nightly tarballs"):
        make.opened(tmp_path / "strange.bin")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no source at"):
        open_sources(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no alerts"):
        make.opened(tmp_path)


def test_a_text_named_avro(tmp_path: Path) -> None:
    (tmp_path / "1234567890115015001.avro").write_text("hello")
    candids, aside = read(make.opened(tmp_path / "1234567890115015001.avro"))
    assert candids == []
    assert (aside[0]["candid"], aside[0]["reason"]) == (1234567890115015001, "not_avro")


def test_any_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/nights/ztf_public_20200102.tar.gz", make.tarball(FILES))
    for url in ("memory://nights", "memory://nights/ztf_public_20200102.tar.gz"):
        assert numbers(read(make.opened(url))[0]) == list(range(7))
    memory.rm("/nights", recursive=True)


# --- the real ones ------------------------------------------------------------------------------------------


def test_every_real_packet_is_there(shared_data: Path) -> None:
    index = pl.read_parquet(shared_data / "alerts" / "alert_index.parquet", columns=["candid", "file"])
    for folder in ("archive", "variants"):
        for source in open_sources(shared_data / "alerts" / folder):
            own = index.filter(pl.col("file") == f"alerts/{folder}/{source.name}")["candid"].to_list()
            candids, aside = read(source)
            assert aside == []
            assert Counter(candids) == Counter(own)


def test_the_corrupt_files(shared_data: Path) -> None:
    """Four cannot be read to the end (one of them holds a whole packet first), one has undecodable stamps."""
    defects = pl.read_csv(shared_data / "defects.csv", infer_schema=False)
    defects = defects.filter(pl.col("file").str.contains("alerts/corrupt/"))
    expected = {row["file"].rsplit("/", 1)[1]: "stamps" in row["defect"] for row in defects.to_dicts()}
    seen = set()
    for path in sorted((shared_data / "alerts" / "corrupt").iterdir()):
        batch = next(iter(make.opened(path).batches()))
        seen.add(path.name)
        if expected[path.name]:
            assert batch.quarantine.num_rows == 0
            assert batch.alerts["stamp_status"].to_pylist() == [0b101010]
            assert batch.stamps.num_rows == 0
            assert batch.alerts["candid"][0].as_py() < 0
        else:
            row = batch.quarantine.to_pylist()[-1]
            assert row["reason"] in ("truncated", "undecodable")
            assert row["n_bytes"] == path.stat().st_size
            assert batch.alerts.num_rows in (0, 1)
    assert seen == set(expected)
