"""A gzip stream that gives every byte before the place where it is cut off or damaged.

``gzip`` and ``isal.igzip`` read ahead, and an error takes what was read ahead with it; a packet that lies
whole before the end of a cut tarball would be lost.  Inflating itself is isal's, twice as fast as zlib.
"""

from __future__ import annotations

import zlib
from typing import IO, Any

from isal import isal_zlib

_CHUNK = 1 << 14
"""Compressed bytes inflated at a time: so many may be lost before damaged bytes, none before a cut."""

_EXTRA, _NAME, _COMMENT, _CHECK = 4, 8, 16, 2


class GzipStream:
    """Inflated bytes of a gzip file of any number of members.

    Parameters
    ----------
    raw : binary file
        Only ``read`` is used.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._pending = b""  # compressed
        self._data = b""  # inflated, from _at on
        self._at = 0
        self._inflate: Any = None
        self._check = self._size = 0
        self._started = self._ended = False
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """The next bytes: fewer than asked for only before the end or an error, which the next call meets.

        Raises
        ------
        EOFError
            If the stream is cut off here.
        zlib.error
            If its bytes or its checksum are damaged.
        """
        parts: list[bytes] = []
        while size:
            there = len(self._data) - self._at
            if not there:
                if self._ended or self._error is not None:
                    break
                self._fill()
                continue
            part = self._data[self._at : self._at + min(size, there)]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        if not parts and size and self._error is not None:
            raise self._error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fill(self) -> None:
        try:
            if self._inflate is None and not self._start_member():
                self._ended = True
                return
            chunk = self._pending or self._raw.read(_CHUNK)
            self._pending = b""
            if not chunk:
                raise EOFError("its gzip stream is cut off")
            self._data, self._at = self._inflate.decompress(chunk), 0
            self._check = isal_zlib.crc32(self._data, self._check)
            self._size += len(self._data)
            if self._inflate.eof:
                self._pending = self._inflate.unused_data
                self._inflate = None
                self._end_member()
        except isal_zlib.error as error:  # type: ignore[misc]
            self._error = zlib.error(str(error))
        except (EOFError, zlib.error) as error:
            self._error = error

    def _take(self, size: int) -> bytes:
        """Compressed bytes of a header or trailer."""
        while len(self._pending) < size:
            more = self._raw.read(_CHUNK)
            if not more:
                raise EOFError("its gzip stream is cut off")
            self._pending += more
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    def _start_member(self) -> bool:
        """Read a member's header (RFC 1952); False at the end of the file."""
        if not self._pending:
            self._pending = self._raw.read(_CHUNK)
        if self._started:
            while self._pending and not self._pending.strip(b"\0"):  # padding between members
                self._pending = self._raw.read(_CHUNK)
            self._pending = self._pending.lstrip(b"\0")
        if not self._pending:
            return False
        head = self._take(10)
        if head[:3] != b"\x1f\x8b\x08":
            raise zlib.error("no gzip data" if not self._started else "something behind the gzip data")
        if head[3] & _EXTRA:
            self._take(int.from_bytes(self._take(2), "little"))
        for flag in (_NAME, _COMMENT):
            while head[3] & flag and self._take(1) != b"\0":
                pass
        if head[3] & _CHECK:
            self._take(2)
        self._inflate = isal_zlib.decompressobj(wbits=-15)
        self._check = self._size = 0
        self._started = True
        return True

    def _end_member(self) -> None:
        trailer = self._take(8)
        size = self._size & 0xFFFFFFFF
        if trailer != self._check.to_bytes(4, "little") + size.to_bytes(4, "little"):
            raise zlib.error("the checksum of its gzip stream does not match")
