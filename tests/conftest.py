"""Set up before any test module is imported: no network, no shared caches, one thread. Then data sets and a browser."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

_CACHE = tempfile.TemporaryDirectory(prefix="segtune-tests-")  # removed when the interpreter ends
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run without one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run side by side
for _name in ("HF_DATASETS_CACHE", "HF_EVALUATE_CACHE", "HF_HUB_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
# In CI a test fails where its data or a browser is missing, instead of being skipped; SEGTUNE_COMPLETE=0 says that the
# runner has no such data, as those of a public forge do not.
COMPLETE = os.environ.get("SEGTUNE_COMPLETE", "1" if os.environ.get("CI") == "true" else "0") == "1"
# Files that take more than half a minute of a core, about from the longest on.
LONGEST = (
    "training/test_distributed.py",
    "contract/test_docs.py",
    "contract/test_round_trip.py",
    "contract/test_readme.py",
    "faults/test_faults.py",
    "training/test_trainer.py",
    "training/test_run_lock.py",
    "notebooks/test_render_notebooks.py",
    "notebooks/test_notebooks.py",
    "inference/parallel/test_many_pictures.py",
    "inference/parallel/test_ray_data.py",
    "training/test_auto_batch.py",
    "experiments/test_crossval.py",
    "cli/test_main.py",
    "cli/test_cmd_train.py",
    "contract/test_packaging.py",
    "webdemo/test_server.py",
    "webdemo/test_demo_in_browser.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage is collected while modules are parsed: CPython 3.11 fails where that parses too (gh-106905).

    Afterwards, nothing looks again at what was imported and collected, as each collection of all garbage would.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        with warnings.catch_warnings():  # what importing libraries left open is no fault of the first test
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Workers take the files in the order of `pytest_collection_modifyitems`, which pytest-xdist would change."""
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # of those that are left
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, then those with most tests: no worker is left alone with a long one."""
    first = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    if missing := [str(path) for path in first if not path.is_file()]:
        raise pytest.UsageError(f"LONGEST names files that are not there: {', '.join(missing)}")
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (first.get(item.path, len(first)), -tests[item.path], item.path))


@pytest.fixture(autouse=True)
def volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that was told to be quiet, in this process, leaves the next test as loud as ever."""
    monkeypatch.setenv("SEGTUNE_QUIET", "0")


@pytest.fixture(scope="session")
def earth() -> Path:
    """The dataset inside the package."""
    return ROOT / "src" / "segtune" / "data" / "earth"


def shared(place: str) -> Path:
    """A folder of data that may not be shipped: below $SEGTUNE_SHARED, by default beside the checkout."""
    folder = Path(os.environ.get("SEGTUNE_SHARED", ROOT.parent / "shared")) / place
    if not folder.is_dir():
        reason = f"no {folder} (set SEGTUNE_SHARED to the folder that holds {place})"
        pytest.fail(reason) if COMPLETE else pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Real street scenes."""
    return shared("data/camvid")


@pytest.fixture(scope="session")
def real_files() -> Callable[[str], Path]:
    """Finds real files of the data set of a shipped recipe, as they lie in the official download."""
    return lambda recipe: shared(f"real/{recipe}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or Chrome, of the system."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        reason = "no Chromium (apt install chromium), or no playwright (pip install playwright) that drives it"
        pytest.fail(reason) if COMPLETE else pytest.skip(reason)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=quiet)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file as a page of a browser that has no network; afterwards, nothing must have gone wrong in it."""
    contexts, faults = [], []

    def look(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            faults.append(f"asked for {request.url}")

    def show(path: Path, *, width: int = 1280, color_scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=color_scheme))
        contexts[-1].set_offline(True)
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("request", look)
        page.on("console", lambda message: faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert faults == []


# Runs a script as `python SCRIPT` does, but imports what all of them need as commands do: in less time.
START = """
import os, runpy, sys
from segtune.cli.common import importing
with importing():
    import segtune.training.trainer
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def launch() -> Callable[..., list[str]]:
    """Starts a worker script in processes that know of each other, as `torchrun` does; returns what they say."""

    def start(processes: int, script: str, *arguments: str, **variables: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", START, str(ROOT / "tests" / "support" / "workers" / script), *arguments]
        common = os.environ | variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        running = [
            subprocess.Popen(command, env=common | {"RANK": rank, "LOCAL_RANK": rank}, stderr=PIPE, text=True)
            for rank in map(str, range(processes))
        ]
        try:
            said = [process.communicate(timeout=300)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        assert [process.returncode for process in running] == [0] * processes, "\n".join(said)
        return said

    return start


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def segtune_command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process."""

    from segtune.cli import main

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return run
