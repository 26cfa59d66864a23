from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from segtune.data.dataset import load_segmentation_dataset, save_split
from segtune.errors import UsageError
from segtune.webdemo.demo_examples import find_examples


def write_run(folder: Path, data: str) -> Path:
    (folder / "best").mkdir(parents=True)
    save_split(load_segmentation_dataset("segtune://earth"), folder / "split.json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"dataset": {"path": data}}))
    return folder / "best"


def test_examples_of_a_run_are_test_pictures_from_all_over(tmp_path: Path) -> None:
    best = write_run(tmp_path / "run", "segtune://earth")
    found = find_examples(best, None, tmp_path / "examples")
    assert [path.name for path in found] == [f"example-{number}.jpg" for number in (1, 2, 3, 4)]
    assert len({path.read_bytes() for path in found}) == 4
    with Image.open(found[0]) as picture:
        assert picture.size == (180, 180)


@pytest.mark.parametrize("data", [None, "nowhere"])
def test_no_run_or_no_data_is_no_fault(tmp_path: Path, data: str | None) -> None:
    best = write_run(tmp_path / "run", data) if data else tmp_path
    assert find_examples(best, None, tmp_path / "examples") == []


def test_named_ones_are_copied_in_their_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = find_examples(tmp_path, [tmp_path / "b.png", tmp_path / "a.png"], tmp_path / "examples")
    assert [path.name for path in found] == ["1-b.png", "2-a.png"]
    (tmp_path / "a.txt").touch()
    for name, words in (("c.png", "no such file"), ("a.txt", "it is no picture")):
        with pytest.raises(UsageError, match=f"{name}: {words}"):
            find_examples(tmp_path, [tmp_path / name], tmp_path / "other")
