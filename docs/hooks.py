"""Pages that are made while the site is built: the reference of the commands."""

from __future__ import annotations

from typing import Any

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the command line's own help where its mark stands."""
    if MARK not in markdown:
        return markdown
    from applecider_batch.cli.reference import page

    return markdown.replace(MARK, page())
