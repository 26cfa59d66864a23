"""A Space for a pushed run, on a Hub on loopback: its files, whom it is shown to, and that its app.py runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import segtune
from segtune.data.dataset import load_segmentation_dataset, save_split
from segtune.errors import UsageError
from segtune.hub import space as spaces
from segtune.hub.push import PushError, push_run
from segtune.hub.space import push_space, requirements, write_space
from segtune.labels.label_map import LabelMap
from support.minihub import Fault, Hub, environment, serve
from support.networks import TINY

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub, of httpx

ROOT = Path(__file__).resolve().parents[2]
MODEL, SPACE = "tester/tiles", "tester/tiles-demo"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on the embedded tiles, of a tiny network of random weights."""
    folder = tmp_path / "anna" / "runs" / "tiles"
    data = load_segmentation_dataset("segtune://earth")
    labels = LabelMap.from_names(["ocean", "land"])
    torch.manual_seed(0)
    config = segtune.SegformerConfig(**TINY, **labels.config_fields())
    segtune.SegformerForSemanticSegmentation(config).save_pretrained(folder / "best")
    segtune.SegformerImageProcessor(do_resize=False).save_pretrained(folder / "best")
    save_split(data, folder / "split.json")
    recipe = {"dataset": {"path": "segtune://earth"}, "model": {"name": None}, "hub": {"repo": MODEL, "push": None}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


class Installed(NamedTuple):
    """segtune as pip has it on record: from an index, or from an address."""

    address: str | None
    files: tuple[Any, ...] = ()

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.address


@pytest.fixture(autouse=True)
def pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio is not asked for: what it is does not matter to the files of a Space. segtune is that of an index."""
    monkeypatch.setattr(spaces, "distribution", lambda name: Installed(None))
    known = {"gradio": "6.31.0", "fastapi": "0.115.2", "uvicorn": "0.14.0"}
    monkeypatch.setattr(spaces, "version", lambda name: known.get(name) or version(name))


def files_of(hub: Hub, name: str = SPACE) -> dict[str, bytes]:
    return {path: hub.read(name, path, kind="spaces") for path in hub.repo(name, "spaces").at().files}


def front_matter(text: bytes) -> dict[str, Any]:
    return yaml.safe_load(text.decode().split("---")[1])


def test_a_space_has_an_app_pins_and_a_page(on_hub: Hub, run: Path, tmp_path: Path) -> None:
    url = push_space(run, SPACE, push_run(run, license="apache-2.0"))
    assert url.endswith(f"/spaces/{SPACE}") and not on_hub.repo(SPACE, "spaces").private
    files = files_of(on_hub)
    assert files.keys() == {".gitattributes", "README.md", "app.py", "requirements.txt", "examples/example.jpg"}
    commit = on_hub.repo(MODEL).at().sha
    assert f'MODEL = "{MODEL}@{commit}"\n' in files["app.py"].decode()
    compile(files["app.py"], "app.py", "exec")
    shown = front_matter(files["README.md"])
    assert shown["sdk"] == "gradio" and shown["sdk_version"] == "6.31.0" and shown["app_file"] == "app.py"
    assert shown["models"] == [MODEL] and shown["title"] == "tiles demo"
    assert shown["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    pinned = [line for line in files["requirements.txt"].decode().splitlines() if not line.startswith(("#", "--"))]
    assert pinned == requirements()
    assert files["examples/example.jpg"][:2] == b"\xff\xd8"
    everything = b"".join(files.values())
    assert b"anna" not in everything and str(tmp_path).encode() not in everything and b"HF_TOKEN" not in everything


def test_every_requirement_is_pinned_to_what_is_installed() -> None:
    pins = requirements()
    assert pins[0] == f"segtune[demo,geo]=={segtune.__version__}"
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==\d[\w.]*", pin) for pin in pins) and len(pins) >= 20
    assert (
        f"transformers=={version('transformers')}" in pins and f"torch=={torch.__version__.partition('+')[0]}" in pins
    )
    assert {pin.partition("=")[0] for pin in pins} >= {"rasterio", "shapely"}
    assert not {pin.partition("=")[0] for pin in pins} & {"av", "peft", "pytest"}


def test_a_segtune_of_no_index_goes_along(
    on_hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = push_run(run)
    licence = SimpleNamespace(name="LICENSE", locate=lambda: ROOT / "LICENSE")
    with monkeypatch.context() as local, caplog.at_level("INFO", "segtune"):
        local.setattr(spaces, "distribution", lambda name: Installed('{"url": "file:///home/anna"}', (licence,)))
        push_space(run, SPACE, url)
    assert "was not installed from a package index: the Space gets its code" in caplog.text
    files = files_of(on_hub)
    pinned = files["requirements.txt"].decode()
    assert "segtune[" not in pinned and "gradio==6.31.0\n" in pinned
    package = Path(segtune.__file__).parent
    carried = {path.removeprefix("segtune/") for path in files if path.startswith("segtune/")}
    own = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {path for path in own if path.endswith(".py")} <= carried <= own | {"LICENSE"}
    assert not any("__pycache__" in path or path.startswith("data/earth/") for path in carried)
    assert "whose code" in files["README.md"].decode()
    assert b"anna" not in b"".join(files.values())
    # the interpreter that runs app.py finds that code before any other
    for path, content in files.items():
        (tmp_path / "space" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / path).write_bytes(content)
    (tmp_path / "space" / "app.py").write_text("import segtune\nprint(segtune.__file__)\n")
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path / "space", capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'space' / 'segtune' / '__init__.py'}\n"
    push_space(run, SPACE, url)  # of an index again: the code is taken away
    assert not any(path.startswith("segtune/") for path in files_of(on_hub))
    assert "whose code" not in files_of(on_hub)["README.md"].decode()


def test_segtune_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(spaces, "distribution", missing)
    monkeypatch.setattr(spaces, "requires", missing)
    assert not spaces.comes_from_index()
    with pytest.raises(UsageError, match=r"which an installed one knows: pip install 'segtune\[demo,geo\]'$"):
        requirements()


def test_a_space_of_a_private_model_is_private(on_hub: Hub, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    push_space(run, SPACE, push_run(run, private=True))
    assert on_hub.repo(SPACE, "spaces").private
    assert f"{MODEL} is private: add a secret HF_TOKEN" in caplog.text
    assert "add a secret `HF_TOKEN`" in files_of(on_hub)["README.md"].decode()


@pytest.mark.parametrize("by_recipe", [True, False])
def test_pictures_of_the_data_stay_here_where_that_is_asked(on_hub: Hub, run: Path, by_recipe: bool) -> None:
    url = push_run(run)
    push_space(run, SPACE, url)
    assert "examples/example.jpg" in files_of(on_hub)
    if by_recipe:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe["hub"]["pictures"] = False
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    push_space(run / "best", SPACE, url, pictures=by_recipe)
    assert "examples/example.jpg" not in files_of(on_hub)  # that of before is taken away, too


def test_a_branch_is_shown_at_its_commit(on_hub: Hub, run: Path) -> None:
    url = push_run(run, branch="v2")
    push_space(run, SPACE, url, branch="v2")
    commit = on_hub.repo(MODEL).at("v2").sha
    assert commit != on_hub.repo(MODEL).at("main").sha
    assert f"{MODEL}@{commit}" in files_of(on_hub)["app.py"].decode()


def test_what_the_hub_refuses_names_the_space(on_hub: Hub, run: Path) -> None:
    url = push_run(run)
    with pytest.raises(PushError, match=r"^the Space someone/else was not pushed: the token .*again$"):
        push_space(run, "someone/else", url)
    on_hub.faults.append(Fault("POST", "/api/spaces/.*/commit", 400))
    with pytest.raises(PushError, match=rf"^the Space {SPACE} was not pushed: the Hub answers 400"):
        push_space(run, SPACE, url)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        spaces, "requires", lambda name: ["gradio>=5; extra == 'demo'", "nothing-at-all>=1; extra == 'geo'"]
    )
    with pytest.raises(
        UsageError, match=r"needs the package nothing-at-all here, too: pip install 'segtune\[demo,geo\]'$"
    ):
        requirements()


@pytest.mark.slow
def test_the_written_app_runs(run: Path, tmp_path: Path) -> None:
    """With the model from the Hub, at the commit that was pushed, and the picture beside it."""
    with serve() as (hub, url):
        variables = {**os.environ, **environment(url, tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "segtune", "push", str(run), "--space", SPACE, "--license", "apache-2.0"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"pushed {run} to {url}/{MODEL}\nmade the Space {url}/spaces/{SPACE}\n"
        place = tmp_path / "space"
        for path, content in files_of(hub).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
        shutil.rmtree(run)
        command = [sys.executable, "app.py"]
        variables |= {"GRADIO_SERVER_PORT": "0"}
        with subprocess.Popen(command, cwd=place, env=variables, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                found = re.fullmatch(r"the demo of (\S+) is at (\S+) \(Ctrl-C ends it\)\n", line)
                assert found and found[1] == f"{MODEL}@{hub.repo(MODEL).at().sha}", line
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(f"{found[2]}/config", timeout=30) as answer:
                    config = json.load(answer)
                assert config["title"] == f"{found[1]}: segtune demo" and "1-example.jpg" in json.dumps(config)
            finally:
                process.terminate()


def test_files_of_a_space_need_no_hub(tmp_path: Path) -> None:
    write_space(tmp_path, SPACE, MODEL, "0a1b", ["segtune==0.1.0"])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "app.py", "requirements.txt"}
    assert (tmp_path / "requirements.txt").read_text().splitlines()[1:] == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",
        "segtune==0.1.0",
    ]
    assert f'Client("{SPACE}", analytics_enabled=False)' in (tmp_path / "README.md").read_text()
