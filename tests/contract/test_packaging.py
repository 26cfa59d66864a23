"""The wheel, built from the sdist, holds what it should and works outside the checkout without any network."""

from __future__ import annotations

import email.message
import email.parser
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# Runs at the start of every interpreter of the test environment: each attempt to reach a network is noted and fails.
NO_NETWORK = """
import os, socket

def refuse(self, address, *rest):
    if self.family == socket.AF_UNIX:
        return connect(self, address, *rest)
    note(address)

def note(*address):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        print(*address, file=log)
    raise OSError(101, "the tests have no network")

connect = socket.socket.connect
socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = refuse, refuse, note
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("segtune-*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name)
    assert Metadata.from_email(text, validate=True).name == "segtune"
    return email.parser.Parser().parsestr(text.decode())


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment: segtune from the wheel, everything else from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site_packages / "sitecustomize.py").write_text(NO_NETWORK)
    return folder / "bin"


@pytest.fixture
def run(environment: Path, tmp_path: Path):
    """Runs a program of that environment in an empty folder, as a user who has set no variable of ours would."""

    def run_program(*command: str, timeout: float = 300) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON", "SEGTUNE_"))}
        del kept["NO_ALBUMENTATIONS_UPDATE"]
        env = kept | {"HF_HOME": str(tmp_path / "hf"), "NETWORK_LOG": str(tmp_path / "network.txt")}
        program = [str(environment / command[0]), *command[1:]]
        result = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout)
        assert result.returncode == 0, result.stdout + result.stderr
        assert not (tmp_path / "network.txt").exists(), (tmp_path / "network.txt").read_text()
        return result.stdout

    return run_program


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packaged = {name.removeprefix("segtune/") for name in names if name.startswith("segtune/")}
    source = ROOT / "src" / "segtune"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    assert packaged == wanted | recipes
    assert {
        "py.typed",
        "recipe/recipe.schema.json",
        "doctor/templates/page.html",
        "hub/templates/model_card.md",
        "report/templates/page.html",
        "report/templates/report.js",
        "viz/templates/base.html",
        "viz/templates/page.css",
        "data/convert/templates/dataset_card.md",
        "data/earth/README.md",
        "data/earth/LICENSE.md",
        "data/earth/classes.json",
    } <= packaged
    assert {"recipes/README.md", "recipes/demo.yaml", "recipes/my-folder.yaml"} <= packaged
    assert len([name for name in packaged if name.startswith("recipes/") and name.endswith("b0.yaml")]) == 18
    tables = {f"data/published/{path.name}" for path in (source / "data" / "published").iterdir()}
    assert len(tables) == 9 and tables <= packaged
    assert len([name for name in packaged if name.startswith("data/earth/images/")]) == 170
    assert len([name for name in packaged if name.startswith("data/earth/masks/")]) == 170
    others = [name for name in names if not name.startswith(("segtune/", "segtune-"))]
    assert others == []
    assert wheel.stat().st_size < 5e6


def test_metadata(metadata: email.message.Message) -> None:
    assert {"docs", "test", "dev"} < set(metadata.get_all("Provides-Extra"))
    assert metadata["Version"] == "0.1.0"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert metadata["Description-Content-Type"] == "text/markdown"  # the README
    assert metadata["Requires-Python"] == ">=3.10"


def test_sdist_holds_tests_and_no_foreign_data(dist: Path) -> None:
    (path,) = dist.glob("segtune-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "tests/conftest.py"}
    wanted |= {"constraints-lowest.txt", "docs/index.md", "mkdocs.yml", "scripts/recipes_in_docs.py"}
    wanted |= {"benchmarks/compare_transformers.py", "benchmarks/loading.py", "benchmarks/metrics.py"}
    assert wanted <= names
    pictures = [name for name in names if name.endswith((".jpg", ".png"))]
    assert {name for name in pictures if not name.startswith(("src/segtune/data/earth/", "docs/notebooks/"))} == {
        "docs/demo.png",
        "docs/demo_app.png",
        "docs/report.png",
        "docs/web.png",
    }
    assert not [name for name in names if name.startswith((".venv", "runs", "dist", "shared"))]
    assert path.stat().st_size < 8e6


def test_segtune_comes_from_the_wheel(run, environment: Path) -> None:
    where = Path(run("python", "-c", "import segtune; print(segtune.__file__)").strip())
    assert where.is_relative_to(environment.parent)


def test_connections_are_noticed(run) -> None:
    with pytest.raises(AssertionError, match="the tests have no network"):
        run("python", "-c", "import socket; socket.create_connection(('192.0.2.1', 80))")


def test_command_line_answers(run) -> None:
    assert "train" in run("segtune", "--help")
    recipes = run("segtune", "recipes")
    assert "demo" in recipes
    assert "camvid" in recipes
    assert "22 recipes" in recipes


def test_demo_trains(run, tmp_path: Path) -> None:
    run("segtune", "train", "demo", "training.max_steps=4", "training.output_dir=out")
    folder = tmp_path / "out"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line.get("step", 0) for line in lines) == 4
    assert (folder / "recipe.yaml").read_text().count("max_steps: 4") == 1
    for name in ("best", "final"):
        for file in ("config.json", "model.safetensors", "preprocessor_config.json"):
            assert (folder / name / file).is_file()
    run("segtune", "evaluate", "out/best", "demo", "--split", "test", "--json")
