"""The examples in documents, made small enough for tests, and a place where they can run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = "model.config={hidden_sizes: [8, 16, 24, 32], depths: [1, 1, 1, 1], num_attention_heads: [1, 2, 3, 4]}"
# what is added to a command, by a word in it
SMALLER = {
    "train": ["training.max_steps=2", "training.batch_size=2", "training.eval_every=null", "model.name=null"],
    "pretrain": ["--steps=2", "training.batch_size=2", "transforms.crop_size=64", TINY],
    "crossval": ["--folds=2", "training.max_steps=2", "training.batch_size=2", TINY],
    "tune": ["--trials=1", "training.max_steps=2", "training.batch_size=2", TINY],
    "label": ["--min-confidence=0"],
    "bench": ["--variants=b0", "--size=64", "--labels=3", "--repeats=1"],
    "benchmarks/compare_transformers.py": ["--size=64", "--repeats=1", "--variants=b0", "--plot-sizes=32,64"],
}


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the text of each block that states its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def command_lines(block: str) -> list[str]:
    lines = (line.split("  #")[0].strip() for line in block.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def smaller(command: str) -> list[str]:
    """The words of a command, with what makes it take seconds."""
    words = shlex.split(command)
    return [*words, *next((more for word, more in SMALLER.items() if word in words), [])]


def smaller_code(code: str) -> str:
    """The same for a piece of Python: its training."""
    return code.replace('"training.max_steps=40"', f'"training.max_steps=2", "training.batch_size=2", "{TINY}"')


def run_examples(examples: Sequence[tuple[str, str, Any]], folder: Path, **variables: str) -> None:
    """Run examples, a page, its kind and the code or the words of each, in one process in a folder."""
    (folder / "examples.json").write_text(json.dumps(examples), encoding="utf-8")
    script = ROOT / "tests" / "support" / "workers" / "run_examples.py"
    command = [sys.executable, str(script), str(folder / "examples.json"), str(ROOT)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **variables, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]


def make_workplace(folder: Path) -> None:
    """`data/mine`, a few satellite tiles in the layout of the README, `data/more` without labels, and the recipes."""
    earth = ROOT / "src" / "segtune" / "data" / "earth"
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            target = folder / "data" / "mine" / kind / split
            target.mkdir(parents=True)
            for number, file in enumerate(sorted((earth / kind / split).glob(f"*.{suffix}"))[:count]):
                shutil.copy(file, target / f"Seq{number}_{file.name}")
    (folder / "data" / "more").mkdir()
    for file in sorted((earth / "images" / "train").glob("*.jpg"))[6:9]:
        shutil.copy(file, folder / "data" / "more" / file.name)
    classes = {"0": "ocean", "1": "land", "2": "land", "3": "land"}  # two ids of one name are merged
    (folder / "data" / "mine" / "classes.json").write_text(json.dumps({"classes": classes, "ignore_id": 255}))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
