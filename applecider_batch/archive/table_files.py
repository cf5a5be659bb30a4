"""A light-curve or spectrum file of any format as columns: Parquet, CSV, ECSV, ASCII, FITS table.

Nothing is interpreted here beyond numbers of rows and names of columns. Text columns stay text until someone
who knows what they should be asks for `numbers`, so that one bad value costs one row and not the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from applecider_batch.errors import UserError

SENTINELS = (-999.0, -99999.0)
MISSING_WORDS = frozenset(["", "nan", "null", "none", "--", "-", "n/a", "na", "<na>"])
_COMMENTS = ("#", "%", "!")
_UNIT_IN_NAME = re.compile(r"\s*[(\[].*[)\]]\s*$")
_SECTION = re.compile(r"FILTER\s+(\S+)", re.IGNORECASE)
_HEADER_ENTRY = re.compile(r"([A-Za-z][\w \-]*?)\s*[:=]\s*(\S.*)")


@dataclass
class RawTable:
    """Columns of a file, as they are.

    Attributes
    ----------
    table : Table
        The columns; text files give strings only.
    labels : list of str
        Per row, what to call it in a message, such as ``line 7``.
    header : dict
        Header entries, names in lower case: comments ``# name: value`` and FITS cards.
    units : dict
        Unit per column where the file gives one.
    rejected : list of (label, message)
        Rows that have no columns at all (too few fields).
    """

    table: pa.Table
    labels: list[str]
    header: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def find(self, aliases: Sequence[str]) -> str | None:
        """Name of the first column among ``aliases``, whatever its case."""
        names = {bare_name(name): name for name in reversed(self.table.column_names)}
        return next((names[alias.lower()] for alias in aliases if alias.lower() in names), None)

    def texts(self, name: str) -> list[str | None]:
        """A column as stripped text, null for what means missing."""
        column = self.table.column(name)
        coded = column.combine_chunks()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        if not pa.types.is_dictionary(coded.type):
            coded = coded.dictionary_encode()  # few distinct values: names, bands, flags
        words = [_word(value) for value in coded.dictionary.to_pylist()] + [None]
        return [words[i] for i in pc.fill_null(coded.indices, len(words) - 1).to_pylist()]


def _word(value: object) -> str | None:
    if value is None:
        return None
    word = f"{value:g}" if isinstance(value, float) else str(value).strip()  # 1.0 for a filter number
    return None if word.lower() in MISSING_WORDS else word


def bare_name(name: str) -> str:
    """A column's name in lower case without a unit in brackets: ``Wavelength (A)`` is ``wavelength``."""
    return _UNIT_IN_NAME.sub("", name).strip().lower()


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column as numbers.

    Returns
    -------
    values : ndarray, float64, shape (n,)
        NaN where null, missing or a sentinel (-999, -99999).
    bad : ndarray, bool, shape (n,)
        True where something stands that is no number.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        coded = column.combine_chunks().dictionary_encode()
        coded = pa.chunked_array([coded]) if isinstance(coded, pa.DictionaryArray) else coded
        chunks = [_parse(chunk) for chunk in coded.chunks]
        values = np.concatenate([v for v, _ in chunks]) if chunks else np.empty(0)
        bad = np.concatenate([b for _, b in chunks]) if chunks else np.empty(0, bool)
    else:
        try:
            values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return np.full(len(column), np.nan), column.is_valid().to_numpy()
        bad = np.zeros(len(values), bool)
    values = np.where(np.isin(values, SENTINELS), np.nan, values)
    return values, bad


def _parse(coded: pa.DictionaryArray) -> tuple[np.ndarray, np.ndarray]:
    words = [w.strip() for w in coded.dictionary.to_pylist()]
    values, bad = np.full(len(words) + 1, np.nan), np.zeros(len(words) + 1, bool)
    for i, word in enumerate(words):
        if word.lower() not in MISSING_WORDS:
            try:
                values[i] = float(word)
            except ValueError:
                bad[i] = True
    index = pc.fill_null(coded.indices, len(words)).to_numpy(zero_copy_only=False)
    return values[index], bad[index]


def read_columns(data: bytes, name: str, known: Callable[[str], bool]) -> RawTable:
    """Read a file into columns; its format follows from its first bytes.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        Its name, for messages.
    known : callable
        Whether a column of that name means something: how a header line is told from a comment.

    Raises
    ------
    UserError
        If the file cannot be read as a table.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"The file '{name}' is a damaged gzip file: {error}.") from error
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"The Parquet file '{name}' cannot be read: {error}.") from error
        return RawTable(table, _count_rows(table.num_rows))
    if data[:9] == b"SIMPLE  =":
        return _read_fits_table(data, name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The file '{name}' is neither text nor Parquet nor FITS "
            f"(byte {error.start} is {data[error.start]:#x})."
        ) from error
    if "\0" in text:
        raise UserError(f"The file '{name}' is neither text nor Parquet nor FITS.")
    return _read_ecsv(text, name) if text.startswith("# %ECSV") else _read_text(text, name, known)


def _count_rows(n: int) -> list[str]:
    return [f"row {i}" for i in range(1, n + 1)]


def _read_ecsv(text: str, name: str) -> RawTable:
    from astropy.table import Table

    try:
        return _from_astropy(Table.read(text, format="ascii.ecsv"))
    except Exception as error:  # astropy's readers raise whatever their parsers raise
        raise UserError(f"The ECSV file '{name}' cannot be read: {error}.") from error


def _read_fits_table(data: bytes, name: str) -> RawTable:
    from astropy.io import fits
    from astropy.table import Table

    try:
        with fits.open(io.BytesIO(data)) as hdus:
            header = {k.lower(): str(v) for k, v in hdus[0].header.items() if k}
            for hdu in hdus:
                if isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                    raw = _from_astropy(Table.read(hdu))
                    own = {k.lower(): str(v) for k, v in hdu.header.items() if k}
                    raw.header = header | own | raw.header
                    return raw
    except (
        Exception
    ) as error:  # a damaged file makes astropy raise OSError, ValueError, TypeError, VerifyError …
        raise UserError(f"The FITS file '{name}' cannot be read: {error}.") from error
    raise UserError(f"The FITS file '{name}' has no table.")


def _from_astropy(table: object) -> RawTable:
    columns, units = {}, {}
    for name in table.colnames:  # type: ignore[attr-defined]
        column = table[name]  # type: ignore[index]
        mask = np.asarray(getattr(column, "mask", False))
        values = np.asarray(column.filled() if hasattr(column, "filled") else column)
        values = values.astype(values.dtype.newbyteorder("="))
        if values.dtype.kind == "S":
            values = np.char.decode(values, "latin-1")
        if values.ndim == 1:
            null = np.broadcast_to(mask, values.shape)
            columns[name] = pa.array(values.tolist() if values.dtype.kind in "UO" else values, mask=null)
        else:
            columns[name] = pa.array(values.reshape(len(values), -1).tolist())
        if getattr(column, "unit", None) is not None:
            units[name] = str(column.unit)
    header = {str(k).lower(): str(v) for k, v in table.meta.items()}  # type: ignore[attr-defined]
    made = pa.table(columns)
    return RawTable(made, _count_rows(made.num_rows), header, units)


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [word.strip() for word in next(csv.reader([line], delimiter=delimiter), [])]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word.lower() in MISSING_WORDS
    return True


def _read_text(text: str, name: str, known: Callable[[str], bool]) -> RawTable:
    """CSV, tab- or blank-separated text, with its header in a line or a comment, or without any.

    ``# FILTER g`` (ALeRCE's exports) opens a section and becomes the column ``band`` of the rows after it.
    """
    header: dict[str, str] = {}
    names: list[str] | None = None
    commented: list[list[str]] = []
    rows: list[list[str]] = []
    labels: list[str] = []
    rejected: list[tuple[str, str]] = []
    section: str | None = None
    sections: list[str | None] = []
    delimiter: str | None = None
    first = True
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith(_COMMENTS):
            comment = stripped.lstrip("".join(_COMMENTS)).strip()
            if match := _SECTION.fullmatch(comment):
                section = match[1]
            elif match := _HEADER_ENTRY.fullmatch(comment):
                header.setdefault(match[1].strip().lower(), match[2].strip())
            elif comment:
                commented.append(comment.replace(",", " ").split())
            continue
        if first:
            delimiter = next((d for d in ",;|\t" if d in stripped), None)
            if delimiter == "\t" and line.startswith("\t"):
                delimiter = None
        fields = _fields(stripped if delimiter is None else line, delimiter)
        if first:
            first = False
            if not all(_is_number(word) for word in fields) and any(known(word) for word in fields):
                names = fields
                continue
            fitting = [words for words in commented if len(words) == len(fields) and any(map(known, words))]
            names = fitting[-1] if fitting else [f"col{i}" for i in range(1, len(fields) + 1)]
        assert names is not None
        if len(fields) != len(names):
            rejected.append((f"line {number}", f"{len(fields)} fields where {len(names)} were expected"))
            continue
        rows.append(fields)
        labels.append(f"line {number}")
        sections.append(section)
    if names is None:
        raise UserError(f"The file '{name}' holds no rows.")
    if len({n.lower() for n in names}) != len(names):
        raise UserError(f"The file '{name}' names a column twice: {names}.")
    columns = {n: pa.array([row[i] for row in rows], pa.string()) for i, n in enumerate(names)}
    if section is not None and "band" not in columns:
        columns["band"] = pa.array(sections, pa.string())
    return RawTable(pa.table(columns), labels, header, rejected=rejected)
