"""Which files of a run go to the Hub."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from segtune.errors import SegtuneError
from segtune.export.certificate import write_certificate
from segtune.hub.stage import CODE_FILES, example_picture, find_overlays, read_recipe, stage
from support.run_folders import names, write_run

PLAIN = {"config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "split.json", "metrics.jsonl"}


def test_no_pickle_and_no_state_of_the_optimiser_is_pushed(run: Path, target: Path) -> None:
    stage(run, target, with_code=False, pictures=True)
    assert names(target) == PLAIN


def test_what_is_staged_does_not_change_with_the_run(run: Path, target: Path) -> None:
    stage(run, target, with_code=False, pictures=False)
    before = {name: (target / name).read_bytes() for name in names(target)}
    (run / "best").rename(run / "old")
    write_run(run.parent / "other")
    save_file({"b": torch.zeros(5)}, run.parent / "other" / "best" / "model.safetensors")
    (run.parent / "other" / "best").rename(run / "best")
    shutil.rmtree(run / "old")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("more")
    assert {name: (target / name).read_bytes() for name in names(target)} == before


def test_code_of_others_is_not_passed_on(run: Path, target: Path) -> None:
    """Weights from a repository with code of its own carry an auto_map that names it."""
    stage(run, target, with_code=False, pictures=False)
    assert "auto_map" not in json.loads((target / "config.json").read_text())


def test_code_is_all_that_the_network_imports(run: Path, target: Path) -> None:
    stage(run, target, with_code=True, pictures=False)
    assert names(target) == PLAIN | set(CODE_FILES)
    imported = {
        f"{node.module}.py"
        for name in CODE_FILES
        for node in ast.walk(ast.parse((target / name).read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    entries = [
        value.partition(".")
        for file in ("config.json", "preprocessor_config.json")
        for value in json.loads((target / file).read_text())["auto_map"].values()
    ]
    assert imported | {f"{module}.py" for module, _, _ in entries} == set(CODE_FILES)
    assert all(f"class {name}(" in (target / f"{module}.py").read_text() for module, _, name in entries)


def test_pictures_of_the_data_are_few_and_can_be_left_out(run: Path, target: Path, earth: Path) -> None:
    (run / "recipe.yaml").write_text("dataset: {path: segtune://earth}\nmodel: {name: null}\ntraining: {}\n")
    ids = [path.stem for path in sorted((earth / "images" / "test").iterdir())]
    (run / "split.json").write_text(json.dumps({"test": ids}))
    (run / "report.html").write_text("page")
    (run / "overlays" / "step-000001").mkdir(parents=True)
    for name in ("overview.jpg", *(f"tile{i:02}.png" for i in range(20)), "step-000001/early.png"):
        Image.new("RGB", (8, 8)).save(run / "overlays" / name)
    stage(run, target, with_code=False, pictures=True)
    expected = {"overlays/overview.jpg", *(f"overlays/tile{i:02}.png" for i in range(15))}
    assert names(target) == PLAIN | expected | {"report.html"}
    picture = example_picture(target) or b""
    with Image.open(io.BytesIO(picture)) as example:
        assert (example.format, example.size) == ("JPEG", (180, 180))
    assert find_overlays(target / "overlays")[0].name == "overview.jpg"
    shutil.rmtree(target)
    target.mkdir()
    stage(run, target, with_code=False, pictures=False)
    assert names(target) == PLAIN


def test_data_that_is_not_here_gives_no_example(run: Path, target: Path) -> None:
    stage(run, target, with_code=False, pictures=True)
    assert example_picture(target) is None


def test_pictures_of_the_last_evaluation_stand_in_for_overlays(run: Path, target: Path) -> None:
    for step, name in ((100, "a"), (200, "b/c")):
        path = run / "overlays" / f"step-{step:06d}" / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    stage(run, target, with_code=False, pictures=True)
    assert names(target) == PLAIN | {"overlays/c.jpg"}


def test_exports_of_these_weights_are_staged(run: Path, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest()
    for folder, digest in (("onnx", weights), ("openvino", "of others")):
        exported = run / "export" / folder
        (exported / "onnx").mkdir(parents=True)
        for name in ("config.json", "product.onnx", "onnx/model.onnx"):
            (exported / name).write_text(folder)
        write_certificate(exported, {"sha256": digest, "files": []})
    stage(run, target, with_code=False, pictures=False)
    assert names(target) - PLAIN == {"certificate-onnx.json", "product.onnx", "onnx/model.onnx"}
    assert (target / "config.json").read_text() != "onnx"
    assert "export/openvino is an export of other weights" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# r; '# end of the recipe' is the last line\ndataset: {path: x}\n", "is cut off or no recipe"),
        ("just text\n", "is cut off or no recipe"),
        ("dataset: {path: [\n", "is damaged: while parsing"),
    ],
)
def test_a_damaged_recipe_is_named(run: Path, content: str, message: str) -> None:
    (run / "recipe.yaml").write_text(content)
    with pytest.raises(SegtuneError, match=rf"recipe\.yaml {message}"):
        read_recipe(run)
