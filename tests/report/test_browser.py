"""The page in headless Chromium: sort, filter, keys, labels and their file, at both widths."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from applecider_batch.catalog.candidate_files import read_candidates
from applecider_batch.catalog.candidates import FindOptions
from applecider_batch.catalog.feedback import label_candidates
from applecider_batch.report.page import write_report
from benchmarks.browser import Browser

ROWS = '[...document.querySelectorAll("#index tbody tr")].filter((r) => !r.hidden)'
CARDS = '[...document.querySelectorAll(".card")].filter((c) => !c.hidden)'


def _data(browser: Browser, key: str) -> list[str]:
    found: list[str] = browser.run(f"{ROWS}.map((r) => r.dataset.{key} ?? '')")
    return found


def _choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}';"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_opens_without_a_request_or_a_violation(page: Path, browser: Browser) -> None:
    browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="var bad = 0; addEventListener('securitypolicyviolation', () => { bad += 1; });",
    )
    browser.size(1400)
    browser.open(page)
    assert browser.requests() == [page.as_uri()]
    assert browser.run("bad") == 0
    loaded = "Promise.all([...document.images].map((i) => { i.loading = 'eager'; return i.decode(); }))"
    browser.run(f"{loaded}.then(() => 1)")
    sizes = browser.run("[...document.images].map((i) => [i.naturalWidth, i.naturalHeight])")
    assert len(sizes) > 10
    assert all(size == [61, 63] for size in sizes)


def test_sort(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.click("[data-key=prob]")
    probabilities = [float(p) for p in _data(browser, "prob")]
    assert len(probabilities) >= 8
    assert probabilities == sorted(probabilities, reverse=True)
    assert browser.run(f"{CARDS}.map((c) => c.id)") == _data(browser, "id")
    assert browser.run("document.querySelector('[data-key=prob]').closest('th').ariaSort") == "descending"
    browser.click("[data-key=jsd]")
    browser.click("[data-key=jsd]")
    values = _data(browser, "jsd")
    numbers = [float(v) for v in values if v]
    assert numbers == sorted(numbers)
    assert values == [v for v in values if v] + [""] * values.count("")  # null last
    browser.click("[data-key=name]")
    assert _data(browser, "name") == sorted(_data(browser, "name"))


def test_filters(page: Path, browser: Browser) -> None:
    browser.open(page)
    rows = len(_data(browser, "id"))
    browser.click("[name=class][value=AGN]")
    assert "AGN" not in _data(browser, "class")
    left = len(_data(browser, "id"))
    assert 0 < left < rows
    assert int(browser.run("document.getElementById('shown').value")) == left
    assert browser.run(f"{CARDS}.map((c) => c.id)") == _data(browser, "id")
    browser.click("[name=class][value=AGN]")
    _choose(browser, "least", "0.7")
    assert all(float(p) >= 0.7 for p in _data(browser, "prob"))
    _choose(browser, "least", "0")
    name = _data(browser, "name")[2]
    _choose(browser, "find", name.upper())
    assert _data(browser, "name") == [name]
    _choose(browser, "find", "")
    assert len(_data(browser, "id")) == rows


def test_keys_go_from_card_to_card(page: Path, browser: Browser) -> None:
    browser.open(page)
    ids = _data(browser, "id")
    focus = "document.activeElement.id"
    for key, at in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        browser.press(key)
        assert browser.run(focus) == ids[at]
    browser.run(f"document.getElementById('{ids[3]}').focus()")
    browser.press("j")
    assert browser.run(focus) == ids[4]  # on from the card that was clicked
    browser.run("document.getElementById('find').focus()")
    browser.press("j")
    assert browser.run("document.getElementById('find').value") == "j"


def test_labels_stay_and_rank_the_candidates_again(
    listed: tuple[str, Path, pa.Table], browser: Browser, tmp_path: Path
) -> None:
    catalogue, file, rows = listed
    page = tmp_path / "list.html"
    assert write_report(catalogue, None, page, candidates=str(file))["candidates"] == rows.num_rows >= 4
    browser.size(1400)
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.reload()
    columns = (rows.column(c).to_pylist() for c in ("objectId", "episode"))
    keys = [f"{name}-{n}" for name, n in zip(*columns, strict=True)]
    assert _data(browser, "id") == keys  # in the order of the list
    browser.click(f'[id="{keys[0]}"] [data-label=yes]')
    browser.run(f"document.getElementById('{keys[1]}').focus()")
    browser.press("n")
    browser.click(f'[id="{keys[2]}"] [data-label=unsure]')
    for _ in range(2):  # given and taken back
        browser.click(f'[id="{keys[3]}"] [data-label=no]')
    given = ["yes", "no", "unsure", ""]
    assert _data(browser, "label")[:4] == given
    browser.reload()
    assert _data(browser, "label")[:4] == given
    assert browser.run("document.querySelectorAll('[aria-pressed=true]').length") == 3
    assert browser.run("document.getElementById('labelled').value") == "3"
    _choose(browser, "given", "no")
    assert _data(browser, "id") == [keys[1]]
    browser.click("#save")
    labels = _downloaded(browser, "labels.csv")
    again = tmp_path / "again.parquet"
    counted = label_candidates(catalogue, str(labels), str(again), FindOptions(include_unchecked=True))
    assert (counted["labels"], counted["labels_unsure"], counted["labels_unmatched"]) == (3, 1, 0)
    said = {(r["objectId"], r["episode"]): r["label"] for r in read_candidates(str(again))[0].to_pylist()}
    assert {f"{name}-{episode}": label for (name, episode), label in said.items() if label} == {
        keys[0]: "yes", keys[1]: "no",
    }  # fmt: skip
    _labels_of_the_file_are_there(
        browser, catalogue, again, tmp_path / "again.html", {keys[0]: "yes", keys[1]: "no"}
    )


def _labels_of_the_file_are_there(
    browser: Browser, catalogue: str, file: Path, page: Path, expected: dict[str, str]
) -> None:
    """In another browser, too, the page of a list that was ranked by labels begins with them."""
    write_report(catalogue, None, page, candidates=str(file))
    browser.run("localStorage.clear()")
    browser.open(page)
    labels: dict[str, Any] = dict(zip(_data(browser, "id"), _data(browser, "label"), strict=True))
    assert {key: label for key, label in labels.items() if label} == expected
    assert browser.run("document.getElementById('labelled').value") == "2"


def _downloaded(browser: Browser, name: str) -> Path:
    path = browser.downloads / name
    for _ in range(300):
        if path.exists() and path.stat().st_size:
            return path
        time.sleep(0.05)
    raise AssertionError(f"{name} was not downloaded; there is {list(browser.downloads.iterdir())}")


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out(page: Path, browser: Browser, width: int) -> None:
    browser.size(width, mobile=width < 500)
    browser.open(page)
    root = "document.documentElement"
    browser.run(f"{CARDS}.forEach((c) => {{ c.style.contentVisibility = 'visible'; }})")
    assert browser.run(f"{root}.clientWidth") == width
    assert browser.run(f"{root}.scrollWidth") <= width
    wide = browser.run(
        "[...document.querySelectorAll('.card, .panel, .tools, .listing, .card .probs, .card .facts')]"
        f".filter((e) => e.getBoundingClientRect().right > {width} + 0.5).length"
    )
    assert wide == 0
    curve = browser.run("document.querySelector('.card .lc').getBoundingClientRect().width")
    assert curve > (300 if width == 390 else 450)
