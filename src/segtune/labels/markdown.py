"""Markdown escaping: class names and other people's words in model and data cards."""

from __future__ import annotations

from segtune.errors import printable

_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "|`*"} | {ord("&"): "&amp;", ord("<"): "&lt;"}


def escape_markdown(text: object) -> str:
    """The text on one line, such that neither a table nor the words around it break.

    It reads the same where Markdown is shown: what would be taken for HTML, code, emphasis or the end of a cell becomes
    a character entity. Links stay links.
    """
    return printable(" ".join(str(text).split())).translate(_ENTITIES)
