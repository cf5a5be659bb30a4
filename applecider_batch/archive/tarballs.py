"""Members of a tarball, one after the other, from a stream that cannot be rewound.

Like ``tarfile`` in stream mode, but what is damaged is never passed over in silence: a bad header, an early
end and a missing end marker all raise, after everything that stands before has been given.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512
_LONG_HEADER = 1 << 20


class TarError(Exception):
    """The tarball is damaged from here on; ``member`` and ``n_bytes`` say what was cut off, where known."""

    def __init__(
        self, reason: str, message: str, member: str | None = None, n_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.member = member
        self.n_bytes = n_bytes


class Readable(Protocol):
    """Anything to read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes; fewer than asked for only at the end or before an error."""
        ...


@dataclass
class Member:
    """A regular file of the tarball; its bytes have to be read before the next member is asked for."""

    name: str
    size: int
    _stream: _Stream
    _left: int

    def read(self, size: int = -1) -> bytes:
        """The next bytes of the file.

        Raises
        ------
        TarError
            If the tarball ends or is damaged within it.
        """
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted)
        self._left -= len(data)
        if len(data) < wanted:
            there = self.size - self._left
            ending = self._stream.ending
            message = f"The tarball {ending} within this member: {there} of {self.size} bytes are there."
            raise TarError("truncated", message, self.name, there)
        return data


class _Stream:
    """A stream that says why it ended instead of raising."""

    def __init__(self, raw: Readable) -> None:
        self._raw = raw
        self.error: Exception | None = None

    @property
    def ending(self) -> str:
        return "ends" if self.error is None else f"is damaged ({self.error})"

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size and self.error is None:
            try:
                part = self._raw.read(min(size, 1 << 24))
            except (EOFError, zlib.error) as error:
                self.error = error
                break
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_members(raw: Readable) -> Iterator[Member]:
    """Regular files of a tarball, in order.

    Parameters
    ----------
    raw : binary file
        The tarball, already inflated; only ``read`` is used.

    Raises
    ------
    TarError
        Where the tarball is damaged.
    """
    stream = _Stream(raw)
    long_name: str | None = None
    long_size: int | None = None
    last = "the beginning"
    while True:
        block = stream.read(BLOCK)
        if len(block) == BLOCK and not any(block):
            _drain(stream)
            return
        header = _parse(block, stream, last)
        name, size, kind = (
            long_name or header.name,
            header.size if long_size is None else long_size,
            header.kind,
        )
        if kind in ("L", "x", "g", "K"):
            text = _long_header(stream, header)
            if kind == "L":
                long_name = text.split(b"\0")[0].decode("utf-8", "replace")
            elif kind == "x":
                pax = _pax(text)
                long_name = pax.get("path", long_name)
                long_size = int(pax["size"]) if pax.get("size", "").isdigit() else long_size
            continue
        long_name = long_size = None
        if kind == "0":
            member = Member(name, size, stream, size)
            yield member
            member.read()
        else:
            stream.read(size)
        stream.read(-size % BLOCK)
        last = f"the member '{name}'"


@dataclass
class _Header:
    name: str
    size: int
    kind: str


def _parse(block: bytes, stream: _Stream, last: str) -> _Header:
    if not block and stream.error is None and last != "the beginning":
        raise TarError(
            "truncated", f"The tarball has no end marker: it stops behind {last}, and may lack members."
        )
    if len(block) < BLOCK:
        what = "The file is empty" if not block and stream.error is None else f"The tarball {stream.ending}"
        raise TarError(
            "truncated", f"{what} behind {last}." if last != "the beginning" or block else f"{what}."
        )
    unsigned = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    try:
        if _number(block[148:156]) != unsigned:
            raise ValueError("checksum")
        size = _number(block[124:136])
        if size < 0:
            raise ValueError("size")
    except ValueError:
        raise TarError(
            "undecodable", f"The tarball holds something that is no tar header behind {last}."
        ) from None
    name = block[:100].split(b"\0")[0].decode("utf-8", "replace")
    prefix = block[345:500].split(b"\0")[0].decode("utf-8", "replace") if block[257:263] == b"ustar\0" else ""
    kind = chr(block[156]) if block[156] else "0"
    if kind == "0" and name.endswith("/"):
        kind = "5"
    return _Header(f"{prefix}/{name}" if prefix else name, size, "0" if kind == "7" else kind)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.split(b"\0")[0].strip()
    return int(text, 8) if text else 0


def _long_header(stream: _Stream, header: _Header) -> bytes:
    if header.size > _LONG_HEADER:
        raise TarError("undecodable", f"The tarball holds a name of {header.size} bytes.")
    text = stream.read(header.size)
    stream.read(-header.size % BLOCK)
    return text


def _pax(text: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    while text:
        length, _, _ = text.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        text = text[int(length) :]
    return found


def _drain(stream: _Stream) -> None:
    """Read to the end, so that the checksum of the whole stream is seen."""
    while stream.read(1 << 20):
        pass
    if stream.error is not None:
        raise TarError("undecodable", f"The tarball {stream.ending} behind its last member.")
