"""File name patterns: which files they match, and what their wildcards stand for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segtune.errors import UsageError
from segtune.imageio.read import is_picture
from segtune.imageio.walk import walk_folders

PARTS = re.compile(r"\*\*/|\*|\?+|\{split\}|\{class\}|\.\*$")


class Match(NamedTuple):
    """A file, and what the pattern's wildcards, `{split}` and `{class}` stand for in its name."""

    path: Path
    id: str
    split: str | None
    kind: str | None


def is_pattern(text: str | None) -> bool:
    """Whether a text stands for many files."""
    return text is not None and PARTS.search(text) is not None


def match_files(root: Path, pattern: str, classes: Sequence[str] = ()) -> Iterator[Match]:
    """The pictures and arrays below `root` whose path matches, sorted; hidden files and folders are passed over.

    `*` stands for anything within a name, `**/` for any folders, `?` for one character and `???` for three, `.*` at the
    end for the suffix of any picture. The id of a file is what the wildcards stand for, "/" between them. A second
    `{split}` or `{class}` stands for the same word as the first.

    Args:
        classes: what `{class}` may stand for; anything within a name where there are none.

    Raises:
        UsageError: the pattern leaves the folder, or has other words in braces.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts or re.search(r"[{}]", PARTS.sub("", pattern)):
        raise UsageError(f"{pattern!r}: a pattern is a path below dataset.path with *, **/, ?, {{split}} or {{class}}")
    found = PARTS.search(pattern)
    fixed = (pattern[: found.start()] if found else pattern).rpartition("/")[0]
    expression = re.compile(_expression(pattern, classes))
    for parent, _, names in walk_folders(root / fixed):
        below = parent.relative_to(root).as_posix()
        for name in sorted(filter(is_picture, names)):
            path = name if below == "." else f"{below}/{name}"
            if match := expression.fullmatch(unicodedata.normalize("NFC", path)):
                named = match.groupdict()
                wild = [named[part].strip("/") for part in named if part.startswith("any")]
                identity = "/".join(filter(None, wild))
                yield Match(parent / name, identity, named.get("split"), named.get("kind"))


def _expression(pattern: str, classes: Sequence[str]) -> str:
    """The regular expression of a pattern."""
    parts, position = [], 0
    seen: set[str] = set()
    for number, found in enumerate(PARTS.finditer(pattern)):
        parts.append(re.escape(pattern[position : found.start()]))
        position = found.end()
        word = found[0]
        if word == ".*" and found.end() == len(pattern):
            parts.append(r"(?:\.nii\.gz|\.[^./]+)")
        elif word[0] == "{":
            name = {"{split}": "split", "{class}": "kind"}[word]
            choice = "|".join(map(re.escape, classes)) if name == "kind" and classes else "[^/]+?"
            parts.append(f"(?i:(?P={name}))" if name in seen else f"(?P<{name}>{choice})")
            seen.add(name)
        else:
            wild = {"**/": "(?:[^/]+/)*", "*": "[^/]*?"}.get(word, f"[^/]{{{len(word)}}}")
            parts.append(f"(?P<any{number}>{wild})")
    return "".join([*parts, re.escape(pattern[position:])])
