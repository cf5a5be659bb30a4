"""Stamps of alert packets: gzipped FITS to float32 arrays, and whole batches of them to the stamps table.

The common stamp (gzip, one header block, two axes, BITPIX -32, no scaling) is inflated by libdeflate and
read past its header; everything else (other BITPIX, BSCALE, plain FITS, several blocks of header) goes
through ``astropy.io.fits``, which is also the oracle of the tests: both give the same bits, NaN and shape
included.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

CUTOUTS = ("Science", "Template", "Difference")

DECODED, MISSING, UNREADABLE, DAMAGED = 0, 1, 2, 3
"""Codes of ``stamp_status``: DAMAGED is decoded but without a finite pixel, or not a 2-d image."""

ALL_MISSING = MISSING | MISSING << 2 | MISSING << 4

MAX_SIDE = 512
"""Stamps have 63 pixels a side; larger images are not decoded (a damaged header can claim anything)."""

_BLOCK = 2880
_MAX_BYTES = 8 * MAX_SIDE**2 + 16 * _BLOCK


def decode_stamp(data: bytes | memoryview | None) -> tuple[np.ndarray | None, int]:
    """Decode one stamp.

    Parameters
    ----------
    data : bytes or None
        ``stampData`` as it lies in the packet: a FITS file, gzipped or plain.

    Returns
    -------
    image : ndarray, float32, shape (NAXIS2, NAXIS1), or None
        As it lies in the file (not flipped, NaN kept, BSCALE and BZERO applied).
    status : int
        One of DECODED, MISSING, UNREADABLE, DAMAGED.
    """
    if data is None or len(data) == 0:
        return None, MISSING
    try:
        fits = _inflate(data) if bytes(data[:2]) == b"\x1f\x8b" else bytes(data)
        image = _read_plain(fits)
        if image is None:
            image = _read_with_astropy(fits)
    except Exception:  # damaged bytes lead anywhere in zlib and astropy; what counts is that they are flagged
        return None, UNREADABLE
    if image is None:
        return None, UNREADABLE
    if image.ndim != 2:
        # A cube with axes of length one is still an image; anything else has no place in the table.
        flat = image.reshape([n for n in image.shape if n != 1])
        return (flat, DAMAGED) if flat.ndim == 2 and max(flat.shape) <= MAX_SIDE else (None, UNREADABLE)
    if max(image.shape) > MAX_SIDE or image.size == 0:
        return None, UNREADABLE
    sound = np.isfinite(image[0, 0]) or np.isfinite(image).any()
    return image, DECODED if sound else DAMAGED


def _inflate(data: bytes | memoryview) -> bytes:
    import deflate

    size = int.from_bytes(data[-4:], "little")
    if _BLOCK <= size <= _MAX_BYTES:
        try:
            return bytes(deflate.gzip_decompress(data, size))
        except (deflate.DeflateError, ValueError):
            pass  # several members, or a damaged trailer: zlib decides
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        inflated = stream.read(_MAX_BYTES + 1)
    if len(inflated) > _MAX_BYTES:
        raise ValueError("a stamp of more than a few megabytes")
    return inflated


@dataclass(frozen=True)
class _Header:
    size: int
    shape: tuple[int, int]


@functools.lru_cache(maxsize=512)
def _plain_header(block: bytes) -> _Header | None:
    """The image's shape if one header block says "two axes of float32, unscaled", else None."""
    cards: dict[bytes, bytes] = {}
    for i in range(0, _BLOCK, 80):
        card = block[i : i + 80]
        key = card[:8].strip()
        if key == b"END":
            break
        if card[8:9] == b"=":
            cards.setdefault(key, card[9:].split(b"/")[0].strip())
        elif card[:6] == b"SIMPLE":
            cards[b"SIMPLE"] = card[6:].strip(b" =").split(b"/")[0].strip()  # "SIMPLE  =  T" of ZTF
    else:
        return None
    if cards.get(b"SIMPLE") != b"T" or cards.get(b"BITPIX") != b"-32" or cards.get(b"NAXIS") != b"2":
        return None
    if cards.keys() & {b"BSCALE", b"BZERO", b"BLANK", b"GROUPS", b"PCOUNT", b"ZIMAGE"}:
        return None
    try:
        shape = int(cards[b"NAXIS2"]), int(cards[b"NAXIS1"])
    except (KeyError, ValueError):
        return None
    return _Header(_BLOCK, shape) if min(shape) > 0 and max(shape) <= MAX_SIDE else None


def _read_plain(fits: bytes) -> np.ndarray | None:
    """A stamp of the common kind; None for any other."""
    if len(fits) <= _BLOCK:
        return None
    header = _plain_header(fits[:_BLOCK])
    if header is None or len(fits) < header.size + 4 * header.shape[0] * header.shape[1]:
        return None
    pixels = np.frombuffer(fits, ">f4", header.shape[0] * header.shape[1], header.size)
    return pixels.astype("<f4").reshape(header.shape)


def _read_with_astropy(fits: bytes) -> np.ndarray | None:
    from astropy.io import fits as astropy_fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with astropy_fits.open(io.BytesIO(fits), memmap=False) as hdus:
            data = hdus[0].data
    return None if data is None else np.ascontiguousarray(data, dtype="<f4")


@dataclass
class DecodedStamps:
    """Stamps of n packets.

    Attributes
    ----------
    images : dict of str to list
        Per cutout ("Science", "Template", "Difference") n images or None.
    status : ndarray, int16, shape (n,)
        Two bits per cutout, science lowest.
    """

    images: dict[str, list[np.ndarray | None]]
    status: np.ndarray

    @property
    def n_decoded(self) -> np.ndarray:
        """Cutouts decoded without damage, 0 to 3, int32, shape (n,)."""
        return sum(((self.status >> shift) & 3 == DECODED).astype(np.int32) for shift in (0, 2, 4))

    @property
    def any_image(self) -> np.ndarray:
        """Whether a packet has an image at all, bool, shape (n,)."""
        return np.array(
            [any(self.images[c][i] is not None for c in CUTOUTS) for i in range(len(self.status))], bool
        )

    def columns(self, index: np.ndarray) -> dict[str, pa.Array]:
        """The image columns of the stamps table, for the packets of ``index``."""
        columns: dict[str, pa.Array] = {}
        for cutout in CUTOUTS:
            images = [self.images[cutout][i] for i in index]
            columns[f"cutout{cutout}"] = _list_array(images)
            shapes = [(None, None) if image is None else image.shape for image in images]
            columns[f"height{cutout}"] = pa.array([h for h, _ in shapes], pa.int16())
            columns[f"width{cutout}"] = pa.array([w for _, w in shapes], pa.int16())
        return columns


def decode_stamps(cutouts: dict[str, Sequence[bytes | memoryview | None]], size: int) -> DecodedStamps:
    """Decode the stamps of n packets; a cutout absent from ``cutouts`` is missing in all of them."""
    status = np.zeros(size, np.int16)
    images: dict[str, list[np.ndarray | None]] = {}
    for shift, cutout in enumerate(CUTOUTS):
        given = cutouts.get(cutout)
        if given is None:
            images[cutout] = [None] * size
            status |= MISSING << 2 * shift
            continue
        decoded = [decode_stamp(data) for data in given]
        images[cutout] = [image for image, _ in decoded]
        status |= np.fromiter((code << 2 * shift for _, code in decoded), np.int16, size)
    return DecodedStamps(images, status)


def _list_array(images: Sequence[np.ndarray | None]) -> pa.Array:
    lengths = np.fromiter((0 if image is None else image.size for image in images), np.int32, len(images))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    parts = [image.ravel() for image in images if image is not None]
    values = pa.array(np.concatenate(parts) if parts else np.empty(0, np.float32), pa.float32())
    mask = pa.array([image is None for image in images], pa.bool_()) if len(parts) < len(images) else None
    kind = pa.list_(pa.field("item", pa.float32(), nullable=True))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=mask)
