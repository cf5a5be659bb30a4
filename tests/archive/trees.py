"""Comparing whole archives: every byte of every file, and everything that a reader sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from applecider_batch.archive.read import Archive
from applecider_batch.digest import digest128, row_digests
from tests.archive.packet_maker import contents


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): digest128(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def everything(archive: Archive | str | Path) -> dict[str, Any]:
    """What a reader gets of all objects, in a form that ``==`` compares."""
    opened = archive if isinstance(archive, Archive) else Archive.open(str(archive))
    shard = opened.read_shard(0, 1 << 64, stamps=True)
    assert shard.stamps is not None
    return {
        "objects": shard.objects,
        "alerts": contents(shard.alerts),
        "photometry": contents(shard.photometry),
        "spectra": contents(shard.spectra),
        "stamps": row_digests(shard.stamps),  # as Python values they would be millions of floats
    }
