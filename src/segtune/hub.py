"""Pushing folders to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from segtune.errors import SegtuneError


def push_folder(
    folder: str | Path, repo: str, kind: Literal["model", "dataset"], *, private: bool = False, message: str
) -> str:
    """Push a folder as it is; other files of the repository stay. Called again after it broke off, it goes on.

    Args:
        repo: `user/name`; made, `private` or not, where it does not exist.
        message: of the commit.

    Returns:
        The URL of the repository.

    Raises:
        SegtuneError: the Hub refuses, or cannot be reached.
    """
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, repo_type=kind, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SegtuneError(
            f"{folder} was not pushed to {repo}: {reason}. To go on, give the same command again"
        ) from error
    return str(url)
