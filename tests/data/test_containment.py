"""What a data set may name: ids that can be files, and files of its own folder, whatever the format."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value

from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset, scan_dataset
from segtune.errors import DataError, SegtuneError

SOURCE = Path(__file__).resolve().parents[2] / "src" / "segtune"
BAD_IDS = (
    "../up",
    "a/../../up",
    "/etc/up",
    "a\\b",
    "C:/x",
    "nul",
    "a/aux.png",
    "x\x00y",
    "e\x1b[2J",
    "n" * 300,
    "a//b",
)


def png(value: int, shape: tuple[int, ...] = (8, 8)) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(np.full(shape, value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def picture(path: Path, value: int = 0, shape: tuple[int, ...] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value, shape))
    return path


def as_table(root: Path, sample_id: str) -> None:
    picture(root / "a.png", 9, (8, 8, 3))
    picture(root / "m.png")
    row = {"id": sample_id, "image": "a.png", "mask": "m.png"}
    (root / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")


def as_parquet(root: Path, sample_id: str) -> None:
    features = Features({"id": Value("string"), "image": Image(), "mask": Image()})
    cells = {"image": {"bytes": png(9), "path": None}, "mask": {"bytes": png(0), "path": None}}
    columns = {"id": [sample_id, "b"], **{name: [cell, cell] for name, cell in cells.items()}}
    Dataset.from_dict(columns, features=features).to_parquet(str(root / "train.parquet"))


def as_disk(root: Path, sample_id: str) -> None:
    features = Features({"id": Value("string"), "image": Image(), "mask": Image()})
    columns = {"id": [sample_id], "image": [{"bytes": png(9), "path": None}], "mask": [{"bytes": png(0), "path": None}]}
    Dataset.from_dict(columns, features=features).save_to_disk(str(root))


def as_coco(root: Path, sample_id: str) -> None:
    picture(root / f"{sample_id.replace(chr(92), '/').rpartition('/')[2]}.png", 9)
    image = {"id": 1, "file_name": f"{sample_id}.png", "height": 8, "width": 8}
    car = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]]}
    data = {"images": [image], "annotations": [car], "categories": [{"id": 1, "name": "car"}]}
    (root / "train.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("write", [as_table, as_parquet, as_disk])
@pytest.mark.parametrize("sample_id", BAD_IDS)
def test_ids_that_are_no_names_of_files_are_refused_at_opening(
    tmp_path: Path, write: Callable[[Path, str], None], sample_id: str
) -> None:
    write(tmp_path, sample_id)
    with pytest.raises(DataError, match="ids that cannot be the name of a file") as caught:
        load_segmentation_dataset(tmp_path, val_fraction=0)
    assert str(tmp_path) in str(caught.value) and repr(sample_id[:100]) in str(caught.value)
    assert sample_id not in {sample.id for sample in scan_dataset(DatasetConfig(path=str(tmp_path))).samples}


@pytest.mark.parametrize("write", [as_table, as_parquet, as_disk, as_coco])
@pytest.mark.parametrize("sample_id", ["bonn/0007", "été/日本 (1)", "2024-01-01T10:00", "a..b"])
def test_other_ids_are_kept(tmp_path: Path, write: Callable[[Path, str], None], sample_id: str) -> None:
    write(tmp_path, sample_id)
    assert sample_id in {sample.id for sample in scan_dataset(DatasetConfig(path=str(tmp_path))).samples}


def test_a_file_name_of_coco_that_climbs_is_refused(tmp_path: Path) -> None:
    as_coco(tmp_path, "x/../../../victim")
    with pytest.raises(DataError, match=r"ids that cannot be the name of a file \(1\): 'x/\.\./\.\./\.\./victim'"):
        load_segmentation_dataset(tmp_path)


def test_a_drive_of_windows_is_no_part_of_an_id(tmp_path: Path) -> None:
    as_coco(tmp_path, "D:\\data\\a")
    assert [sample.id for sample in scan_dataset(DatasetConfig(path=str(tmp_path))).samples] == ["data/a"]


def test_ids_of_a_stream_are_refused_when_they_are_read(tmp_path: Path) -> None:
    as_parquet(tmp_path, "../up")
    stream = open_dataset(DatasetConfig(path=str(tmp_path), streaming=True, labels=["a"]))[0]["train"]
    with pytest.raises(DataError, match=r"row '\.\./up': the id cannot be the name of a file"):
        list(stream)


# -- files of others ---------------------------------------------------------------------------------------------------


def outside_of_table(root: Path, secret: Path, named: str) -> None:
    picture(root / "m.png")
    (root / "metadata.csv").write_text(f"image,mask\n{named},m.png\n", encoding="utf-8")


def outside_of_parquet_paths(root: Path, secret: Path, named: str) -> None:
    picture(root / "m.png")
    Dataset.from_dict({"image": [named], "mask": ["m.png"]}).to_parquet(str(root / "train.parquet"))


def outside_of_parquet_cells(root: Path, secret: Path, named: str) -> None:
    columns = {"image": [{"bytes": None, "path": str(secret)}], "mask": [{"bytes": png(0), "path": "m.png"}]}
    table = Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "mask": Image(decode=False)}))
    pyarrow.parquet.write_table(
        table.with_format("arrow")[:].replace_schema_metadata(None), str(root / "train.parquet")
    )  # `to_parquet` would embed


def outside_of_labelme(root: Path, secret: Path, named: str) -> None:
    shape = {"label": "car", "points": [[1, 1], [6, 1], [6, 6]]}
    data = {"shapes": [shape], "imagePath": named, "imageHeight": 8, "imageWidth": 8}
    (root / "x.json").write_text(json.dumps(data), encoding="utf-8")


def outside_of_yolo(root: Path, secret: Path, named: str) -> None:
    (root / "data.yaml").write_text(f"names: [car]\ntrain: {Path(named).parent.as_posix()}\n", encoding="utf-8")
    secret.with_suffix(".txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n", encoding="utf-8")


OUTSIDE = [outside_of_table, outside_of_parquet_paths, outside_of_parquet_cells, outside_of_labelme, outside_of_yolo]


@pytest.mark.parametrize("write", OUTSIDE)
@pytest.mark.parametrize("way", ["relative", "absolute"])
def test_files_outside_the_folder_are_refused_unless_they_are_allowed(
    tmp_path: Path, write: Callable[[Path, Path, str], None], way: str
) -> None:
    root, secret = tmp_path / "data", picture(tmp_path / "home/private.png", 77, (8, 8, 3))
    root.mkdir()
    write(root, secret, "../home/private.png" if way == "relative" else str(secret))
    options: dict[str, Any] = {"val_fraction": 0, "labels": {"0": "a"}} if write is not outside_of_yolo else {}
    with pytest.raises(SegtuneError, match=r"private|home") as caught:
        load_segmentation_dataset(root, **options)
    assert "dataset.allow_outside=true" in str(caught.value)
    rows = load_segmentation_dataset(root, allow_outside=True, **options)["train"]
    assert np.asarray(rows[0]["image"]).max() == 77


def test_folders_that_the_recipe_names_may_lie_elsewhere(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png", 9)
    picture(tmp_path / "data/masks/a.png")
    rows = load_segmentation_dataset(tmp_path / "data", images="../photos", masks="masks", val_fraction=0)
    assert rows["train"][0]["id"] == "a"


def test_links_inside_the_folder_may_lead_out(tmp_path: Path) -> None:
    """As the Hub's cache has them, and whoever keeps pictures on another disk."""
    blob = picture(tmp_path / "blobs/0a1b", 9)
    root = tmp_path / "snapshot"
    outside_of_table(root, blob, "images/a.png") if root.mkdir() is None else None
    (root / "images").mkdir()
    (root / "images/a.png").symlink_to(blob)
    assert len(load_segmentation_dataset(root, val_fraction=0)["train"]) == 1


def test_nothing_of_a_private_file_is_in_a_message(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("root:hunter2\nme:swordfish\n", encoding="utf-8")
    root = tmp_path / "data"
    picture(root / "images/a.png", 9)
    (root / "data.yaml").write_text(f"names: [car]\ntrain: images\ntest: {tmp_path / 'passwords'}\n", encoding="utf-8")
    for allow in (False, True):
        with pytest.raises(SegtuneError) as caught:
            load_segmentation_dataset(root, allow_outside=allow)
        assert "hunter2" not in str(caught.value) and "data.yaml" in str(caught.value)


# -- no other way -----------------------------------------------------------------------------------------------------


def _is_id(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("id", "sample_id", "image_id")
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "id"
    return isinstance(node, ast.Name) and node.id in ("sample_id", "image_id")


def _paths(tree: ast.AST) -> Iterator[ast.AST]:
    """Expressions that make a path: a division, and the calls that put names together."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node.right
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("Path", "joinpath", "with_name", "with_stem"):
                yield from node.args


def test_no_path_is_made_of_an_id_but_by_path_inside() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    made = [
        f"{file.relative_to(SOURCE)}:{path.lineno}"  # type: ignore[attr-defined]
        for file in files
        for path in _paths(ast.parse(file.read_text(encoding="utf-8")))
        if any(map(_is_id, ast.walk(path)))
    ]
    callers = [file.name for file in files if "path_inside(" in file.read_text(encoding="utf-8")]
    assert made == [] and {"files.py", "comparisons.py", "convert.py"} <= set(callers) and len(files) > 100
