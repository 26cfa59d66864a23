"""Prediction on Ray: what is asked of a cluster, and a small one on this machine with an object store."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from PIL import Image

from segtune.errors import UsageError
from segtune.imageio.object_store import existing_files, list_stored, read_stored, write_stored
from segtune.inference.outputs import Wanted
from segtune.inference.parallel.ray_data import base_names, check_job, find_stored_images

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["s3://b/in/a.jpg", "s3://b/in/deep/b.png"], ["a", "deep/b"]),
        (["s3://b/in/a.jpg"], ["a"]),
        (["s3://b/x/a.jpg", "s3://b/y/a.jpg"], ["x/a", "y/a"]),
        (["/in/a.jpg", "/in/a.bmp", "/in/v1.0.jpg"], ["a.jpg", "a.bmp", "v1.0"]),
    ],
)
def test_masks_are_named_as_without_ray(images: list[str], names: list[str]) -> None:
    assert base_names(images) == names


def test_images_of_two_stores_are_refused() -> None:
    with pytest.raises(UsageError, match="images of one store"):
        base_names(["s3://b/a.jpg", "/in/a.jpg"])


@pytest.mark.parametrize(
    ("output", "wanted", "overwrite", "message"),
    [
        ("s3://b/out", Wanted(polygons="coco"), False, "--polygons coco does not go with --ray"),
        ("s3://b/out.parquet", Wanted(overlay=True), False, "tables hold masks alone"),
        ("s3://b/out", Wanted(), True, "--overwrite does not go with --ray"),
    ],
)
def test_what_is_not_made_on_ray(output: str, wanted: Wanted, overwrite: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_job(output, wanted, overwrite)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--ray needs the package ray: pip install 'segtune\[ray\]'"):
        check_job("out", Wanted(), False)


def test_images_on_this_machine(earth: Path, tmp_path: Path) -> None:
    photo = min((earth / "images" / "test").iterdir())
    assert find_stored_images([str(photo), f"{photo.parent}/*.jpg"])[0] == str(photo)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UsageError, match=r"a\.mp4: --ray takes images"):
        find_stored_images([f"{tmp_path}/*"])


def test_stores_are_for_ray(segtune_command: Any, checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = segtune_command("predict", checkpoint, "s3://b/a.jpg", "--output", tmp_path / "out")
    assert code == 2 and "s3://b/a.jpg is in an object store: --ray local reads and writes these" in err
    code, _, err = segtune_command("predict", checkpoint, tmp_path, "--output", "s3://b/out")
    assert code == 2 and "s3://b/out is in an object store" in err


# --- a cluster of this machine, and a store ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(earth: Path) -> Iterator[list[str]]:
    """Seven tiles and a broken picture in a bucket."""
    from support.object_store import serve

    with serve():
        for number, photo in enumerate(sorted((earth / "images" / "test").iterdir())[:7]):
            write_stored(f"s3://corpus/in/{number}.jpg", photo.read_bytes())
        write_stored("s3://corpus/in/broken.jpg", b"no picture")
        yield [f"s3://corpus/in/{number}.jpg" for number in range(7)]


def predict(checkpoint: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segtune", "predict", str(checkpoint), *map(str, words)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def expected(earth: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What is made of the tiles without Ray, by the number of the tile and the ending."""
    out = tmp_path_factory.mktemp("alone")
    photos = sorted((earth / "images" / "test").iterdir())[:7]
    done = predict(checkpoint, *photos, "--output", out, "--overlay")
    assert done.returncode == 0, done.stderr
    return {
        str(number): {end: (out / f"{photo.stem}{end}").read_bytes() for end in (".png", "_overlay.png")}
        for number, photo in enumerate(photos)
    }


@pytest.mark.slow
def test_from_a_store_into_a_store(corpus: list[str], checkpoint: Path, expected: dict[str, Any]) -> None:
    words = ("s3://corpus/in", "--output", "s3://corpus/out", "--ray", "local", "--overlay")
    done = predict(checkpoint, *words)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert "1 of 8 images could not be predicted, the others are done:" in done.stderr
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("s3://corpus/in/broken.jpg: "))
    assert "/tmp" not in told and "Traceback" not in done.stderr
    made = {name: read_stored(f"s3://corpus/out/{name}") for name in existing_files("s3://corpus/out")}
    made.pop(".predict/settings.json")
    assert made == {f"{number}{end}": content for number, ends in expected.items() for end, content in ends.items()}
    refused = predict(checkpoint, *words)
    assert refused.returncode == 2 and "s3://corpus/out/0.png and 6 more exist already" in refused.stderr
    again = predict(checkpoint, *corpus, *words[1:], "--resume")
    assert again.stdout == "7 masks in s3://corpus/out; 7 of 7 images were done before\n", again.stderr


@pytest.mark.slow
def test_into_tables(corpus: list[str], checkpoint: Path, expected: dict[str, Any]) -> None:
    out = "s3://corpus/masks.parquet"
    words = ("--output", out, "--ray", "local")
    first = predict(checkpoint, *corpus[:3], *words)
    assert first.returncode == 0, first.stderr
    done = predict(checkpoint, *corpus, *words, "--resume")
    assert done.stdout == f"7 masks in {out}; 3 of 7 images were done before\n", done.stderr
    refused = predict(checkpoint, *corpus, *words)  # seven masks in two tables
    assert refused.returncode == 2 and ".parquet and 1 more exist already" in refused.stderr
    rows: dict[str, dict[str, Any]] = {}
    for table in list_stored(f"{out}/*.parquet", bool):
        content = read_stored(table)
        assert content is not None
        for row in pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist():
            assert row["image"] not in rows
            rows[row["image"]] = row
    assert sorted(rows) == corpus
    for number, image in enumerate(corpus):
        assert rows[image]["mask"] == expected[str(number)][".png"]
        with Image.open(io.BytesIO(rows[image]["mask"])) as mask:
            assert (rows[image]["width"], rows[image]["height"]) == mask.size


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(checkpoint: Path, earth: Path, tmp_path: Path) -> None:
    words = (earth / "images" / "test", "--output", tmp_path / "out", "--ray", "127.0.0.1:9")
    done = predict(checkpoint, *words)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "error: --ray 127.0.0.1:9: no cluster there"
    )
