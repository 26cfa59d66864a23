from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from segtune.errors import UsageError
from segtune.imageio.read import SUFFIXES
from segtune.inference.outputs import COCO_FILE, Wanted, find_images, plan_targets


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/one.jpg", "a/two.PNG", "a/notes.txt", "a/deep/three.jpg", "b/one.jpg", "odd[1].jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def found(photos: Path, *patterns: str) -> list[str]:
    return [path.relative_to(photos).as_posix() for path in find_images([f"{photos}/{p}" for p in patterns])]


def test_files_folders_and_globs(photos: Path) -> None:
    assert found(photos, "a") == ["a/one.jpg", "a/two.PNG"]
    assert found(photos, "b/one.jpg", "a/one.jpg") == ["b/one.jpg", "a/one.jpg"]
    assert found(photos, "*/one.jpg") == ["a/one.jpg", "b/one.jpg"]
    assert found(photos, "a/**/*.jpg") == ["a/deep/three.jpg", "a/one.jpg"]
    assert found(photos, "odd[1].jpg") == ["odd[1].jpg"]


def test_folders_give_all_types_of_pictures_that_data_sets_have(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix}").touch()
    for name in (".hidden.png", "a.txt", "a.mp4"):
        (tmp_path / name).touch()
    assert {Path(path).name for path in find_images([str(tmp_path)])} == {f"a{suffix}" for suffix in SUFFIXES}


def test_images_named_twice_are_taken_once_in_the_first_place(photos: Path) -> None:
    assert found(photos, "b/one.jpg", "a", "b", "a/../a/one.jpg") == ["b/one.jpg", "a/one.jpg", "a/two.PNG"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("a/none.jpg", "a/none.jpg: no such image"), ("*.gif", "no such image"), ("empty", "no images in this folder")],
)
def test_nothing_found(photos: Path, pattern: str, message: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(UsageError, match=message):
        find_images([str(photos / "a"), str(photos / pattern)])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["in/a.jpg"], ["a.png"]),
        (["in/a.jpg", "in/b.jpg"], ["a.png", "b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["x/a.jpg", "x/deep/a.jpg"], ["a.png", "deep/a.png"]),
        (["in/a.jpg", "in/a.bmp", "in/b.jpg"], ["a.jpg.png", "a.bmp.png", "b.png"]),
        (["in/v1.0.jpg", "in/v1.1.jpg"], ["v1.0.png", "v1.1.png"]),
        (["in/clip.mp4", "in/a.tif"], ["clip", "a.png"]),
    ],
)
def test_targets_are_unique(tmp_path: Path, images: list[str], masks: list[str]) -> None:
    out = tmp_path / "out"
    targets = plan_targets([tmp_path / image for image in images], out, Wanted())
    assert [target.paths for target in targets] == [[out / mask] for mask in masks]


def test_what_else_is_wanted_lies_beside_the_mask(tmp_path: Path) -> None:
    save_geotiff(tmp_path / "in" / "map.tif")
    out, images = tmp_path / "out", [tmp_path / "in" / "a.b.jpg", tmp_path / "in" / "map.tif"]
    wanted = Wanted(overlay=True, confidence="tif", polygons="geojson")
    assert [[path.name for path in target.paths] for target in plan_targets(images, out, wanted)] == [
        ["a.b.png", "a.b_overlay.png", "a.b_confidence.tif", "a.b.geojson"],
        ["map.tif", "map_overlay.png", "map_confidence.tif", "map.geojson"],
    ]
    (target,) = plan_targets(images[:1], out, Wanted(confidence="png", polygons="labelme"))
    assert [path.name for path in target.paths] == ["a.b.png", "a.b_confidence.png", "a.b.json"]
    (target,) = plan_targets(images[:1], out, Wanted(polygons="coco"))  # one file for all
    assert (target.name, target.paths) == ("a.b.jpg", [out / "a.b.png"])
    (target,) = plan_targets([tmp_path / "in" / "a.mp4"], out, Wanted(overlay=True))
    assert target.paths == [out / "a", out / "a_overlay.mp4"]
    with pytest.raises(UsageError, match=r"a\.mp4: --confidence and --polygons are for images"):
        plan_targets([tmp_path / "in" / "a.mp4"], out, Wanted(polygons="coco"))


def save_geotiff(path: Path) -> None:
    path.parent.mkdir()
    place = {33550: (10.0, 10.0, 0.0), 33922: (0.0, 0.0, 0.0, 300000.0, 5600000.0, 0.0)}
    Image.new("L", (4, 4)).save(path, tiffinfo=place)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    images = [tmp_path / "a.jpg", tmp_path / "a_overlay.jpg"]
    names = [target.mask.name for target in plan_targets(images, tmp_path / "out", Wanted())]
    assert names == ["a.png", "a_overlay.png"]
    with pytest.raises(UsageError, match=r"a_overlay\.png would be written twice"):
        plan_targets(images, tmp_path / "out", Wanted(overlay=True))


def test_targets_do_not_lie_among_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for output in (tmp_path / "in", tmp_path / "link", tmp_path / "in" / ".." / "in"):
        with pytest.raises(UsageError, match="would lie among the input images"):
            plan_targets([tmp_path / "in" / "a.png"], output, Wanted())
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(UsageError, match="would lie among the input images"):
        plan_targets([Path("a.png")], Path(), Wanted())
    assert plan_targets([Path("a.png")], Path("masks"), Wanted())[0].mask == Path("masks/a.png")
    with pytest.raises(UsageError, match=r"annotations\.coco\.json would lie among the input images"):
        plan_targets([Path("x/a.png"), Path("b/c/a.png"), Path("out/a.png")], Path("out"), Wanted(polygons="coco"))
    assert os.listdir() == []  # nothing is made yet


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    images, out = [tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out"
    out.mkdir()
    (out / "b.png").touch()
    with pytest.raises(UsageError, match=r"out/b\.png exists already; name another folder, or say --overwrite"):
        plan_targets(images, out, Wanted())
    (out / COCO_FILE).touch()
    with pytest.raises(UsageError, match=r"b\.png and 1 more exist already"):
        plan_targets(images, out, Wanted(polygons="coco"))
    assert len(plan_targets(images, out, Wanted(polygons="coco"), overwrite=True)) == 2
