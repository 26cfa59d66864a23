"""The advice of findings, tried: with the proposed line, the finding is gone and the masks are right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest

from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import decoded
from segtune.data.samples import read_pair
from segtune.doctor.examine import examine
from segtune.doctor.findings import Finding
from segtune.recipe.recipe import load_recipe_or_data

NAMES = ["sky", "road", "car"]
IDS = np.repeat(np.repeat(np.arange(3, dtype=np.uint8), (6, 5, 5))[None], 16, axis=0)  # (16, 16)
COLORS = np.array([[0, 0, 0], [0, 200, 0], [200, 0, 0]], np.uint8)
SETTING = re.compile(r"\b((?:dataset|transforms)\.[a-z_]+)=")


def settings_of(fix: str) -> list[str]:
    """The settings that a line of advice proposes, each once: of alternatives, the first."""
    found: dict[str, str] = {}
    for match in SETTING.finditer(fix):
        rest = fix[match.end() :]
        end = json.JSONDecoder().raw_decode(rest)[1] if rest[0] in "[{" else re.match(r"[\w.-]+", rest).end()  # type: ignore[union-attr]
        found.setdefault(match[1], rest[:end])
    return [f"{key}={value}" for key, value in found.items()]


def write(root: Path, save: Callable[[Path, int], None], labels: Any = NAMES, size: int = 16, count: int = 6) -> None:
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        for kind in ("images", "masks"):
            (root / kind).mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        save(root / "masks", number)
    (root / "labels.json").write_text(json.dumps(labels))


def masks_of(values: np.ndarray) -> Callable[[Path, int], None]:
    return lambda folder, number: PIL.Image.fromarray(values).save(folder / f"{number}.png")


def examined(root: Path, settings: list[str]) -> tuple[dict[str, Finding], Any]:
    recipe = load_recipe_or_data(str(root), ["transforms.crop_size=16", "dataset.val_fraction=0", *settings])
    return {finding.code: finding for finding in examine(recipe).findings}, recipe


def cured(root: Path, code: str, *settings: str) -> list[np.ndarray]:
    """The labels of all samples with what the finding proposes, which the finding is told no more of."""
    finding = examined(root, [*settings])[0][code]
    proposed = settings_of(finding.fix[0])
    assert proposed, finding.fix
    after, recipe = examined(root, [*settings, *proposed])
    assert code not in after, (proposed, after[code])
    rows, label_map = open_dataset(recipe.dataset)
    return [read_pair(decoded(rows["train"][i]), label_map)[1] for i in range(len(rows["train"]))]


@pytest.mark.parametrize(
    ("code", "stored", "labels"),
    [
        ("scaled-mask", IDS * 80, NAMES),
        ("scaled-mask", IDS.astype(np.uint16) * 257, NAMES),
        ("unnamed-ids", IDS + 1, NAMES),  # they begin with 1
        ("unnamed-ids", np.array([0, 1, 7], np.uint8)[IDS], {"0": "sky", "1": "road", "8": "car"}),  # a slip of the pen
        ("unnamed-colors", COLORS[IDS], {"#000000": "sky", "#00c800": "road", "#c80001": "car"}),
        ("color-mask", COLORS[IDS], {"classes": dict(enumerate(NAMES)), "colors": COLORS.tolist()}),
    ],
)
def test_labels_that_are_proposed_are_right(tmp_path: Path, code: str, stored: np.ndarray, labels: Any) -> None:
    write(tmp_path, masks_of(stored), labels)
    for found in cured(tmp_path, code):
        assert found.tolist() == IDS.tolist()


def test_binary_masks(tmp_path: Path) -> None:
    write(tmp_path, masks_of((IDS == 2).astype(np.uint8) * 255), ["ground", "ship"])
    for found in cured(tmp_path, "binary-mask"):
        assert found.tolist() == (IDS == 2).astype(int).tolist()


def test_nodata_that_is_a_class(tmp_path: Path) -> None:
    def save(folder: Path, number: int) -> None:
        tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
        tags[42113] = "0"
        PIL.Image.fromarray(IDS).save(folder / f"{number}.tif", tiffinfo=tags)

    write(tmp_path, save)
    for found in cured(tmp_path, "nodata-named"):
        assert found.tolist() == IDS.tolist()


def test_several_pages(tmp_path: Path) -> None:
    def save(folder: Path, number: int) -> None:
        for kind, pages in (("images", [IDS * 90, IDS * 70]), ("masks", [IDS, IDS.T])):
            first, second = map(PIL.Image.fromarray, pages)
            first.save(folder.parent / kind / f"{number}.tif", save_all=True, append_images=[second])
            (folder.parent / kind / f"{number}.png").unlink(missing_ok=True)

    write(tmp_path, save, count=2)
    found = cured(tmp_path, "several-frames")
    assert [labels.tolist() for labels in found] == [IDS.tolist(), IDS.T.tolist()] * 2


def test_names_that_differ_in_case(tmp_path: Path) -> None:
    write(tmp_path, masks_of(IDS), ["sky", "Road", "road "])
    for found in cured(tmp_path, "similar-names"):
        assert found.tolist() == (IDS > 0).astype(int).tolist()


def test_crops_values_and_sizes(tmp_path: Path) -> None:
    write(tmp_path, masks_of(np.kron(IDS, np.ones((4, 4), np.uint8))), size=64)
    cured(tmp_path, "padded-crops", "transforms.crop_size=512")
    cured(tmp_path, "normalization", "transforms.mean=[100, 100, 100]")


def test_transparency_that_holds_the_classes(tmp_path: Path) -> None:
    """The advice is about files: what it says is done to them."""
    rgba = np.dstack([np.full((16, 16, 3), 255, np.uint8), (IDS == 2).astype(np.uint8) * 255])
    write(tmp_path, masks_of(rgba), {"0": "ground", "255": "ship"})
    message = examined(tmp_path, [])[0]["unreadable"].message
    assert "Image.open(old).getchannel('A').save(new)" in message
    for path in sorted((tmp_path / "masks").iterdir()):
        PIL.Image.open(path).getchannel("A").save(path)
    findings, recipe = examined(tmp_path, [])
    assert "unreadable" not in findings
    rows, label_map = open_dataset(recipe.dataset)
    assert read_pair(decoded(rows["train"][0]), label_map)[1].tolist() == (IDS == 2).astype(int).tolist()


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        PIL.Image.fromarray(IDS).save(tmp_path / kind / f"{kind}.png")
    findings, _ = examined(tmp_path, [])
    assert {"unpaired"} <= findings.keys() and findings["unpaired"].severity == "error"
