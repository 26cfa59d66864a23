"""A hook of mkdocs: the folder of recipes, which lies beside docs/, is a part of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add `recipes/` to the pages and files of the site."""
    for path in sorted((ROOT / "recipes").rglob("*")):
        if path.is_file():
            files.append(File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **about: Any) -> str:
    """Links that hold in the repository hold in the site."""
    return markdown.replace("](../recipes/", "](recipes/")
