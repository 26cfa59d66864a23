"""Where commands meet faults: eight pictures, a recipe, and runs that nothing disturbed to compare with."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from faults import forks
from faults.forks import Ended

FAULTS = ("lost", "silent", "traceback", "hang", "outside")
STEPS = 4
RECIPE = f"""\
dataset: {{path: data}}
transforms: {{crop_size: 32}}
model:
  name: null
  config: {{hidden_sizes: [8, 16, 20, 32], depths: [1, 1, 1, 1], decoder_hidden_size: 16}}
training: {{max_steps: {STEPS}, learning_rate: 0.01, batch_size: 2, eval_every: 2, save_every: 1, device: cpu}}
"""
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("training.report=false",),
    "reported": (),
    "worker": ("training.report=false", "training.num_workers=1"),
    "average": (
        "training.report=false",
        "training.ema_decay=0.9",
        "training.accumulation_steps=2",
        "training.batch_size=1",
    ),
    "taught": ("training.report=false", "training.distill={teacher: teacher, cache: logits}"),
    "unlabelled": (
        "training.report=false",
        "training.ema_decay=0.9",
        "dataset.unlabelled=more",
        "training.semi={min_confidence: 0.4, start_step: 1, ramp_steps: 0}",
    ),
}


@dataclass
class Verdict:
    """What went wrong in a case, in words, by kind of fault; empty where all held."""

    faults: dict[str, str] = field(default_factory=dict)

    def add(self, fault: str, text: str) -> None:
        assert fault in FAULTS
        self.faults.setdefault(fault, text)

    @classmethod
    def of(cls, *ends: Ended) -> Verdict:
        """What can be seen of any command: that it hung, broke down, or touched what it may not."""
        verdict = cls()
        for ended in ends:
            if ended.code is None:
                verdict.add("hang", ended.said[-500:])
            if ended.is_traceback:
                verdict.add("traceback", ended.said[-1500:])
            if ended.outside:
                verdict.add("outside", "; ".join(ended.outside))
        return verdict


@dataclass(frozen=True)
class Case:
    """A command, or several, under one fault.

    Attributes:
        judge: is given an empty folder to work in.
    """

    kind: str
    name: str
    judge: Callable[[Path], Verdict]


class Workplace:
    """The data and the runs that cases begin from; they are made when they are asked for, in forks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secret = root / "secret"
        self.secret.mkdir()
        PIL.Image.new("RGB", (48, 48), "red").save(self.secret / "private.png")
        PIL.Image.new("L", (48, 48), 1).save(self.secret / "mask.png")
        (self.secret / "notes.txt").write_text("a secret\n")
        self.place = root / "undisturbed"
        write_data(self.place / "data")
        write_unlabelled(self.place / "more")
        (self.place / "tiny.yaml").write_text(RECIPE)

    def prepare(self, folder: Path, variant: str = "plain") -> None:
        """Data and recipe, for a case; and what a variant of the training needs besides."""
        shutil.copytree(self.place / "data", folder / "data")
        shutil.copy(self.place / "tiny.yaml", folder)
        if variant == "taught":
            shutil.copytree(self.undisturbed("plain") / "best", folder / "teacher")
        if variant == "unlabelled":
            shutil.copytree(self.place / "more", folder / "more")

    def others(self) -> Path:
        """Weights of a network of the same classes in the layout of others, a file of PyTorch."""
        path = self.root / "others.pth"
        if not path.exists():
            write_original(path)
        return path

    def undisturbed(self, variant: str, *more: str) -> Path:
        """The run folder of a training that nothing disturbed, with more words in its command."""
        name = "-".join([variant, *more])
        run = self.place / name
        if variant == "taught" and not (self.place / "teacher").exists():
            shutil.copytree(self.undisturbed("plain") / "best", self.place / "teacher")
        if not run.exists():
            ended = forks.run(train_words(variant, name, *more), self.place)
            assert ended.code == 0, ended.said
        return run

    def converted(self, to: str) -> Path:
        """What `segtune data convert` writes when nothing disturbs it."""
        target = self.place / f"as-{to}"
        if not target.exists():
            ended = forks.run(convert_words(to, f"as-{to}"), self.place)
            assert ended.code == 0, ended.said
        return target

    def operations(self, words: list[str], below: str, prepare: Callable[[Path], None] | None = None) -> int:
        """How often a command opens, renames, makes or removes something below a folder."""
        with tempfile.TemporaryDirectory(dir=self.root) as name:
            folder = Path(name)
            (prepare or self.prepare)(folder)
            ended = forks.run(
                words, folder, limit=3 * forks.HANG, before=forks.counted(folder / below, folder / "count")
            )
            assert ended.code == 0, ended.said
            return len((folder / "count").read_text().splitlines())


def write_data(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = np.kron(generator.integers(0, 3, (6, 6), dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
            image = generator.integers(0, 64, (48, 48, 3), dtype=np.uint8) + 60 * mask[..., None]
            PIL.Image.fromarray(image).save(folder / "images" / split / f"{split}{number}.png")
            PIL.Image.fromarray(mask).save(folder / "masks" / split / f"{split}{number}.png")
    classes = {"0": "sky", "1": "road", "2": "tree"}
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_id": 255}))


def write_unlabelled(folder: Path) -> None:
    """Pictures without labels, one of them below another folder."""
    generator = np.random.default_rng(1)
    for name in ("a.png", "b.png", "deep/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / name)


def write_original(path: Path) -> None:
    """An encoder as NVlabs' code writes it; in a fork, since computing may start threads."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            import torch

            from segtune.segformer.configuration_segformer import SegformerConfig
            from segtune.segformer.modeling_segformer import SegformerModel

            sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
            model = SegformerModel(SegformerConfig(**sizes))
            torch.save(in_layout_of_nvlabs(model.encoder.state_dict()), path)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def in_layout_of_nvlabs(own: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of an encoder under the names that NVlabs' code gives them."""
    import torch

    names = {
        r"patch_embeddings\.(\d)\.proj": "patch_embed{}.proj",
        r"patch_embeddings\.(\d)\.layer_norm": "patch_embed{}.norm",
        r"layer_norm\.(\d)": "norm{}",
        r"block\.(\d)\.0\.layer_norm_(\d)": "block{}.0.norm{}",
        r"block\.(\d)\.0\.attention\.self\.query": "block{}.0.attn.q",
        r"block\.(\d)\.0\.attention\.self\.sr": "block{}.0.attn.sr",
        r"block\.(\d)\.0\.attention\.self\.layer_norm": "block{}.0.attn.norm",
        r"block\.(\d)\.0\.attention\.output\.dense": "block{}.0.attn.proj",
        r"block\.(\d)\.0\.mlp\.dense(\d)": "block{}.0.mlp.fc{}",
        r"block\.(\d)\.0\.mlp\.dwconv\.dwconv": "block{}.0.mlp.dwconv.dwconv",
    }
    found: dict[str, Any] = {}
    for name, value in own.items():
        start, _, leaf = name.rpartition(".")
        for pattern, theirs in names.items():
            if match := re.fullmatch(pattern, start):
                found[f"{theirs.format(int(match[1]) + 1, *match.groups()[1:])}.{leaf}"] = value
    for stage in range(4):
        for leaf in ("weight", "bias"):
            parts = [own[f"block.{stage}.0.attention.self.{part}.{leaf}"] for part in ("key", "value")]
            found[f"block{stage + 1}.0.attn.kv.{leaf}"] = torch.cat(parts)
    return found


def train_words(variant: str = "plain", output: str = "run", *more: str) -> list[str]:
    return ["train", "tiny.yaml", f"training.output_dir={output}", *VARIANTS[variant], *more]


def convert_words(to: str, output: str = "out") -> list[str]:
    return ["data", "convert", "data", "--output", output, "--to", to]


def evaluation_lines(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"mean_iou"' in line]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def differences(run: Path, undisturbed: Path) -> str:
    """What of a run's results is not as in the one that nothing disturbed; "" where all is."""
    for name in ("best", "final"):
        if not (run / name).is_dir():
            return f"{name}/ is missing"
        if files_of(run / name) != files_of(undisturbed / name):
            return f"{name}/ differs"
    if evaluation_lines(run) != evaluation_lines(undisturbed):
        return "evaluation lines differ"
    return leftovers(run)


def leftovers(folder: Path) -> str:
    """Files that only exist while others are written; and more training states than are kept."""
    found = [path.name for path in folder.rglob(".*") if re.search(r"\.(tmp|old|part|lock)$|^\.push", path.name)]
    states = list((folder / "checkpoints").glob("step-*"))
    return f"left behind: {found}" if found else f"{len(states)} states" if len(states) > 2 else ""


def spread(count: int, wanted: int) -> Iterable[int]:
    """So many numbers of 1 … count, evenly spread; all of them where `wanted` is more."""
    return sorted({1 + round(index * (count - 1) / max(wanted - 1, 1)) for index in range(min(wanted, count))})
