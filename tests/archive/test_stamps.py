"""Stamps: bit-equal to astropy, whatever the FITS file looks like; damage is flagged, never raised."""

from __future__ import annotations

import gzip
import io
import tarfile
import warnings
import zlib
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from applecider_batch.archive import stamps as stamps_module
from applecider_batch.archive.packets import decode_packets, split_file
from applecider_batch.archive.quarantine import Quarantine, SourceInfo
from applecider_batch.archive.sources import open_sources
from applecider_batch.archive.stamp_batches import StampBytes, decode_stamps
from applecider_batch.archive.stamp_blocks import unpack
from applecider_batch.archive.stamps import (
    ALL_MISSING,
    CUTOUTS,
    DAMAGED,
    DECODED,
    MISSING,
    UNREADABLE,
    decode_stamp,
)
from tests.archive import avro_maker as make


def astropy_image(data: bytes) -> np.ndarray:
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(plain)) as hdus:
            return np.ascontiguousarray(hdus[0].data, dtype="<f4")


def bits(image: np.ndarray | None) -> tuple[tuple[int, ...], bytes]:
    assert image is not None
    assert image.dtype == np.float32
    return image.shape, image.tobytes()


def test_real_stamps_from_avro(shared_data: Path) -> None:
    n_stamps, n_nan, shapes = 0, 0, set()
    folder = shared_data / "alerts"
    for path in sorted([*folder.glob("archive/*.tar.gz"), *folder.glob("variants/*.tar.gz")]):
        with tarfile.open(path) as tar:
            members = [tar.extractfile(member) for member in tar]
            files = [stream.read() for stream in members if stream is not None]
        quarantine = Quarantine(SourceInfo("0" * 32, path.name))
        packets = [p for data in files for p in split_file(path.name, data, quarantine)]
        table = unpack(decode_packets(packets, quarantine).stamps)
        records = [record for data in files for record in fastavro.reader(io.BytesIO(data))]
        given = [record for record in records if record.get("cutoutScience")]
        assert len(given) == table.num_rows
        table = table.combine_chunks()
        by_candid = {candid: i for i, candid in enumerate(table["candid"].to_pylist())}
        for record in given:
            at = by_candid[record["candidate"]["candid"]]
            for cutout in CUTOUTS:
                expected = astropy_image(record[f"cutout{cutout}"]["stampData"])
                shape = table[f"height{cutout}"][at].as_py(), table[f"width{cutout}"][at].as_py()
                pixels = table[f"cutout{cutout}"][at].values.to_numpy(zero_copy_only=False)
                assert (shape, pixels.tobytes()) == bits(expected)
                n_stamps += 1
                n_nan += bool(np.isnan(expected).any())
                shapes.add(shape)
    assert n_stamps > n_nan > 0
    assert len(shapes) > 1  # detector edges


def test_real_stamps_from_parquet(shared_data: Path) -> None:
    checked = 0
    for source in open_sources(shared_data / "alerts" / "fink_parquet"):
        path = shared_data / "alerts" / "fink_parquet" / source.name
        if "cutoutScience" not in pq.read_schema(path).names:
            continue
        table = unpack(next(iter(source.batches())).stamps)
        given = pq.read_table(path, columns=[f"cutout{c}" for c in CUTOUTS])
        assert table.num_rows == given.num_rows
        for at in (0, given.num_rows - 1):
            for cutout in CUTOUTS:
                expected = astropy_image(given[f"cutout{cutout}"][at]["stampData"].as_py())
                pixels = table[f"cutout{cutout}"][at].values.to_numpy(zero_copy_only=False)
                assert pixels.tobytes() == expected.tobytes()
                checked += 1
    assert checked > 0


IMAGE = make.stamp_image(7)
ODD = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    "data",
    [
        make.fits_stamp(IMAGE),
        make.fits_stamp(IMAGE, zipped=False),
        make.fits_stamp(IMAGE[:41]),
        make.fits_stamp(ODD),
        make.fits_stamp(ODD, bitpix=16),
        make.fits_stamp(ODD, bitpix=32),
        make.fits_stamp(ODD, bitpix=8),
        make.fits_stamp(ODD, bitpix=-64),
        make.fits_stamp(ODD, "BSCALE  =                  2.5", "BZERO   =                -10.0", bitpix=16),
        make.fits_stamp(ODD, "BSCALE  =                  2.5", "BZERO   =                -10.0"),
        make.fits_stamp(ODD, "BLANK   =                    3", bitpix=16),
        make.fits_stamp(ODD, *(f"COMMENT line {i}" for i in range(60))),  # a header of two blocks
        make.fits_stamp(ODD, "COMMENT BITPIX  =                    8"),
        make.fits_stamp(ODD) + gzip.compress(b"", mtime=0),  # several gzip members
        make.fits_stamp(ODD, zipped=False)[: 2880 + 4 * 24],  # without padding
        make.fits_stamp(np.array([[np.inf, -np.inf, 1.0]])),
    ],
)
def test_bit_equal_to_astropy(data: bytes) -> None:
    image, status = decode_stamp(data)
    assert bits(image) == bits(astropy_image(data))
    assert status == DECODED


def test_the_common_stamp_does_not_need_astropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps_module, "_read_with_astropy", None)
    assert decode_stamp(make.fits_stamp(IMAGE))[1] == DECODED
    assert decode_stamp(make.fits_stamp(ODD, bitpix=16))[1] == UNREADABLE


def test_nan_payloads_survive() -> None:
    image = np.array([[0x7FC00001, 0xFFC12345], [0x7F800001, 0x00000001]], np.uint32).view(np.float32)
    found, _ = decode_stamp(make.fits_stamp(image))
    assert bits(found) == bits(image)


CUBE = make.fits_stamp(ODD.reshape(1, 4, 6))


@pytest.mark.parametrize(
    ("data", "status", "shape"),
    [
        (None, MISSING, None),
        (b"", MISSING, None),
        (b"\xff\xd8\xff\xe0 a picture", UNREADABLE, None),
        (b"SIMPLE  =  T", UNREADABLE, None),
        (make.fits_stamp(IMAGE)[:2000], UNREADABLE, None),
        (make.fits_stamp(IMAGE)[:-8] + bytes(8), UNREADABLE, None),
        (make.fits_stamp(IMAGE, zipped=False)[:5000], UNREADABLE, None),
        (gzip.compress(b"no FITS at all", mtime=0), UNREADABLE, None),
        (make.fits_stamp(np.zeros((2, 2))).replace(b"\x1f\x8b", b"\x1f\x8c", 1), UNREADABLE, None),
        (make.fits_stamp(np.full((5, 5), np.nan)), DAMAGED, (5, 5)),
        (make.fits_stamp(np.full((5, 5), np.inf)), DAMAGED, (5, 5)),
        (make.fits_stamp(np.zeros((5, 5))), DECODED, (5, 5)),
        (CUBE, DAMAGED, (4, 6)),
        (make.fits_stamp(np.zeros((3, 4, 6))), UNREADABLE, None),
        (make.fits_stamp(np.zeros(9)), UNREADABLE, None),
        (make.fits_stamp(np.zeros((1, 513))), UNREADABLE, None),
        (gzip.compress(bytes(1 << 24), mtime=0), UNREADABLE, None),  # a bomb
    ],
)
def test_status(data: bytes | None, status: int, shape: tuple[int, int] | None) -> None:
    image, found = decode_stamp(data)
    assert found == status
    assert (None if image is None else image.shape) == shape


def test_every_damaged_byte_is_an_image_or_a_flag() -> None:
    whole = make.fits_stamp(ODD)
    for at in range(0, len(whole), 3):
        data = bytearray(whole)
        data[at] ^= 0x55
        image, status = decode_stamp(bytes(data))
        assert (image is None) == (status in (MISSING, UNREADABLE))


def test_codes_of_three_stamps() -> None:
    good, bad = make.fits_stamp(ODD), b"nonsense"
    given = {"Science": [good, None, good], "Difference": [good, bad, None]}
    decoded = decode_stamps({name: StampBytes.join(stamps) for name, stamps in given.items()}, 3)
    assert decoded.status.tolist() == [0b00_01_00, 0b10_01_01, 0b01_01_00]
    assert decoded.n_decoded.tolist() == [2, 0, 1]
    assert decoded.any_image.tolist() == [True, False, True]
    columns = unpack(pa.table(decoded.columns)).to_pydict()
    assert columns["cutoutScience"] == [ODD.ravel().tolist(), None, ODD.ravel().tolist()]
    assert columns["cutoutDifference"] == [ODD.ravel().tolist(), None, None]
    assert columns["heightDifference"] == [4, None, None]
    assert columns["widthScience"] == [6, None, 6]
    assert decode_stamps({}, 2).status.tolist() == [ALL_MISSING] * 2


def test_a_batch_holds_what_its_stamps_are_one_by_one() -> None:
    whole = make.fits_stamp(ODD)
    stamps: list[bytes | None] = [None, b"", b"\x1f", CUBE, make.fits_stamp(ODD, bitpix=16)]
    stamps += [
        make.fits_stamp(np.full((3, side), np.nan)) for side in range(1, 25)
    ]  # more headers than are kept
    stamps += [make.fits_stamp(np.array([[np.nan, last]])) for last in (1.0, np.inf)]
    stamps += [
        make.fits_stamp(IMAGE, zipped=False),
        gzip.compress(bytes(1 << 24), mtime=0),
        make.fits_stamp(IMAGE),
    ]
    stamps += [make.fits_stamp(np.random.default_rng(3).normal(size=(512, 512)).astype(np.float32))]
    for at in range(0, len(whole), 3):
        data = bytearray(whole)
        data[at] ^= 0x55
        stamps.append(bytes(data))
    decoded = decode_stamps({"Template": StampBytes.join(stamps)}, len(stamps))
    columns = unpack(pa.table(decoded.columns)).combine_chunks()
    for row, data in enumerate(stamps):
        image, status = decode_stamp(data)
        assert decoded.status[row] == MISSING | status << 2 | MISSING << 4
        pixels, *shape = (columns[f"{of}Template"][row] for of in ("cutout", "height", "width"))
        if image is None:
            assert [value.as_py() for value in (pixels, *shape)] == [None] * 3
        else:
            found = pixels.values.to_numpy(zero_copy_only=False)
            assert (tuple(value.as_py() for value in shape), found.tobytes()) == bits(image)


def test_a_damaged_stamp_leaves_the_packet() -> None:
    record = make.record(0, cutoutTemplate={"fileName": "x", "stampData": zlib.compress(b"x")})
    quarantine = Quarantine(SourceInfo("0" * 32, "x"))
    batch = decode_packets(split_file("a.avro", make.container([record]), quarantine), quarantine)
    assert batch.quarantine.num_rows == 0
    assert batch.alerts["stamp_status"].to_pylist() == [UNREADABLE << 2]
    assert batch.stamps["cutoutTemplate"].to_pylist() == [None]
    assert batch.stamps["stamp_status"].to_pylist() == [UNREADABLE << 2]
    intact = decode_packets(split_file("a.avro", make.container([make.record(0)]), quarantine), quarantine)
    assert intact.alerts["completeness"][0].as_py() > batch.alerts["completeness"][0].as_py()
