"""``ingest --photometry FILE`` and ``--spectra FILE``: files to rows of the contract.

A file or a folder of files becomes one `TableBatch`. Every row of a light-curve table, and every spectrum, is
either in ``table`` or explained in ``rejected``. Names of columns: `light_curve_tables`, `spectrum_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from applecider_batch.archive import light_curve_tables, spectrum_files
from applecider_batch.archive.batches import TableBatch
from applecider_batch.archive.table_files import read_columns
from applecider_batch.archive.table_rejects import Rejects
from applecider_batch.digest import digest128, json_digest
from applecider_batch.errors import UserError
from applecider_batch.schema import load_table
from applecider_batch.storage import Store, store_of

__all__ = ["TableBatch", "open_table"]


def open_table(
    kind: Literal["photometry", "spectra"], url: str | Path, storage_options: Mapping[str, Any] | None = None
) -> TableBatch:
    """Read a file, or every file of a folder, of light curves or spectra.

    Parameters
    ----------
    kind : {"photometry", "spectra"}
        What the file holds.
    url : str or Path
        A file or a folder, local or any fsspec URL. Photometry: Parquet, CSV, ECSV, ASCII, FITS table,
        ALeRCE's ``.dat``. Spectra: Parquet with a list per spectrum, text, ECSV, FITS table or 1-D image.
    storage_options : mapping, optional
        Given to fsspec.

    Returns
    -------
    TableBatch
        ``table`` in schema ``photometry`` or ``spectra``, ``rejected`` in schema ``quarantine``. The
        source_id is the digest of the file's bytes (of a folder: of its files' digests, not names).

    Raises
    ------
    UserError
        If the file is absent, is no table at all, or lacks a column without which no row can be used.
    """
    if kind not in ("photometry", "spectra"):
        raise UserError(f"A table holds 'photometry' or 'spectra'; given '{kind}'.")
    files, name = _read(str(url), storage_options)
    digests = [digest128(data) for _, data in files]
    alone = len(files) == 1
    source_id = digests[0] if alone else json_digest(["folder", kind, sorted(digests)])
    rejects = Rejects(source_id, name, "photometry" if kind == "photometry" else "spectrum")
    # Equal content in any order of names gives equal rows, so a renamed folder is the same source.
    ordered = sorted(zip(digests, files, strict=True), key=lambda item: (item[0], item[1][0]))
    tables = [_read_one(kind, file_name, data, rejects, alone) for _, (file_name, data) in ordered]
    table = pa.concat_tables(tables) if tables else load_table(kind).empty()
    return TableBatch(kind, table.combine_chunks(), source_id, name, rejects.table())


def _read_one(kind: str, file_name: str, data: bytes, rejects: Rejects, alone: bool) -> pa.Table:
    if kind == "spectra":
        return spectrum_files.spectra_of(data, file_name, rejects)
    try:
        raw = read_columns(data, file_name, light_curve_tables.is_known)
        rows = light_curve_tables.photometry_of(raw, file_name, rejects)
    except UserError as error:
        if alone:
            raise
        rejects.add(file_name, "undecodable", error.message, n_bytes=len(data))
        return load_table("photometry").empty()
    return rows


def _read(url: str, storage_options: Mapping[str, Any] | None) -> tuple[list[tuple[str, bytes]], str]:
    """Files as (name, bytes) in order of their names, and the name of it all."""
    store = Store(url, storage_options)
    name = store.url.rsplit("/", 1)[-1]
    if not store.exists():
        raise UserError(f"There is no file or folder '{url}'.", hint="Give a file or a folder of files.")
    if store.fs.isfile(store.path()):
        parent, rel = store_of(url, storage_options)
        return [(rel, parent.read_bytes(rel))], name
    rels = [rel for rel in store.walk() if not rel.rsplit("/", 1)[-1].startswith((".", "_"))]
    if not rels:
        raise UserError(f"The folder '{url}' holds no files.")
    return [(rel, store.read_bytes(rel)) for rel in rels], name
