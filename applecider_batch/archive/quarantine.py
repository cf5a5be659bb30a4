"""What cannot be read is set aside: rows of the quarantine table, with all that is known of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from applecider_batch.digest import digest128
from applecider_batch.schema import load_table

_CANDID_IN_NAME = re.compile(r"(?<!\d)\d{15,19}(?!\d)")
_OBJECT_IN_BYTES = re.compile(rb"ZTF[0-9]{2}[a-z]{7}")


@dataclass(frozen=True)
class SourceInfo:
    """What every row says of where it came from."""

    source_id: str
    name: str


@dataclass
class Quarantine:
    """Rows of the quarantine table being collected."""

    source: SourceInfo
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        member: str | None,
        reason: str,
        message: str,
        data: bytes | None,
        *,
        n_bytes: int | None = None,
        candid: int | None = None,
        object_id: str | None = None,
        digest: str | None = None,
    ) -> None:
        """Set something aside; candid and objectId are looked for in the member's name and the bytes."""
        if digest is None:
            content = data if data else f"{self.source.source_id}|{member}|{reason}".encode()
            digest = digest128(content)
        self.rows.append(
            {
                "source_id": self.source.source_id,
                "source": self.source.name,
                "member": member,
                "candid": candid_of_name(member) if candid is None else candid,
                "objectId": _object_in(data) if object_id is None else object_id,
                "kind": "packet",
                "reason": reason,
                "message": message,
                "n_bytes": len(data) if n_bytes is None and data is not None else n_bytes,
                "digest": digest,
            }
        )

    def table(self) -> pa.Table:
        """Schema ``quarantine``."""
        return pa.Table.from_pylist(self.rows, schema=load_table("quarantine").arrow)


def candid_of_name(member: str | None) -> int | None:
    """candid that a file is named after, if it is."""
    found = _CANDID_IN_NAME.search(PurePosixPath(member or "").name)
    value = int(found.group()) if found else 0
    return value if 0 < value < 1 << 63 else None


def _object_in(data: bytes | None) -> str | None:
    found = _OBJECT_IN_BYTES.search(data) if data else None
    return found.group().decode() if found else None
