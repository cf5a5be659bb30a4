"""Rows of light-curve tables and spectra that cannot be used, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from applecider_batch.digest import digest128
from applecider_batch.schema import load_table


@dataclass
class Rejects:
    """Quarantine rows of one file being collected; ``kind`` is ``photometry`` or ``spectrum``."""

    source_id: str
    source: str
    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        member: str,
        reason: str,
        message: str,
        *,
        object_id: str | None = None,
        n_bytes: int | None = None,
    ) -> None:
        """Set one row (or spectrum, or member file) aside; reasons are those of the quarantine schema."""
        self.rows.append(
            {
                "source_id": self.source_id,
                "source": self.source,
                "member": member,
                "candid": None,
                "objectId": object_id,
                "kind": self.kind,
                "reason": reason,
                "message": message,
                "n_bytes": n_bytes,
                "digest": digest128(f"{self.source_id}|{member}|{reason}".encode()),
            }
        )

    def table(self) -> pa.Table:
        """The rows in schema ``quarantine``."""
        schema = load_table("quarantine")
        return pa.Table.from_pylist(self.rows, schema=schema.arrow) if self.rows else schema.empty()
