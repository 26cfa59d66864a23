"""The `hub` section of a recipe: when and where a run is pushed."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from segtune.config import MayChangeOnResume, StrictModel

_REPO = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


class HubConfig(StrictModel):
    """The `hub` section of a recipe: when and where a run is pushed."""

    push: MayChangeOnResume[Literal["end", "best", "every_eval"] | None] = Field(
        None,
        description="When the run is pushed: at its end; also with every better best/; also after every evaluation; "
        "null = never.",
    )
    repo: MayChangeOnResume[str | None] = Field(
        None, description="Repository, user/name; null = the run folder's name, of the token's user."
    )
    private: MayChangeOnResume[bool] = Field(False, description="Visibility of a repository that does not exist yet.")
    branch: MayChangeOnResume[str | None] = Field(
        None, description="Branch, which is made where it does not exist; null = main."
    )
    license: MayChangeOnResume[str | None] = Field(
        None, description="License of weights that inherit none, e.g. apache-2.0; null = not stated."
    )
    with_code: MayChangeOnResume[bool] = Field(False, description="Add the network's code, for trust_remote_code=True.")
    pictures: MayChangeOnResume[bool] = Field(
        True, description="Push pictures of the data: overlays, the report, an example image."
    )

    @field_validator("repo")
    @classmethod
    def _check_repo(cls, repo: str | None) -> str | None:
        """What the Hub would refuse is refused here, rather than after an hour, or after a minute of retries."""
        if repo is not None and (not _REPO.fullmatch(repo) or "--" in repo or ".." in repo):
            raise ValueError(f"{repo!r} is no repository: write user/name, of letters, digits, '-', '_' and '.'")
        return repo
