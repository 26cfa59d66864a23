"""Jinja2 templates, and HTML pages made of them: each is one file that works from anywhere and loads nothing."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import segtune
from segtune.errors import UsageError, printable
from segtune.files import write_atomic
from segtune.labels.markdown import escape_markdown
from segtune.viz import numbers


@cache
def environment() -> Environment:
    """The templates of the package by their paths, such as "viz/templates/base.html".

    What is put into HTML is escaped; in Markdown, the filter `md` escapes what others wrote. A name that a template
    uses and nobody gives is an error.
    """
    made = Environment(
        loader=PackageLoader("segtune", ""),
        autoescape=lambda name: not (name or "").endswith(".md"),
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    made.globals["version"] = segtune.__version__
    made.filters |= {
        "by": numbers.by,
        "count": numbers.count,
        "interval": numbers.interval,
        "md": escape_markdown,
        "number": numbers.number,
        "percent": lambda share: _unbroken(numbers.percent(share)),
        "column_percent": lambda share: _unbroken(numbers.column_percent(share)),
        "px": "{:.1f}".format,
        "unbroken": _unbroken,
    }
    made.tests["known"] = numbers.is_known
    return made


def _unbroken(text: str) -> str:
    """The same, with percent signs on the line of their numbers."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def render(template: str, **values: Any) -> str:
    """The text of a template.

    Args:
        template: its path in the package, such as "report/templates/page.html".
        values: what the template names. A page that extends "viz/templates/base.html" needs `title` and `command`, the
            subcommand of segtune that writes it.
    """
    return environment().get_template(template).render(**values)


def mark(command: str) -> str:
    """The comment by which a page is known as one that `segtune COMMAND` wrote; `base.html` begins with it."""
    return f"<!-- written by segtune {command} -->"


def check_page(path: Path, command: str, option: str) -> None:
    """Raise UsageError where a page of `segtune COMMAND` would overwrite anything but an earlier one."""
    if path.exists() and (path.is_dir() or mark(command).encode() not in path.read_bytes()[:200]):
        raise UsageError(f"{option} {path}: it is there already and is no page of segtune {command}; name another file")


def write_page(path: Path, text: str) -> None:
    """Write a page so that a reader finds the old one or the new one."""
    write_atomic(path, text)


def data_url(picture: Image.Image, kind: str, **options: object) -> str:
    """A picture as a URL that holds it; `kind` is "jpeg" or "png", `options` are Pillow's for it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
