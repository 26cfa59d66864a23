"""Reads a page that segtune wrote: are its tags balanced, what does it load, what does it say?"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from segtune.viz.html import environment

VOID = ("meta", "link", "img", "input", "br")


class Page(HTMLParser):
    """A page.

    Attributes:
        sources: values of attributes that a browser would follow or load.
        words: texts between tags.
        ids: of the elements.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]
        self.ids += [value or "" for name, value in attributes if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def part(page: str, anchor: str) -> str:
    """The HTML of a section of a page."""
    (found,) = re.findall(rf'<section id="{anchor}".*?</section>', page, re.DOTALL)
    return found


def drawn(template: str, macro: str, *arguments: Any, **options: Any) -> str:
    """What a macro of a template makes."""
    return getattr(environment().get_template(template).module, macro)(*arguments, **options)
