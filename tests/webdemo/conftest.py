from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support.demo_server import Running, environment
from support.networks import TINY

LABELS = LabelMap.from_names(["ocean", "land <b>", "ice"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of random weights that tells three classes apart."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo") / "run" / "best"
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, **LABELS.config_fields())).save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def running(checkpoint: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`segtune demo`, which a signal ends and which leaves nothing."""
    place = tmp_path_factory.mktemp("server")
    words = ["demo", str(checkpoint), "--port", "0", "--device", "cpu", "--example", str(photo), "--max-mb", "1"]
    command = [sys.executable, "-m", "segtune", *words]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(place), stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(rf"the demo of {checkpoint} is at (\S+) \(Ctrl-C ends it\)\n", line)
            assert found, line + (place / "log").read_text()
            (folder,) = place.glob("segtune-demo-*")
            yield Running(found[1], folder)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60)[0] == "ended\n" and process.returncode == 0
        finally:
            process.kill()
            process.wait()
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["log"]
    assert (place / "log").read_text() == ""
