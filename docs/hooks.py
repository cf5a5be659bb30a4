"""Pages that are made while the site is built: the reference of the commands, the packaged set's card."""

from __future__ import annotations

from typing import Any

MARK = "<!-- commands -->"
CARD = "<!-- card of compact -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the command line's own help and the card of the packaged model set where their marks stand."""
    if CARD in markdown:
        from applecider_batch.models.manifest import PACKAGED

        card = (PACKAGED / "compact" / "README.md").read_text(encoding="utf-8")
        return markdown.replace(CARD, card)
    if MARK not in markdown:
        return markdown
    from applecider_batch.cli.reference import page

    return markdown.replace(MARK, page())
