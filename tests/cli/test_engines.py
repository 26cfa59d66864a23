"""The engines as commands have them: what is said, and that a checkpoint and its export are told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.engines.onnx_model import logits_model
from segtune.segformer.loading import load_model


@pytest.mark.slow
def test_an_exported_run(segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path) -> None:
    best, exported = run_folder / "best", tmp_path / "exported"
    (exported / "onnx").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(best / name, exported)
    (exported / "onnx" / "model.onnx").write_bytes(logits_model(load_model(best)).SerializeToString())

    photo = min((earth / "images" / "test").iterdir())
    found = []
    for engine, source in (("torch", best), ("onnxruntime", exported), ("openvino", best)):
        out = tmp_path / engine
        command = ("predict", source, photo, "--output", out, "--engine", engine, "--precision", "fp32")
        code, text, err = segtune_command(*command, "--window", "96", "--confidence", "png")
        by = "" if engine == "torch" else f", computed by {engine} in fp32"
        assert (code, text) == (0, f"1 mask in {out}{by}\n"), err
        with Image.open(out / f"{photo.stem}.png") as mask:
            found.append(np.array(mask))
    assert all((mask == found[0]).mean() >= 0.9995 for mask in found[1:])

    files = [tmp_path / f"{engine}.npz" for engine in ("torch", "openvino")]
    split = ("demo", "--split", "val", "--save")
    assert segtune_command("evaluate", best, *split, files[0]).code == 0
    code, text, err = segtune_command("evaluate", exported, *split, files[1], "--engine", "openvino", "--json")
    told = json.loads(text)
    assert (code, told["engine"]) == (0, "openvino") and told["precision"] in ("fp32", "bf16"), err
    code, text, _ = segtune_command("compare", *files)
    assert code == 0 and f"B: {files[1]} (openvino, {told['precision']})" in text and f"A: {files[0]}\n" in text
    assert abs(json.loads(segtune_command("compare", *files, "--json").out)["mean_iou"]["difference"]) < 0.01

    page = tmp_path / "page.html"
    code, text, err = segtune_command("report", exported, "demo", "--output", page, "--engine", "onnxruntime")
    assert code == 0 and "onnxruntime, fp32" in page.read_text(encoding="utf-8"), err


@pytest.mark.slow
def test_bench(segtune_command: Any) -> None:
    code, text, err = segtune_command("bench", "--engines", "--size", "64", "--labels", "3", "--repeats", "1", "--json")
    (result,) = json.loads(text)
    assert code == 0 and (result["size"], result["labels"]) == (64, 3), err
    ways = {way["name"]: way for way in result["ways"]}
    assert {"transformers, PyTorch", "segtune, ONNX Runtime fp32", "segtune, OpenVINO fp32"} <= ways.keys()
    assert all(way["ms"] > way["network_ms"] > 0 for way in result["ways"])
    assert all(way["agreement"] > 0.99 for name, way in ways.items() if name.endswith(("PyTorch", "fp32")))


def test_slips(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, message in (
        (["--engine", "tensorrt"], "'tensorrt' is not one of 'torch', 'openvino', 'onnxruntime'"),
        (["--engine", "openvino", "--device", "cuda"], "--device cuda: --engine openvino runs on the CPU here"),
    ):
        picture = tmp_path / "picture.png"
        Image.new("RGB", (64, 64)).save(picture)
        code, text, err = segtune_command("predict", run_folder / "best", picture, "--output", out, *words)
        assert (code, text) == (2, "") and message in err
        assert not out.exists()
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(b"nothing")
    shutil.copy(run_folder / "best" / "config.json", tmp_path)
    code, _, err = segtune_command("predict", damaged, picture, "--output", out, "--engine", "onnxruntime")
    assert code == 1 and err.strip().count("\n") == 0 and f"{damaged} is damaged" in err
    code, _, err = segtune_command("predict", damaged, picture, "--output", out)
    assert code == 2 and f"{damaged} is an exported graph: say --engine onnxruntime" in err
    code, _, err = segtune_command("bench", "--variants", "b9")
    assert code == 2 and "variant 'b9' does not exist" in err
