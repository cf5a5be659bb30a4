"""What a light-curve table or a file of spectra hands to ``ingest``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa


@dataclass(frozen=True)
class TableBatch:
    """One file of photometry or spectra, read.

    Attributes
    ----------
    kind : str
        ``photometry`` or ``spectra``.
    table : Table
        Schema ``photometry`` (``origin`` 3, ``known_jd`` its own jd) or ``spectra``; ``hash64`` may be
        absent, and ``objectId`` of a spectrum is what the file says, even where it is no ZTF name.
    source_id : str
        Content digest of the file.
    name : str
        Its name, for people.
    rejected : Table or None
        Schema ``quarantine``: rows or files that could not be used.
    """

    kind: Literal["photometry", "spectra"]
    table: pa.Table
    source_id: str
    name: str
    rejected: pa.Table | None = None
