"""Reads a report page as a browser does, without one."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class PageReader(HTMLParser):
    """Open tags must close in order; notes what is fetched and the text."""

    VOID = frozenset(("meta", "link", "input", "img", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(str(named["id"]))
        for key in ("src", "srcset", "data", "poster", "action"):
            if named.get(key):
                self.fetched.append(str(named[key]))
        if tag == "link":
            self.fetched.append(str(named["href"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open[-1:]):
            self.text.append(data)


def read_page(page: Path) -> tuple[PageReader, str]:
    """The page's tags, which must close in order, and its text with single spaces."""
    reader = PageReader()
    reader.feed(page.read_text())
    reader.close()
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())
