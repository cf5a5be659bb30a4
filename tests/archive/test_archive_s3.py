from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from applecider_batch.archive.compact import compact
from applecider_batch.archive.gc import gc
from applecider_batch.archive.ingest import ingest
from applecider_batch.archive.objects import objects_table
from applecider_batch.archive.read import Archive
from applecider_batch.archive.snapshot import ArchiveError
from applecider_batch.archive.verify import verify
from tests.archive.packet_maker import Source, night_of
from tests.archive.trees import everything


def test_an_archive_on_s3_is_that_of_a_local_folder(
    tmp_path: Path, s3_url: str, s3_options: dict[str, Any]
) -> None:
    url, local = f"{s3_url}/archive", str(tmp_path)
    with pytest.raises(ArchiveError, match="is not an archive: it does not exist"):
        Archive.open(url, s3_options)
    for night in range(2):
        source = Source(f"s{night}", night_of(night, range(80)))
        remote = ingest([source], url, storage_options=s3_options)
        assert remote == ingest([source], local)
    archive = Archive.open(url, s3_options)
    assert everything(archive) == everything(local)
    candids = everything(local)["alerts"]
    assert archive.read_stamps(0, 1 << 64, [row[3] for row in candids[:3]]).num_rows == 3
    assert objects_table(archive).equals(objects_table(Archive.open(local)))
    assert not ingest([source], url, storage_options=s3_options)["changed"]
    one, other = compact(url, full=True, storage_options=s3_options), compact(local, full=True)
    assert one == other
    one, other = gc(url, storage_options=s3_options), gc(local)
    assert one == other
    assert verify(url, deep=True, storage_options=s3_options) == verify(local, deep=True)
    assert everything(Archive.open(url, s3_options)) == everything(local)
