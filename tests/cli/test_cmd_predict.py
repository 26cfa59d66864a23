from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segtune
from segtune.labels.label_map import LabelMap


def test_predict_writes_palette_masks_and_overlays(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path
) -> None:
    photo = min((earth / "images" / "test").iterdir())
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tile.jpg").write_bytes(photo.read_bytes())
    with Image.open(photo) as picture:
        picture.crop((0, 0, 90, 50)).convert("L").save(tmp_path / "y" / "small.png")
    out_folder = tmp_path / "out"
    code, out, _ = segtune_command(
        "predict", run_folder / "best", tmp_path / "x", f"{tmp_path}/y/*", "--output", out_folder, "--overlay",
        "--batch-size", "2",
    )  # fmt: skip
    assert (code, out) == (0, f"3 masks in {out_folder}\n")
    names = {path.relative_to(out_folder).as_posix() for path in out_folder.rglob("*.png")}
    assert names == {f"{name}{end}.png" for name in ("x/tile", "y/tile", "y/small") for end in ("", "_overlay")}
    with Image.open(out_folder / "y" / "small.png") as small, Image.open(out_folder / "x" / "tile.png") as tile:
        assert (small.mode, small.size) == ("P", (90, 50))
        assert (tile.mode, tile.size) == ("P", (180, 180))
        ids, colors = np.array(tile), np.array(tile.convert("RGB"))
    label_map = LabelMap.from_file(earth / "classes.json")
    assert set(np.unique(ids)) <= set(range(4))
    assert np.array_equal(colors, label_map.colorize(ids))
    expected = segtune.predict(run_folder / "best", tmp_path / "x" / "tile.jpg")
    assert np.array_equal(ids, expected)


def test_predict_in_windows_with_everything(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path
) -> None:
    photo, out = min((earth / "images" / "test").iterdir()), tmp_path / "out"
    command = ("predict", run_folder / "best", photo, "--output", out, "--window", "64", "--overlap", "32")
    code, text, err = segtune_command(*command, "--confidence", "tif", "--polygons", "geojson", "--batch-size", "4")
    assert (code, text) == (0, f"1 mask in {out}\n"), err
    stem = photo.stem
    assert {path.name for path in out.iterdir()} == {f"{stem}.png", f"{stem}_confidence.tif", f"{stem}.geojson"}
    with Image.open(out / f"{stem}.png") as mask:
        ids = np.array(mask)
    assert np.array_equal(ids, segtune.predict(run_folder / "best", photo, window=64, stride=32, batch_size=4))
    code, text, err = segtune_command(*command)
    assert (code, text) == (2, "")
    assert f"{out / stem}.png exists already; name another folder, or say --overwrite" in err
    assert segtune_command(*command[:-4], "--overwrite", "--tta").code == 0
    with Image.open(out / f"{stem}.png") as mask:
        assert np.array_equal(np.array(mask), segtune.predict(run_folder / "best", photo, tta=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--window", "500"), "window 500: use a multiple of 32"),
        (("--overlap", "32"), "--overlap 32 goes with --window, and in the place of --stride"),
        (("--window", "64", "--stride", "32", "--overlap", "32"), "--overlap 32 goes with --window"),
        (("--window", "64", "--overlap", "64"), "stride 0 of windows of 64"),
        (("--stride", "32"), "stride 32 without a window"),
        (("--polygons", "svg"), "'svg' is not one of"),
        (("--precision", "fp16", "--device", "cpu"), "--precision fp16 is for GPUs: on a CPU give fp32, or bf16"),
    ],
)
def test_predict_refuses(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    photo = min((earth / "images" / "test").iterdir())
    code, out, err = segtune_command("predict", run_folder / "best", photo, "--output", tmp_path / "out", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_predict_never_writes_among_the_images(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    code, _, err = segtune_command("predict", run_folder / "best", tmp_path / "a.png", "--output", tmp_path)
    assert code == 2
    assert "would lie among the input images" in err
    assert (tmp_path / "a.png").read_bytes() == before


def test_predict_names_a_broken_image(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    code, out, err = segtune_command(
        "predict", run_folder / "best", tmp_path / "broken.jpg", "--output", tmp_path / "out"
    )
    assert (code, out) == (1, "")
    assert str(tmp_path / "broken.jpg") in err


def test_predict_tells_another_precision(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = ("predict", run_folder / "best", tmp_path / "a.png", "--output", out, "--device", "cpu")
    code, text, err = segtune_command(*arguments, "--precision", "bf16")
    assert (code, text) == (0, f"1 mask in {out}, computed in bf16\n"), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_a_device_that_is_not_there_is_one_message(segtune_command: Any, run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    arguments = ("predict", run_folder / "best", tmp_path / "a.png", "--output", tmp_path / "out", "--device", "cuda")
    code, _, err = segtune_command(*arguments)
    assert code == 2 and err.splitlines()[-1].startswith("error: --device cuda: ")


def test_an_image_from_standard_input_and_a_list_of_what_was_written(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sorted((earth / "images" / "test").iterdir())[:2]
    out = tmp_path / "out"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(first.read_bytes())))
    code, text, err = segtune_command(
        "predict", run_folder / "best", "-", second, "--output", out, "--overlay", "--json"
    )
    assert code == 0, err
    assert json.loads(text) == {
        "output": str(out),
        "masks": 2,
        "precision": "fp32",
        "engine": "torch",
        "images": [
            {"image": name, "mask": f"{out / stem}.png", "overlay": f"{out / stem}_overlay.png"}
            for name, stem in (("-", "stdin"), (str(second), second.stem))
        ],
    }
    assert {path.name for path in out.iterdir()} == {
        f"{s}{end}.png" for s in ("stdin", second.stem) for end in ("", "_overlay")
    }
    with Image.open(out / "stdin.png") as mask:
        assert np.array_equal(np.array(mask), segtune.predict(run_folder / "best", first))


def test_a_limit_takes_the_first_images(segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path) -> None:
    folder, out = earth / "images" / "test", tmp_path / "out"
    words = ("predict", run_folder / "best", folder, "--output", out, "--limit", "2", "-q")
    assert segtune_command(*words) == (0, f"2 masks in {out}\n", "")
    assert sorted(path.stem for path in out.iterdir()) == sorted(path.stem for path in folder.iterdir())[:2]


def test_an_address_that_gives_no_image_is_one_message(
    segtune_command: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segtune.imageio.incoming.WAITS", ())
    words = ("predict", run_folder / "best", "http://127.0.0.1:9/a.jpg?key=secret", "--output", tmp_path / "out")
    code, out, err = segtune_command(*words)
    assert (code, out) == (1, "") and "http://127.0.0.1:9/a.jpg?… cannot be fetched: " in err and "secret" not in err
    assert not (tmp_path / "out").exists()


def test_processes_divide_the_images_and_resume(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted((earth / "images" / "test").iterdir())[:5]
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert segtune_command("predict", run_folder / "best", *images, "--output", alone, "--json").code == 0
    words = ("predict", run_folder / "best", *images, "--output", out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert segtune_command(*words, "--json")[:2] == (0, "")
    assert len(list(out.glob("*.png"))) == 2
    monkeypatch.setenv("RANK", "0")
    code, text, err = segtune_command(*words, "--json")
    assert code == 0, err
    assert [each["mask"] for each in json.loads(text)["images"]] == [f"{out / path.stem}.png" for path in images]
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == {
        path.name: path.read_bytes() for path in alone.iterdir()
    }
    code, _, err = segtune_command(*words)
    assert code == 2 and "exist already; name another folder, or say --resume" in err
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    code, text, _ = segtune_command(*words, "--resume")
    assert (code, text) == (0, f"5 masks in {out}; 5 of 5 images were done before\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overwrite",), "--overwrite replaces what --resume and several processes go on from"),
        (("-",), "-: --resume and several processes take files"),
        (("http://127.0.0.1:9/a.jpg",), "http://127.0.0.1:9/a.jpg: --resume and several processes take files"),
    ],
)
def test_what_does_not_go_with_resume(
    segtune_command: Any, run_folder: Path, earth: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    photo = min((earth / "images" / "test").iterdir())
    command = ("predict", run_folder / "best", photo, *words, "--output", tmp_path / "out", "--resume")
    code, _, err = segtune_command(*command)
    assert code == 2 and message in err
    assert not (tmp_path / "out").exists()
