"""Shards in an object store and among files of the Hub train as those of this machine do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Image

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.data.streaming import ShardStream
from segtune.errors import DataError, SegtuneError, UsageError
from support.minihub import environment
from support.minihub import serve as serve_hub

ROOT = Path(__file__).resolve().parents[2]
SHARDS = (4, 1, 6, 3)  # rows
RECIPE = (
    "dataset: {{path: '{path}', streaming: true, shuffle_buffer: 3}}\n"
    "transforms: {{crop_size: 16}}\n"
    "model: {{config: {{hidden_sizes: [8, 16, 40, 64], depths: [1, 1, 1, 1], decoder_hidden_size: 16}}}}\n"
    "training: {{max_steps: 6, save_every: 2, log_every: 1, batch_size: 2, device: cpu, report: false, overlays: 0}}\n"
)


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    start = 0
    for shard, size in enumerate((*SHARDS, 3)):
        numbers = range(start, start + size)
        start += size
        columns = {
            "id": [f"{i:02}" for i in numbers],
            "image": [PIL.Image.fromarray(np.full((16, 17, 3), 10 * i, np.uint8)) for i in numbers],
            "mask": [PIL.Image.fromarray(np.full((16, 17), i % 2, np.uint8)) for i in numbers],
        }
        table = Dataset.from_dict(columns).cast_column("image", Image()).cast_column("mask", Image())
        split = "train" if shard < len(SHARDS) else "validation"
        table.to_parquet(folder / f"{split}-{shard:05d}.parquet")
    (folder / "labels.json").write_text('["even", "odd"]')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored") / "shards"
    write_shards(root)
    return root


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[str]:
    """The address of the same shards in a store."""
    import datasets

    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from support.object_store import BUCKET, serve

    offline, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, False
    with serve():
        for path in folder.iterdir():
            boto3.client("s3").upload_file(str(path), BUCKET, f"data/{path.name}")
        yield f"s3://{BUCKET}/data"
    datasets.config.HF_HUB_OFFLINE = offline


def ids(dataset: Any, state: Any = None, count: int = 30) -> list[tuple[str, Any]]:
    stream = ShardStream(dataset["train"], buffer=4, seed=3)
    return [(key.row["id"], after) for key, after in islice(stream.rows(state), count)]


def test_rows_and_states_are_those_of_files(folder: Path, store: str) -> None:
    here, _ = open_dataset(DatasetConfig(path=str(folder), streaming=True))
    there, label_map = open_dataset(DatasetConfig(path=store, streaming=True))
    assert label_map.names == ("even", "odd")  # labels.json lies in the store
    assert (there["train"].num_shards, list(there["val"]["id"])) == (len(SHARDS), ["14", "15", "16"])
    rows = ids(there)
    assert rows == ids(here)
    for place in (0, 5, 13, 14, 20):
        assert ids(there, rows[place][1], 5) == rows[place + 1 : place + 6]


def test_without_streaming_all_of_it_is_copied(store: str) -> None:
    dataset, _ = open_dataset(DatasetConfig(path=store))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 14, "val": 3}


@pytest.mark.parametrize(
    ("path", "options", "error", "message"),
    [
        ("s3://nobody/x", {}, DataError, "^s3://nobody/x: the store has no such bucket"),
        ("s3://corpus/none", {}, UsageError, r"^s3://corpus/none: no \.parquet files of a split in it"),
        ("s3://corpus/data", {"format": "coco"}, UsageError, "of s3://corpus/data, parquet files alone are read"),
        ("s3://corpus/data", {"images": "picture"}, UsageError, "s3://corpus/data has no column 'picture'"),
    ],
)
def test_faults_name_the_address(
    store: str, path: str, options: dict[str, Any], error: type[SegtuneError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        open_dataset(DatasetConfig(path=path, streaming=True, **options))
    assert "\n" not in str(raised.value)


def train(recipe: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segtune", "train", str(recipe), f"training.output_dir={output}", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_over_a_store_ends_with_the_weights_of_one_over_files(folder: Path, store: str, tmp_path: Path) -> None:
    weights = {}
    for name, path in (("files", str(folder)), ("store", store)):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(path=path))
        done = train(tmp_path / f"{name}.yaml", tmp_path / name)
        assert done.returncode == 0, done.stderr
        weights[name] = (tmp_path / name / "final" / "model.safetensors").read_bytes()
    assert weights["store"] == weights["files"]
    resumed = f"training.resume={tmp_path}/store/checkpoints/step-000004"
    done = train(tmp_path / "store.yaml", tmp_path / "again", resumed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "final" / "model.safetensors").read_bytes() == weights["files"]


@pytest.mark.slow
def test_a_store_that_goes_away_is_one_line(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(path=store))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = train(tmp_path / "recipe.yaml", tmp_path / "run")
    assert done.returncode == 1 and not (tmp_path / "run" / "final").exists()
    lines = done.stderr.splitlines()
    assert lines[-1].startswith(f"error: {store}: the store does not answer ("), done.stderr
    assert "Traceback" not in done.stderr


SCRIPT = """
import sys
from itertools import islice
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.data.streaming import ShardStream
from segtune.errors import SegtuneError
try:
    dataset, label_map = open_dataset(DatasetConfig(path=sys.argv[1], streaming=True))
except SegtuneError as error:
    sys.exit(f"error: {error}")
print([key.row["id"] for key, _ in islice(ShardStream(dataset["train"], 4, 3).rows(), 30)], label_map.names)
"""


@pytest.mark.slow
def test_files_of_the_hub_are_streamed(folder: Path, tmp_path: Path) -> None:
    here, _ = open_dataset(DatasetConfig(path=str(folder), streaming=True))
    upload = (
        "import sys, huggingface_hub as hub\nhub.create_repo('tester/rows', repo_type='dataset')\n"
        "hub.upload_folder(repo_id='tester/rows', repo_type='dataset', folder_path=sys.argv[1], path_in_repo='deep')\n"
    )
    with serve_hub() as (_, url):
        variables = {**os.environ, **environment(url, tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", *words]
            return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200)

        assert run(upload, str(folder)).returncode == 0
        done = run(SCRIPT, "hf://datasets/tester/rows/deep")
        expected = [name for name, _ in ids(here)]
        assert (done.returncode, done.stdout) == (0, f"{expected} ('even', 'odd')\n"), done.stderr
        missing = run(SCRIPT, "hf://datasets/tester/nothing/deep")
    assert missing.returncode == 1 and missing.stderr.splitlines()[-1].startswith(
        "error: hf://datasets/tester/nothing/"
    )
