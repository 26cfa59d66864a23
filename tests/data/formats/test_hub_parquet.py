"""Data sets that `datasets` opens: on disk, as parquet, from a Hub on loopback and then from its cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import load_segmentation_dataset, open_dataset, save_split
from segtune.data.formats import hub_parquet
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask


def picture(value: int, mode: str = "RGB") -> PIL.Image.Image:
    return PIL.Image.new(mode, (6, 4), (value,) * 3 if mode == "RGB" else value)


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    picture(value, mode).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int, image: str = "image", mask: str = "mask", **more: list[Any]) -> Dataset:
    columns = {image: [picture(i) for i in range(count)], mask: [picture(i, "L") for i in range(count)], **more}
    return Dataset.from_dict(columns).cast_column(image, Image()).cast_column(mask, Image())


def ids(dataset: DatasetDict) -> dict[str, list[str]]:
    return {split: list(found["id"]) for split, found in dataset.items()}


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_saved_splits_with_other_names_of_columns(tmp_path: Path) -> None:
    data = DatasetDict(train=rows(2, "pixel_values", "label"), validation=rows(1, "pixel_values", "label"))
    data["unlabelled"] = rows(1, "pixel_values", "label")
    data.save_to_disk(tmp_path)
    (tmp_path / "id2label.json").write_text('{"0": "flat-road", "1": "flat-sidewalk"}')
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert ids(dataset) == {"train": ["000000", "000001"], "val": ["000000"]}
    assert label_map.names == ("flat-road", "flat-sidewalk")
    assert [read_mask(row["mask"])[0, 0] for row in dataset["train"]] == [0, 1]
    assert sorted(dataset["train"][0]) == ["id", "image", "mask"]
    check_masks(dataset, label_map)


def test_one_split_is_divided_and_the_division_is_saved(tmp_path: Path) -> None:
    rows(10, name=[f"n{i}" for i in range(10)], image_id=list(range(100, 110))).save_to_disk(tmp_path / "data")
    dataset = load_segmentation_dataset(tmp_path / "data", val_fraction=0.3, split_seed=1)
    assert {split: len(found) for split, found in dataset.items()} == {"train": 7, "val": 3}
    assert set(dataset["train"]["id"]) | set(dataset["val"]["id"]) == {str(i) for i in range(100, 110)}
    for split in dataset:
        for row in dataset[split]:
            assert read_mask(row["mask"])[0, 0] == int(row["id"]) - 100
    save_split(dataset, tmp_path / "split.json")
    assert ids(load_segmentation_dataset(tmp_path / "data", split_file=tmp_path / "split.json")) == ids(dataset)


def test_ids_that_are_not_unique_are_numbers_of_rows(tmp_path: Path) -> None:
    rows(2, id=["same", "same"]).save_to_disk(tmp_path)
    assert ids(load_segmentation_dataset(tmp_path, val_fraction=0)) == {"train": ["000000", "000001"]}


def test_masks_as_arrays_with_names(tmp_path: Path) -> None:
    labels = Sequence(Sequence(ClassLabel(names=["sky", "road"])))
    features = Features({"img": Image(), "labels": labels, "note": Value("string")})
    data = {"img": [picture(1)], "labels": [[[0, 1, 1, 0, 0, 0]] * 4], "note": ["x"]}
    Dataset.from_dict(data, features=features).save_to_disk(tmp_path)
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert label_map.names == ("sky", "road")
    assert read_mask(dataset["train"][0]["mask"]).tolist() == [[0, 1, 1, 0, 0, 0]] * 4
    check_masks(dataset, label_map)


def test_columns_that_cannot_be_told(tmp_path: Path) -> None:
    rows(1, "left", "right").save_to_disk(tmp_path)
    with pytest.raises(UsageError, match=r"which columns are images and masks\? Set dataset\.images .* left \(Image\)"):
        load_segmentation_dataset(tmp_path)
    dataset = load_segmentation_dataset(tmp_path, images="left", masks="right")
    assert sorted(dataset["train"][0]) == ["id", "image", "mask"]
    with pytest.raises(UsageError, match=r"has no column 'middle' \(dataset\.masks\); it has left, right"):
        load_segmentation_dataset(tmp_path, images="left", masks="middle")


# -- parquet ----------------------------------------------------------------------------------------------------------


def test_parquet_shards_with_pictures(tmp_path: Path) -> None:
    for shard in range(2):
        rows(2, id=[f"{shard}{i}" for i in range(2)]).to_parquet(tmp_path / f"data/train-0000{shard}-of-00002.parquet")
    rows(1).to_parquet(tmp_path / "data/validation-00000-of-00001.parquet")
    (tmp_path / "labels.json").write_text('["a", "b"]')
    dataset, label_map = open_dataset(DatasetConfig(path=str(tmp_path)))
    assert ids(dataset) == {"train": ["00", "01", "10", "11"], "val": ["000000"]}
    check_masks(dataset, label_map)
    assert ids(load_segmentation_dataset(tmp_path / "data" / "validation-00000-of-00001.parquet", val_fraction=0)) == {
        "val": ["000000"]
    }


def test_parquet_whose_splits_have_other_names(tmp_path: Path) -> None:
    for name in ("fold1", "fold2", "extra"):
        rows(1, id=[name]).to_parquet(tmp_path / f"{name}.parquet")
    splits = {"train": "fold1", "val": "fold2"}
    assert ids(load_segmentation_dataset(tmp_path, splits=splits)) == {"train": ["fold1"], "val": ["fold2"]}


def test_parquet_with_bytes_of_others(tmp_path: Path) -> None:
    """Without the notes that `datasets` leaves: plain columns of bytes, and structures of bytes and paths."""
    features = Features({"image": Value("binary"), "mask": {"bytes": Value("binary"), "path": Value("string")}})
    data = {"image": [png(7)], "mask": [{"bytes": png(1, "L"), "path": "m.png"}]}
    table = Dataset.from_dict(data, features=features).with_format("arrow")[:]
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.replace_schema_metadata(None), tmp_path / "train.parquet")
    row = load_segmentation_dataset(tmp_path)["train"][0]
    assert (np.asarray(row["image"])[0, 0].tolist(), read_mask(row["mask"])[0, 0]) == ([7, 7, 7], 1)


def test_parquet_with_paths(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(3, "L"))
    Dataset.from_dict({"image": ["a.png"], "mask": ["b.png"], "split": ["validation"]}).to_parquet(
        tmp_path / "index.parquet"
    )
    assert ids(load_segmentation_dataset(tmp_path)) == {"val": ["a"]}


# -- the Hub ----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as reading one data set needs."""

    files: dict[str, bytes]
    sha = hashlib.sha1(b"one commit").hexdigest()

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.sha, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def entry(self, path: str) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(self.files[path]) + self.files[path]).hexdigest()
        return {"type": "file", "path": path, "oid": oid, "size": len(self.files[path])}

    def tree(self, folder: str) -> list[dict[str, Any]]:
        """What lies in a folder, and below it where that is asked for."""
        folders = {str(parent) for name in self.files for parent in PurePosixPath(name).parents} - {"."}
        entries = [self.entry(name) for name in self.files]
        entries += [{"type": "directory", "path": name, "oid": self.sha, "size": 0} for name in sorted(folders)]
        if "recursive=True" in self.path or "recursive=true" in self.path:
            return [entry for entry in entries if entry["path"].startswith(f"{folder}/" if folder else "")]
        return [entry for entry in entries if str(PurePosixPath(entry["path"]).parent) == (folder or ".")]

    def do_GET(self) -> None:
        path = self.path.split("?")[0].removeprefix("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api, files = "api/datasets/tester/scenes", "datasets/tester/scenes/resolve/"
        if path.startswith(files):
            name = path.removeprefix(files).split("/", 1)[1]
            if name not in self.files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound")
            return self.answer(200, self.files[name], ETag=f'"{self.entry(name)["oid"]}"')
        if path.startswith(f"{api}/tree/"):
            found = self.tree(path.removeprefix(f"{api}/tree/").partition("/")[2])
        elif path.startswith(f"{api}/paths-info/"):
            found = [self.entry(name) for name in self.files if name.encode() in body]
        elif path == api or path.startswith(f"{api}/revision/"):
            names = [{"rfilename": name} for name in self.files]
            found = {"id": "tester/scenes", "sha": self.sha, "private": False, "siblings": names, "tags": []}
        else:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_POST = do_GET

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    rows(2, "pixel_values", "label").to_parquet(tmp_path / "t.parquet")
    rows(1, "pixel_values", "label").to_parquet(tmp_path / "v.parquet")
    Hub.files = {
        "README.md": b"# scenes",
        "data/train-00000-of-00001.parquet": (tmp_path / "t.parquet").read_bytes(),
        "data/validation-00000-of-00001.parquet": (tmp_path / "v.parquet").read_bytes(),
        "id2label.json": b'{"0": "road", "1": "sky"}',
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import sys
from segtune.data.config import DatasetConfig
from segtune.data.lazy_rows import decoded
from segtune.data.dataset import open_dataset
from segtune.errors import UsageError
try:
    dataset, label_map = open_dataset(DatasetConfig(path=sys.argv[1], val_fraction=0))
except UsageError as error:
    sys.exit(f"UsageError: {error}")
print(list(dataset["train"]["id"]), label_map.names, dataset["train"][1]["mask"].getpixel((0, 0)))
if len(sys.argv) > 2:
    dataset, label_map = open_dataset(DatasetConfig(path=sys.argv[1], streaming=True))
    print([decoded(row)["mask"].getpixel((0, 0)) for row in dataset["train"]], label_map.names, len(dataset["val"]))
"""


def run(path: str, home: Path, port: int, *more: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_DATASETS_OFFLINE": str(int(offline)),
    }
    command = [sys.executable, "-c", SCRIPT, path, *more]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_hub_and_its_cache(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    expected = "['000000', '000001'] ('road', 'sky') 1\n"
    done = run("hub://tester/scenes", tmp_path / "home", hub.server_port)
    assert done.stdout == expected, done.stderr
    assert run("hub://tester/scenes", tmp_path / "home", 9, offline=True).stdout == expected
    away = run("hub://tester/scenes", tmp_path / "home", 9)
    assert away.stdout == expected, away.stderr
    assert "http://127.0.0.1:9 gives no answer" in away.stderr and "Retrying" not in away.stderr
    streamed = run("hub://tester/scenes", tmp_path / "home", hub.server_port, "stream")
    assert streamed.stdout == f"{expected}[0, 1] ('road', 'sky') 1\n", streamed.stderr
    absent = run("hub://tester/absent", tmp_path / "home", hub.server_port)
    assert absent.stderr.splitlines()[-1].startswith(
        "UsageError: dataset.path = hub://tester/absent: the Hub's data set tester/absent cannot be loaded"
    )


def test_a_missing_folder_of_a_recipe_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", pytest.fail)
    with pytest.raises(UsageError, match=r"data/absent does not exist: put the .* of the Hub is hub://data/absent\)"):
        load_segmentation_dataset("data/absent")


def test_local_files_are_not_counted_at_a_host_that_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.load, "get_session", lambda: SimpleNamespace(head=lambda url, **_: asked.append(url)))
    rows(3).to_parquet(tmp_path / "train.parquet")
    datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"))
    assert len(asked) == 1  # what it does by itself
    load_segmentation_dataset(tmp_path, val_fraction=0)
    assert len(asked) == 1


def test_repository_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration and revision go to `load_dataset` as they are."""
    asked = {}

    def load_dataset(*args: Any, **options: Any) -> Dataset:
        asked.update(dict(zip(("path", "name"), args, strict=True)) | options)
        return rows(1)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = load_segmentation_dataset("hub://a/b", name="full", revision="refs/convert/parquet", val_fraction=0)
    assert ids(dataset) == {"train": ["000000"]}
    assert asked == {"path": "a/b", "name": "full", "revision": "refs/convert/parquet"}


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/home/x/.cache"),
        OSError(30, "Read-only file system", "/home/x/.cache"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub_parquet.datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"^the cache /home/x/.cache cannot be written \(.*HF_HOME$"):
        hub_parquet.load_uncounted("parquet")
