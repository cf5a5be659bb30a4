"""From a source's type string to the classes."""

from __future__ import annotations

import pytest

from applecider_batch import taxonomy


@pytest.mark.parametrize(
    ("raw", "five", "ten"),
    [
        ("SN Ia", "SN I", "SN Ia"),
        ("SN Ia-91T", "SN I", "SN Ia"),
        ("Ia", "SN I", "SN Ia"),
        ("SN Ib", "SN I", "SN Ib"),
        ("SN Ic-BL", "SN I", "SN Ic"),
        ("SN Ib/c", "SN I", None),
        ("SN I", "SN I", None),
        ("SN II", "SN II", "SN II"),
        ("II-pec", "SN II", "SN II"),
        ("SN IIP", "SN II", "SN IIP"),
        ("SN IIn", "SN II", "SN IIn"),
        ("SN IIb", "SN II", "SN IIb"),
        ("SN IIL", "SN II", "SN II"),
        ("CV", "CV", "CV"),
        ("nova", "CV", "CV"),
        ("QSO", "AGN", "AGN"),
        ("Seyfert 1", "AGN", "AGN"),
        ("TDE-H-He", "TDE", "TDE"),
        ("SLSN-I", "OTHER", "OTHER"),
        ("SLSN-II", "OTHER", "OTHER"),
        ("SN Ibn", "OTHER", "OTHER"),
        ("LBV", "OTHER", "OTHER"),
        ("varstar", "OTHER", "OTHER"),
        ("", None, None),
        ("-", None, None),
        (None, None, None),
    ],
)
def test_types(raw: str | None, five: str | None, ten: str | None) -> None:
    assert taxonomy.to_class5(raw) == five
    assert taxonomy.to_class10(raw) == ten


def test_against_the_labels_of_the_real_data(shared_data: object) -> None:
    """At least 99 % of the real labels' own mapping is ours; the rest are strings that say less."""
    import polars as pl

    labels = pl.read_parquet(shared_data / "labels" / "labels.parquet")  # type: ignore[operator]
    rows = labels.select("type_raw", "class5").drop_nulls()
    ours = [taxonomy.to_class5(raw) for raw in rows["type_raw"]]
    agree = sum(a == b for a, b in zip(ours, rows["class5"], strict=True))
    wrong = {(r, c, o) for r, c, o in zip(rows["type_raw"], rows["class5"], ours, strict=True) if c != o}
    assert agree / len(rows) > 0.99, wrong
