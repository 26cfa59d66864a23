"""The notes of a release: python scripts/release_notes.py v0.1.0

Prints the section of CHANGELOG.md for a tag. Fails where the tag is not the version in src/segtune/__init__.py and
CITATION.cff, or where CHANGELOG.md gives that version no section with a date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"src/segtune/__init__.py": r'^__version__ = "(.+)"$', "CITATION.cff": r"^version: (.+)$"}


def release_notes(tag: str, root: Path = ROOT) -> str:
    """What CHANGELOG.md says of the version that is tagged.

    Raises:
        ValueError: a file disagrees with the tag, or the section is missing, undated or empty.
    """
    for name, pattern in VERSIONS.items():
        (version,) = re.findall(pattern, (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        if tag != f"v{version}":
            raise ValueError(f"the tag is {tag}, but {name} says {version}: a release is tagged v{version}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(tag[1:])}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    section = re.search(heading, changelog, flags=re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md has no section '## [{tag[1:]}] - YYYY-MM-DD' with the day and the changes")
    return section[1].strip()


if __name__ == "__main__":
    try:
        print(release_notes(*sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"error: {error}")
