"""Pushes to the Hub: of a run, in the foreground or from a thread while it goes on; of folders of data."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from segtune.errors import SegtuneError
from segtune.hub.config import HubConfig
from segtune.hub.licenses import Ancestor, License, inherit
from segtune.hub.model_card import describe_run, lineage, read_front_matter
from segtune.hub.privacy import make_public
from segtune.hub.retries import FailedError, Patience, retried
from segtune.hub.stage import EXAMPLE, REPLACED, example_picture, read_recipe, stage
from segtune.hub_errors import HUB_FAULTS, is_out_of_reach, is_refusal, reason
from segtune.training.run_folder import RECIPE_FILE, find_checkpoint

logger = logging.getLogger(__name__)


STAGED = ".push-"  # what the folders begin with that are pushed from
CHECK, GRACE = 2.0, 15.0  # seconds: between looks at a push, and after LIMIT until a Hub out of reach is given up


class Staged(NamedTuple):
    """What is pushed, as it was at one moment."""

    folder: tempfile.TemporaryDirectory[str]
    checkpoint: Path


class PushError(SegtuneError):
    """The Hub did not take a push; nothing is lost here, and the message says how to go on."""


def push_run(run: str | Path, *, create_pr: bool = False, **settings: Any) -> str:
    """Push the best weights of a run with its card, recipe and metrics; `segtune push`.

    What the Hub has already, from an earlier push or one that broke off, is not sent again.

    Args:
        run: a run folder, or its `best` or `final`.
        create_pr: as a pull request, also to a repository of others.
        settings: fields of `HubConfig` that differ from those of the run's recipe.

    Returns:
        The URL of the repository or of the pull request.

    Raises:
        UsageError: no finished run, or a licence that contradicts the one that the weights inherit.
        PushError: the Hub refuses, or cannot be reached after several tries.
    """
    run = Path(run)
    stored = read_recipe(find_checkpoint(run)[0]).get("hub") or {}
    config = HubConfig(**{key: stored[key] for key in HubConfig.model_fields if key in stored} | settings)
    return _push(run, config, create_pr)


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
        PushError: the Hub refuses, or cannot be reached after several tries.
    """
    api = huggingface_hub.HfApi()
    try:
        url = retried(lambda: api.create_repo(repo, repo_type=kind, private=private, exist_ok=True), repo)
        retried(
            lambda: api.upload_folder(repo_id=url.repo_id, repo_type=kind, folder_path=folder, commit_message=message),
            repo,
        )
    except FailedError as error:
        raise PushError(f"{folder} was not pushed to {repo}: {error}. To go on, give the same command again") from error
    return str(url)


class RunPush:
    """Pushes a run while it goes on, from a thread of its own, one push after the other, and at its end.

    A push that fails is tried again, then given up with a warning that names the command to go on with; the run goes
    on. Of pushes that are asked for while one is under way, only the newest waits.

    Args:
        base: the checkpoint that the run starts from; None for random weights.
        teacher: of a distillation; None without.
    """

    def __init__(self, run: str | Path, config: HubConfig, base: str | None, teacher: str | None = None) -> None:
        self.run, self.config, self.base, self.teacher = Path(run), config, base, teacher
        self._lock = threading.Lock()
        self._waiting: Staged | None = None
        self._thread: threading.Thread | None = None
        self._url: str | None = None
        self._examples: list[bytes | None] = []
        self._patience = Patience()

    def check(self) -> None:
        """Make the repository: before the first step, so that a wrong token does not come to light after the last.

        Raises:
            UsageError: a licence that contradicts the one that the weights inherit.
            PushError: the Hub refuses. That it cannot be reached is only warned of.
        """
        for folder in self.run.glob(f"{STAGED}*"):  # of a run that was killed
            shutil.rmtree(folder, ignore_errors=True)
        repo = self.config.repo or self.run.resolve().name
        try:
            _tell(inherit(lineage(self.base, _read_card), self.config.license), repo)
            _tell_teacher(lineage(self.teacher, _read_card), repo)
            huggingface_hub.HfApi().create_repo(repo, private=self.config.private, exist_ok=True)
        except SegtuneError:
            raise
        except HUB_FAULTS as error:
            if is_refusal(error):
                raise PushError(f"the run cannot be pushed to {repo}: {reason(error)}, or hub.push=null") from error
            logger.warning("the run starts, but cannot be pushed to %s now: %s", repo, reason(error))

    def after_evaluation(self, is_best: bool) -> None:
        """Start a push where the recipe asks for one now. `is_best`: best/ was written."""
        if self.config.push == "every_eval" or (self.config.push == "best" and is_best):
            self._start()

    def finish(self) -> str | None:
        """Push the end of the run and wait for it; returns the URL, or None where that failed."""
        self.wait()
        self._url = None
        if self._patience.fails and self._patience.left() <= 0:
            command = _command(self.run, self.config, False)
            logger.warning(
                "the end of %s is not pushed, since the Hub gives no answer; to go on: %s", self.run, command
            )
            return None
        self._start()
        self.wait()
        return self._url

    def wait(self) -> None:
        """Until nothing is being pushed; of a Hub that gives no answer, for a minute in all."""
        self._patience.end()
        while (thread := self._thread) is not None:
            thread.join(CHECK)
            if thread.is_alive() and self._patience.left() <= -GRACE and is_out_of_reach():
                command = _command(self.run, self.config, False)
                logger.warning("no answer from the Hub, so %s is not pushed now; to go on: %s", self.run, command)
                self._patience.note(succeeded=False)
                return  # the thread ends with the process

    def _start(self) -> None:
        try:
            staged = _staged(self.run, self.config)
        except SegtuneError as error:
            logger.warning("%s is not pushed now: %s", self.run, error)
            return
        with self._lock:
            replaced, self._waiting = self._waiting, staged
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push", daemon=True)
                self._thread.start()
        if replaced is not None:
            replaced.folder.cleanup()

    def _work(self) -> None:
        while True:
            with self._lock:
                staged, self._waiting = self._waiting, None
                if staged is None:
                    self._thread = None
                    return
            try:
                with _without_bars(), staged.folder:
                    self._url = _push(
                        self.run, self.config, staged=staged, example=self._example, patience=self._patience
                    )
                logger.info("pushed %s to %s", self.run, self._url)
            except Exception as error:  # whatever it is, it must not end the run; a bug is told with its traceback
                logger.warning("%s", error, exc_info=not isinstance(error, (SegtuneError, OSError)))

    def _example(self, staged: Path) -> bytes | None:
        """The same picture at every push, looked for once."""
        if not self._examples:
            self._examples.append(example_picture(staged))
        return self._examples[0]


# --- one push --------------------------------------------------------------------------------------------------------


def _staged(run: Path, config: HubConfig) -> Staged:
    """What is pushed, in a folder of the run's, where a second name of the weights takes no space."""
    root, _ = find_checkpoint(run)
    folder = tempfile.TemporaryDirectory(
        prefix=STAGED, dir=root if os.access(root, os.W_OK) else None, ignore_cleanup_errors=True
    )
    try:
        return Staged(folder, stage(run, Path(folder.name), with_code=config.with_code, pictures=config.pictures))
    except BaseException as error:
        folder.cleanup()
        if isinstance(error, OSError):
            raise PushError(f"{run} was not pushed: its files cannot be put together ({error})") from error
        raise


def _push(
    run: Path,
    config: HubConfig,
    create_pr: bool = False,
    staged: Staged | None = None,
    example: Callable[[Path], bytes | None] = example_picture,
    patience: Patience | None = None,
) -> str:
    """Push what is staged, or the run as it is now; returns a URL."""
    root = run if (run / RECIPE_FILE).is_file() else run.parent
    api, repo, branch = huggingface_hub.HfApi(), config.repo or root.resolve().name, config.branch
    try:
        line = retried(lambda: lineage(read_recipe(root)["model"]["name"], _read_card), repo, patience)
        license = inherit(line, config.license)
        if staged is None:  # a push beside a run is told of at its start
            _tell(license, repo)
        url = retried(lambda: api.create_repo(repo, private=config.private, exist_ok=True), repo, patience)
        if branch:
            retried(lambda: api.create_branch(url.repo_id, branch=branch, exist_ok=True), repo, patience)
        directory, checkpoint = staged or _staged(run, config)
        with directory as name:
            folder = Path(name)
            if config.pictures and (picture := example(folder)):
                (folder / EXAMPLE).write_bytes(picture)
            about = (url.repo_id, line, license, _read_card)
            card = retried(lambda: describe_run(folder, checkpoint, *about), repo, patience)
            if staged is None:
                _tell_teacher(card.teacher, repo)
            (folder / "README.md").write_text(str(card), encoding="utf-8")
            make_public(folder)  # at last: card and example look for the data where it lies
            commit = retried(
                lambda: api.upload_folder(
                    repo_id=url.repo_id,
                    folder_path=folder,
                    revision=branch,
                    create_pr=create_pr,
                    delete_patterns=list(REPLACED),
                    commit_message=f"Push {root.resolve().name} with segtune",
                ),
                repo,
                patience,
            )
    except FailedError as error:
        command = _command(run, config, create_pr)
        raise PushError(f"{run} was not pushed to {repo}: {error}. The run is intact; to go on: {command}") from error
    return str(commit.pr_url or url)


def _tell(license: License, repo: str) -> None:
    if not license.metadata:
        logger.warning("the card of %s states no licence: hub.license or --license states one", repo)
    elif license.is_non_commercial:
        logger.warning("%s is not for commercial use: %s", repo, license)


def _tell_teacher(line: Sequence[Ancestor], repo: str) -> None:
    license = inherit(line, None)
    if license.is_non_commercial:
        logger.warning("%s learned from %s, which is not for commercial use: %s", repo, line[0].name, license)


def _command(run: Path, config: HubConfig, create_pr: bool) -> str:
    words = ["segtune", "push", str(run)]
    for option in ("repo", "branch", "license"):
        value = getattr(config, option)
        words += [f"--{option}", value] if value else []
    flags = {"--private": config.private, "--create-pr": create_pr, "--with-code": config.with_code}
    flags["--no-pictures"] = not config.pictures
    return shlex.join([*words, *(flag for flag, given in flags.items() if given)])


def _read_card(name: str, kind: str) -> Mapping[str, Any]:
    """The metadata of a card on the Hub; empty where there is no such repository or no card."""
    try:
        path = huggingface_hub.hf_hub_download(name, "README.md", repo_type=kind)
    except LocalEntryNotFoundError:  # out of reach and not in the cache, which is not "no card"
        raise
    except (EntryNotFoundError, RepositoryNotFoundError):
        return {}
    return read_front_matter(Path(path).read_text(encoding="utf-8"))


@contextmanager
def _without_bars() -> Iterator[None]:
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
