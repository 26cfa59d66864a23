"""The frame of the pages that segtune writes: one HTML file that works from anywhere and loads nothing."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

import segtune
from segtune.errors import UsageError
from segtune.files import write_atomic
from segtune.labels.mask_values import Color

# Whatever slips into a page, a browser asks nobody for anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def mark(command: str) -> str:
    """The comment by which a page is known as one that `segtune COMMAND` wrote."""
    return f"<!-- written by segtune {command} -->"


def check_page(path: Path, command: str, option: str) -> None:
    """Raise UsageError where a page of `segtune COMMAND` would overwrite anything but an earlier one."""
    if path.exists() and (path.is_dir() or mark(command).encode() not in path.read_bytes()[:200]):
        raise UsageError(f"{option} {path}: it is there already and is no page of segtune {command}; name another file")


def write_page(path: Path, text: str) -> None:
    """Write a page so that a reader finds the old one or the new one."""
    write_atomic(path, text)


def document(title: str, body: str, *, command: str, style: str = "", script: str = "") -> str:
    """A whole page, light or dark as the reader's system is.

    Args:
        body: HTML of the content.
        command: that writes it, see `mark`.
        style, script: CSS beside that of `page.css`, and JavaScript that runs when the content is there.
    """
    return (
        f'<!DOCTYPE html>\n{mark(command)}\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{asset('viz/page.css')}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>Written by segtune {segtune.__version__}.</footer>\n</main>\n"
        f"{f'<script>{chr(10)}{script}</script>{chr(10)}' if script else ''}</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """The text of a file of the package."""
    return (files("segtune") / name).read_text(encoding="utf-8")


def data_url(picture: Image.Image, kind: str, **options: object) -> str:
    """A picture as a URL that holds it; `kind` is "jpeg" or "png", `options` are Pillow's for it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def section(title: str, content: str, anchor: str) -> str:
    """A part of a page under a heading, which `#anchor` leads to."""
    heading = f'<h2 id="{anchor}-title">{title}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}{content}</section>'


def tile(number: str, text: str, note: str = "", kind: str = "") -> str:
    """A number of the headline with what it is, and something smaller beside the number; `kind` is a class of it."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<div class="{f"tile {kind}".strip()}"><b>{escape(number)}{small}</b><span>{escape(text)}</span></div>'


def swatch(color: Color | str) -> str:
    """A square in a class's colour, for a legend or beside its name; a string is as CSS writes it."""
    return f'<i class="swatch" style="background:{color if isinstance(color, str) else f"rgb{tuple(color)}"}"></i>'


def bar(share: float, kind: str = "", inside: str = "") -> str:
    """A number from 0 to 1 as a bar, beside which it is written; `kind` is a class of it, `inside` lies upon it."""
    classes = f"bar {kind}".strip()
    return f'<span class="{classes}" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i>{inside}</span>'


def scrolled(content: str, name: str) -> str:
    """Something wide, which scrolls by itself on a narrow screen; `name` is for those who do not see it."""
    return f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{content}</div>'
