"""The notebooks: all four are there, stripped, made of public names, and run, small and without a network."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from packaging.requirements import Requirement

import segtune
from support.examples import TINY
from support.minihub import Hub, environment, serve

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
CHANGES = [TINY, "training.batch_size=2", "training.eval_every=null", "training.overlays=1"]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- as they are in git ----------------------------------------------------------------------------------------------


def test_collector_found_the_notebooks() -> None:
    assert list(NOTEBOOKS) == ["finetune_colab", "finetune_kaggle", "how_segformer_works", "inference"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_stripped_and_short(name: str) -> None:
    notebook = NOTEBOOKS[name]
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert 8 <= len(cells) <= 16
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == [{"tags": ["parameters"]}]
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "accelerator"}
    assert notebook.cells[0].source.startswith("# ") and "**To open it" in notebook.cells[0].source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opens_and_installs_from_the_repository(name: str) -> None:
    """Badges of Colab and Kaggle; pip gets segtune from where it is, and a failure of pip ends the cell."""
    url, first = "https://github.com/segtune/segtune", NOTEBOOKS[name].cells[0].source
    path = f"{url.removeprefix('https://github.com/')}/blob/main/notebooks/{name}.ipynb"
    assert f"](https://colab.research.google.com/github/{path})" in first
    assert f"](https://kaggle.com/kernels/welcome?src=https://github.com/{path})" in first
    install = code_cells(NOTEBOOKS[name])[0].source
    (requirement,) = re.findall(r'^SEGTUNE = "(.+)"', install, flags=re.MULTILINE)
    asked = Requirement(requirement)
    assert asked.name == "segtune" and asked.url == f"git+{url}"
    assert "notebooks" in asked.extras
    assert f'Repository = "{url}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'assert importlib.util.find_spec("segtune")' in install.splitlines()[-1]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_uses_public_names(name: str) -> None:
    source = "\n".join(TransformerManager().transform_cell(cell.source) for cell in code_cells(NOTEBOOKS[name]))
    nodes = list(ast.walk(ast.parse(source)))
    used = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "segtune"
    }
    assert used and used <= set(segtune.__all__)
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert "segtune" in modules and not [module for module in modules if str(module).startswith("segtune.")]
    assert not [
        node.attr for node in nodes if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr)
    ]  # nothing private either


def machine_cell(name: str, capability: tuple[int, int], built: list[str], count: int = 1) -> dict[str, Any]:
    """What the cell that looks for a GPU leaves, on a machine with so many of them."""
    (cell,) = [cell.source for cell in code_cells(NOTEBOOKS[name]) if "get_arch_list" in cell.source]
    gpu = SimpleNamespace(name="Tesla", major=capability[0], minor=capability[1], total_memory=16 * 2**30)
    cuda = SimpleNamespace(device_count=lambda: count, is_available=lambda: count > 0, get_arch_list=lambda: built)
    cuda.get_device_properties = lambda index: gpu
    names: dict[str, Any] = {"torch": SimpleNamespace(cuda=cuda), "os": os}
    exec(cell, names)
    return names


@pytest.mark.parametrize("name", ["finetune_colab", "finetune_kaggle"])
def test_looks_for_a_gpu(name: str) -> None:
    """A P100, which the PyTorch there no longer knows, ends the notebook; of two T4s, both are used."""
    built = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100"]
    with pytest.raises(AssertionError, match="this PyTorch has no kernels for a Tesla: choose another GPU"):
        machine_cell(name, (6, 0), built)
    assert machine_cell(name, (7, 5), built)["precision"] == "fp16"
    assert machine_cell(name, (8, 9), built)["precision"] == "bf16"
    assert machine_cell(name, (0, 0), built, count=0)["precision"] == "no"
    assert machine_cell(name, (7, 5), built, count=2)["gpus"] == 2
    (train,) = [cell.source for cell in code_cells(NOTEBOOKS[name]) if "segtune.train(" in cell.source]
    first, command, *_ = train.splitlines()
    assert first.startswith("if gpus > 1:") and "accelerate launch --multi_gpu --num_processes {gpus} -m" in command


# --- executed --------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A folder to work in, and the Hub that kernels there know."""

    folder: Path
    hub: Hub
    url: str

    def execute(self, name: str, **parameters: Any) -> Any:
        """Run a notebook with other parameters than those of its cell; any error in a cell fails."""
        notebook = nbformat.from_dict(json.loads(json.dumps(NOTEBOOKS[name])))
        (at,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        names = {node.id for node in ast.walk(ast.parse(notebook.cells[at].source)) if isinstance(node, ast.Name)}
        assert set(parameters) <= names
        lines = [f"{key} = {value!r}" for key, value in parameters.items()]
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
        resources = {"metadata": {"path": str(self.folder)}}
        NotebookClient(notebook, timeout=400, kernel_name="python3", resources=resources).execute(env=self.variables())
        return notebook

    def variables(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {**os.environ, **environment(self.url, self.folder / "home"), "PATH": path}
        return variables | {"PYTHONPATH": str(ROOT / "src")}


def printed(notebook: Any) -> str:
    """What the cells wrote to stdout."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def errors(notebook: Any) -> str:
    """What the cells wrote to stderr."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")


def tables(notebook: Any) -> int:
    """How many tables of a training there are, each with its bar and one row or more."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    pages = [page for output in outputs if "<progress" in (page := output.get("data", {}).get("text/html", ""))]
    assert all("<th>val mIoU</th>" in page for page in pages)
    return len(pages)


def pictures(notebook: Any) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum(bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in outputs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with serve() as (hub, url):
        yield Place(tmp_path_factory.mktemp("notebooks"), hub, url)


@pytest.fixture(scope="module")
def colab(place: Place) -> Any:
    return place.execute("finetune_colab", STEPS=4, REPO="tester/tiles", CHANGES=CHANGES)


@pytest.mark.slow
def test_finetune_colab(place: Place, colab: Any) -> None:
    assert re.search(r"mean IoU 0\.\d+, 95 % interval 0\.\d+ to 0\.", printed(colab))
    assert pictures(colab) == 4
    assert tables(colab) == 1 and "it/s" not in errors(colab) and "IProgress" not in errors(colab)
    assert {"model.safetensors", "README.md"} <= set(place.hub.repo("tester/tiles").at().files)


@pytest.mark.slow
def test_inference_from_the_hub(place: Place, colab: Any) -> None:
    notebook = place.execute("inference", MODEL="tester/tiles")
    assert "pixels with the same class as above: 100.00%" in printed(notebook)
    assert pictures(notebook) == 4
    assert len(list((place.folder / "predictions").glob("*.geojson"))) == 10


@pytest.mark.slow
def test_finetune_kaggle(place: Place, earth: Path) -> None:
    """Own data in a folder, with labels of the notebook; the submission covers the images of another folder."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            target = place.folder / "mine" / kind / split
            target.mkdir(parents=True)
            for file in sorted((earth / kind / split).iterdir())[:count]:
                shutil.copy(file, target)
    notebook = place.execute(
        "finetune_kaggle",
        DATA="mine",
        LABELS={"0": "ocean", "1": "land", "2": "land", "3": "land", "255": None},
        MODEL=None,
        STEPS=2,
        SUBMIT="mine/images/test",
        REPO="tester/mine",
        CHANGES=[*CHANGES, "transforms.crop_size=64"],
    )
    assert pictures(notebook) == 4
    rows = list(csv.DictReader((place.folder / "submission.csv").read_text().splitlines()))
    assert [row["id"].rpartition("_")[2] for row in rows] == ["ocean", "land"] * 2
    covered = sum(int(number) for row in rows for number in row["rle"].split()[1::2])
    assert covered == 2 * 180 * 180
    assert "model.safetensors" in place.hub.repo("tester/mine").at().files


@pytest.mark.slow
def test_how_segformer_works(place: Place) -> None:
    notebook = place.execute("how_segformer_works", SMALL=True)
    text = printed(notebook)
    assert "counted: N^2.000 · R^-1.000" in text
    assert re.search(r"b2: largest difference \d\.\de-0[67] ", text)
    assert re.search(r"^b0 +3\.32 +0\.43 +3\.20 +5\.18 +0\.92 ", text, flags=re.MULTILINE)  # re-ordered: 0.92
    assert pictures(notebook) == 6
