"""Spaces: a Space on the Hub that shows a pushed run as `segtune demo` does."""

from __future__ import annotations

import logging
import platform
import re
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

import huggingface_hub
import yaml

import segtune
from segtune.errors import UsageError
from segtune.hub.config import HubConfig
from segtune.hub.push import PushError
from segtune.hub.retries import FailedError, retried
from segtune.hub.stage import example_picture, read_recipe
from segtune.training.run_folder import find_checkpoint
from segtune.viz.html import render

logger = logging.getLogger(__name__)

EXTRAS = ("demo", "geo")  # of segtune, that the Space installs
EXAMPLES = "examples"
CODE = "segtune"  # beside app.py, where Python finds it first
_NOT_CARRIED = ("__pycache__", "*.pyc", ".*", "earth")  # the last are tiles to train on


def push_space(run: str | Path, space: str, repo_url: str, *, branch: str | None = None, pictures: bool = True) -> str:
    """Push a Space that shows a run which was pushed before: `app.py`, pinned requirements and a page.

    Where segtune does not come from a package index here, its code lies in the Space, see `comes_from_index`. A Space
    is as private as the model. Nothing of it tells where files lie on this machine.

    Args:
        run: see `push_run`; its data gives the picture to try.
        space: `user/name`; made where it does not exist.
        repo_url: of the model, as `push_run` returns it.
        branch: of the model.
        pictures: add a picture of the data, unless the recipe forbids it.

    Returns:
        The URL of the Space.

    Raises:
        UsageError: no such run, a name that is none, or the package gradio, whose version the Space needs, is missing.
        PushError: the Hub refuses, or cannot be reached after several tries.
    """
    run, _ = find_checkpoint(Path(run))
    HubConfig(repo=space)
    pins = requirements()
    if not comes_from_index():
        logger.info(
            "segtune %s was not installed from a package index: the Space gets its code, as it is here, in a folder "
            "%s beside app.py",
            segtune.__version__,
            CODE,
        )
    stored = read_recipe(run).get("hub") or {}
    example = example_picture(run) if pictures and stored.get("pictures", True) else None
    api, repo = huggingface_hub.HfApi(), huggingface_hub.RepoUrl(repo_url).repo_id
    try:
        info = retried(lambda: api.model_info(repo, revision=branch), repo)
        private = bool(info.private)
        url = retried(
            lambda: api.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True), space
        )
        with tempfile.TemporaryDirectory(prefix="segtune-space-") as name:
            folder = Path(name)
            write_space(folder, url.repo_id, repo, str(info.sha), pins, private=private, example=example)
            retried(
                lambda: api.upload_folder(
                    repo_id=url.repo_id,
                    repo_type="space",
                    folder_path=folder,
                    delete_patterns=[f"{EXAMPLES}/*", f"{CODE}/*"],  # what is not there now
                    commit_message=f"Show {repo} with segtune",
                ),
                space,
            )
    except FailedError as error:
        again = f"The model is at {repo_url}; to go on, give the same command again"
        raise PushError(f"the Space {space} was not pushed: {error}. {again}") from error
    if private:
        logger.warning("%s is private: add a secret HF_TOKEN that may read it, in the settings of the Space", repo)
    return str(url)


def write_space(
    folder: Path,
    space: str,
    repo: str,
    revision: str,
    pins: list[str],
    *,
    private: bool = False,
    example: bytes | None = None,
) -> None:
    """Write the files of a Space into an empty folder.

    Args:
        revision: the commit of the model.
        pins: lines of its requirements; where segtune is not among them, its code is copied.
        example: a JPEG to try.
    """
    title = f"{repo.rpartition('/')[2]} demo"
    metadata = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": _installed("gradio", "segtune[demo]"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [repo],
        "tags": ["segformer", "image-segmentation", "segtune"],
    }
    values = {"repo": repo, "revision": revision, "space": space, "title": title, "private": private, "pins": pins}
    values["carries"] = not any(pin.startswith(("segtune[", "segtune=")) for pin in pins)
    if values["carries"]:
        copy_code(folder / CODE)
    values["metadata"] = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).rstrip()
    for template, name in (("app", "app.py"), ("requirements", "requirements.txt"), ("readme", "README.md")):
        text = render(f"hub/templates/space_{template}.md", **values)
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")
    if example is not None:
        (folder / EXAMPLES).mkdir()
        (folder / EXAMPLES / "example.jpg").write_bytes(example)


def comes_from_index() -> bool:
    """Whether segtune was installed by its name, so that others can install the same version by its name.

    What was installed from a folder, a wheel or a repository has an address on record (PEP 610, `direct_url.json`).
    """
    try:
        return distribution("segtune").read_text("direct_url.json") is None
    except PackageNotFoundError:
        return False


def copy_code(folder: Path) -> None:
    """Copy segtune, as it runs here, into a folder that does not exist yet, with its licence."""
    shutil.copytree(Path(__file__).parents[1], folder, ignore=shutil.ignore_patterns(*_NOT_CARRIED))
    for file in distribution("segtune").files or ():
        if file.name in ("LICENSE", "NOTICE"):
            shutil.copyfile(str(file.locate()), folder / file.name)


def requirements() -> list[str]:
    """What a Space installs, each at the version that is installed here: what the demo needs, and segtune of an index.

    Raises:
        UsageError: something of it is missing here.
    """
    names = f"segtune[{','.join(EXTRAS)}]"
    pins = [f"{names}=={segtune.__version__}"] if comes_from_index() else []
    try:
        lines = requires("segtune") or []
    except PackageNotFoundError:
        raise UsageError(
            f"a Space lists what segtune needs, which an installed one knows: pip install '{names}'"
        ) from None
    for line in lines:
        requirement, _, marker = line.partition(";")
        if "extra" not in marker or re.search(rf"extra == .({'|'.join(EXTRAS)})\W", marker):
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            pins.append(f"{name}=={_installed(name, names).partition('+')[0]}")
    return pins


def _installed(name: str, names: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise UsageError(f"a Space needs the package {name} here, too: pip install '{names}'") from None
