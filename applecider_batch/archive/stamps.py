"""Stamps of alert packets, one by one: gzipped FITS to float32 arrays (whole batches: ``stamp_batches.py``).

The common stamp (gzip, one header block, two axes, BITPIX -32, no scaling) is inflated by libdeflate and
read past its header; everything else (other BITPIX, BSCALE, plain FITS, several blocks of header) goes
through ``astropy.io.fits``, which is also the oracle of the tests: both give the same bits, NaN and shape
included.
"""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np

CUTOUTS = ("Science", "Template", "Difference")

DECODED, MISSING, UNREADABLE, DAMAGED = 0, 1, 2, 3
"""Codes of ``stamp_status``: DAMAGED is decoded but without a finite pixel, or not a 2-d image."""

ALL_MISSING = MISSING | MISSING << 2 | MISSING << 4

MAX_SIDE = 512
"""Stamps have 63 pixels a side; larger images are not decoded (a damaged header can claim anything)."""

BLOCK = 2880
"""Bytes of a block of a FITS file; the header of a common stamp is one."""

MAX_BYTES = 8 * MAX_SIDE**2 + 16 * BLOCK
"""Of a stamp, inflated."""


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
    if BLOCK <= size <= MAX_BYTES:
        try:
            return bytes(deflate.gzip_decompress(data, size))
        except (deflate.DeflateError, ValueError):
            pass  # several members, or a damaged trailer: zlib decides
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        inflated = stream.read(MAX_BYTES + 1)
    if len(inflated) > MAX_BYTES:
        raise ValueError("a stamp of more than a few megabytes")
    return inflated


@functools.lru_cache(maxsize=512)
def plain_shape(block: bytes) -> tuple[int, int] | None:
    """The image's shape if a header's only block says "two axes of float32, unscaled", else None."""
    cards: dict[bytes, bytes] = {}
    for i in range(0, BLOCK, 80):
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
    return shape if min(shape) > 0 and max(shape) <= MAX_SIDE else None


def _read_plain(fits: bytes) -> np.ndarray | None:
    """A stamp of the common kind; None for any other."""
    if len(fits) <= BLOCK:
        return None
    shape = plain_shape(fits[:BLOCK])
    if shape is None or len(fits) < BLOCK + 4 * shape[0] * shape[1]:
        return None
    return np.frombuffer(fits, ">f4", shape[0] * shape[1], BLOCK).astype("<f4").reshape(shape)


def _read_with_astropy(fits: bytes) -> np.ndarray | None:
    from astropy.io import fits as astropy_fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with astropy_fits.open(io.BytesIO(fits), memmap=False) as hdus:
            data = hdus[0].data
    return None if data is None else np.ascontiguousarray(data, dtype="<f4")
