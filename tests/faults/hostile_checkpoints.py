"""Hostile checkpoints, in every role that they have; and hostile pictures where no labels are."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from faults import forks
from faults.hostile import PICTURES, json_changes, judge_end, put
from faults.workplace import VARIANTS, Case, Verdict, Workplace, train_words

TEACHES = ("training.distill={teacher: best}", "training.max_steps=1")
ROLES: dict[str, list[str]] = {
    "teacher": train_words("plain", "run", *TEACHES),
    "member": ["predict", "plain/best", "best", "data/images/test", "--output", "out"],
    "label": ["label", "best", "data/images/test", "-o", "out", "--min-confidence", "0.2"],
    "select": ["select", "best", "data/images/test", "-o", "out", "--to", "coco"],
    "soup": ["soup", "plain/best", "best", "plain/recipe.yaml", "-o", "out"],
}


def cases(place: Workplace, per_role: int = 6) -> Iterator[Case]:
    """Files of others to be converted, checkpoints in several roles, pictures without labels."""
    place.others()
    for name, write in SOURCES.items():
        yield Case("hostile input", f"convert: {name}", partial(_convert, place, write))
    draw = random.Random(1)
    for role in ROLES:
        for file in ("config.json", "preprocessor_config.json"):
            document = json.loads((place.undisturbed("plain") / "best" / file).read_text())
            for name, changed in json_changes(document, draw, per_role):
                yield Case("hostile input", f"{role}: {file}: {name}", partial(_role, place, role, file, changed))
    for name in PICTURES:
        for command in ("unlabelled", "label", "select"):
            yield Case("hostile input", f"{command}: {name}", partial(_picture, place, name, command))
    for name, change in FOLDERS.items():
        yield Case("hostile input", f"data alone: {name}", partial(_data, place, change))


# --- checkpoints of others -------------------------------------------------------------------------------------------


def _pickle(folder: Path) -> str:
    import torch

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch pwned",)

    torch.save({"state_dict": {"a": Runs()}}, folder / "a.pth")
    return "a.pth"


def _changed(change: Callable[[dict[str, Any]], object], folder: Path) -> str:
    import torch

    tensors = torch.load(folder / "others.pth", weights_only=True)
    content = {"state_dict": tensors, "meta": {}}
    change(content)
    torch.save(content, folder / "a.pth")
    return "a.pth"


def _packed(folder: Path) -> str:
    """The archive of PyTorch, packed, with a part that is large when it is unpacked."""
    with zipfile.ZipFile(folder / "others.pth") as source, zipfile.ZipFile(folder / "a.pth", "w", 8) as target:
        for entry in source.infolist():
            is_data = "/data/" in entry.filename
            target.writestr(entry.filename, bytes(10**9) if is_data else source.read(entry))
            if is_data:
                break
    return "a.pth"


def _hdf5(build: Callable[[Any], object], folder: Path) -> str:
    import h5py

    with h5py.File(folder / "a.weights.h5", "w") as file:
        build(file)
    return "a.weights.h5"


def _bomb(file: Any) -> None:
    place = "layers/hierarchical_transformer_encoder{}/attn/q/vars/0"
    for number in range(64):
        options = {"shape": (2**14, 2**13), "dtype": "f4", "chunks": (2**10, 2**10), "compression": "gzip"}
        file.create_dataset(place.format(f"_{number}" if number else ""), **options, fillvalue=0.5)


def _kept(file: Any, name: str, folder: Path) -> None:
    import h5py

    file[f"layers/{name}/vars/0"] = h5py.ExternalLink(str(folder / ".." / "secret" / "x.h5"), "/x")


def _as(name: str, content: bytes, folder: Path) -> str:
    (folder / name).write_bytes(content)
    return name


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "a.pth")
    return "a.pth"


def _device(folder: Path) -> str:
    (folder / "a.pth").symlink_to("/dev/zero")
    return "a.pth"


def _archive(members: dict[str, bytes], folder: Path) -> str:
    with zipfile.ZipFile(folder / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return "a.keras"


def _first(content: dict[str, Any]) -> str:
    return next(iter(content["state_dict"]))


def _set(key: str, make: Callable[[Any], Any], content: dict[str, Any]) -> None:
    state = content["state_dict"]
    state[key or _first(content)] = make(state[key or _first(content)])


def _meta(value: Any, content: dict[str, Any]) -> None:
    import torch

    state = content["state_dict"]
    for name, tensor in list(state.items()):
        state[f"backbone.{name}"] = state.pop(name) if tensor is not None else None
    for stage, size in enumerate((8, 16, 24, 32), start=1):
        state[f"decode_head.linear_c{stage}.proj.weight"] = torch.zeros(16, size)
        state[f"decode_head.linear_c{stage}.proj.bias"] = torch.zeros(16)
    state["decode_head.linear_fuse.conv.weight"] = torch.zeros(16, 64, 1, 1)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        state[f"decode_head.linear_fuse.bn.{leaf}"] = torch.ones(16)
    state["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor(0)
    state |= {
        "decode_head.linear_pred.weight": torch.zeros(3, 16, 1, 1),
        "decode_head.linear_pred.bias": torch.zeros(3),
    }
    content["meta"] = value


def _wide(value: Any) -> Any:
    return value.flatten()[:1].expand(2**40)


SOURCES: dict[str, Callable[[Path], str]] = {
    "code in a pickle": _pickle,
    "a packed bomb": _packed,
    "a tensor of one number, 2^40 times": partial(_changed, partial(_set, "", _wide)),
    "a tensor without a shape": partial(_changed, partial(_set, "block1.0.attn.kv.weight", lambda v: v.sum())),
    "a sparse tensor": partial(_changed, partial(_set, "", lambda v: v.to_sparse())),
    "complex numbers": partial(_changed, partial(_set, "", lambda v: v.to(dtype=_torch().complex64))),
    "no channels": partial(_changed, partial(_set, "", lambda v: v[:0])),
    "NaN": partial(_changed, partial(_set, "", lambda v: v * float("nan"))),
    "other shapes": partial(_changed, partial(_set, "block2.0.mlp.fc1.weight", lambda v: v[:-1])),
    "classes that are numbers": partial(_changed, partial(_meta, {"CLASSES": (1, 2, 3), "PALETTE": [[1, 2], "x", 5]})),
    "classes without names": partial(_changed, partial(_meta, {"CLASSES": ("", " ", "\x1b[31m")})),
    "a palette that is a number": partial(_changed, partial(_meta, {"CLASSES": ("a", "b", "c"), "PALETTE": 7})),
    "classes by odd keys": partial(_changed, partial(_meta, {"CLASSES": {"²": "a", "b": "b", 3: "c"}})),
    "a tensor in the place of names": partial(_changed, lambda c: _meta({"CLASSES": c["state_dict"][_first(c)]}, c)),
    "an HDF5 bomb": partial(_hdf5, _bomb),
    "an HDF5 file of texts": partial(
        _hdf5, lambda f: f.create_dataset("layers/hierarchical_transformer_encoder/attn/q/vars/0", data=[b"x" * 100])
    ),
    "an HDF5 file of structures": partial(
        _hdf5,
        lambda f: f.create_dataset(
            "layers/hierarchical_transformer_encoder/attn/q/vars/0", (2**20,), np.dtype([("a", "f4", (2**20,))])
        ),
    ),
    "a layer with a number of 5000 digits": partial(
        _hdf5, lambda f: f.create_dataset(f"hierarchical_transformer_encoder_{'9' * 5000}/attn/q/vars/0", data=[1.0])
    ),
    "an HDF5 link outside": lambda folder: _hdf5(
        lambda f: _kept(f, "hierarchical_transformer_encoder", folder), folder
    ),
    "an archive of zeros": partial(_archive, {"config.json": b"{}", "model.weights.h5": bytes(10**9)}),
    "a long configuration": partial(
        _archive, {"config.json": b"[" + b"0," * 7_000_000 + b"0]", "model.weights.h5": b"x"}
    ),
    "a deep configuration": partial(_archive, {"config.json": b"[" * 10**6, "model.weights.h5": b"x"}),
    "no archive": partial(_as, "a.keras", b"PK\x03\x04" + bytes(100)),
    "an HDF5 signature alone": partial(_as, "a.pth", b"\x89HDF\r\n\x1a\n"),
    "empty": partial(_as, "a.pth", b""),
    "text": partial(_as, "a.pth", b"hello\n" * 100),
    "half": lambda folder: _as("a.pth", (folder / "others.pth").read_bytes()[:-200], folder),
    "a pipe": _pipe,
    "a device": _device,
    "a folder of nothing": lambda folder: (folder / "empty").mkdir() or "empty",
    "the name of a folder outside": partial(_as, "a.pt", struct.pack("<Q", 2**60)),
}


def _torch() -> Any:
    import torch

    return torch


def _convert(place: Workplace, write: Callable[[Path], str], folder: Path) -> Verdict:
    shutil.copy(place.others(), folder / "others.pth")
    name = in_a_fork(partial(write, folder))
    ended = forks.run(["convert", name, "out"], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, ended)
    if ended.code == 0 and not (folder / "out" / "config.json").exists():
        verdict.add("silent", f"nothing was written: {ended.said[-500:]}")
    if ended.code != 0 and (folder / "out").exists():
        verdict.add("lost", "something was written")
    return verdict


def in_a_fork(make: Callable[[], str]) -> str:
    """The text that a function returns, which may start threads: no fork should come after those."""
    descriptor = os.memfd_create("made")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(descriptor, make().encode())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with io.FileIO(descriptor) as file:
        file.seek(0)
        return file.read().decode()


# --- checkpoints in several roles, pictures, data --------------------------------------------------------------------


def _role(place: Workplace, role: str, file: str, text: str, folder: Path) -> Verdict:
    place.prepare(folder)
    shutil.copytree(place.undisturbed("plain"), folder / "plain")
    shutil.copytree(folder / "plain" / "best", folder / "best")
    (folder / "best" / ".manifest.json").unlink()
    (folder / "best" / file).write_text(text)
    ended = forks.run(ROLES[role], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, ended)
    return verdict


def _picture(place: Workplace, name: str, command: str, folder: Path) -> Verdict:
    place.prepare(folder, "unlabelled")
    put(name, folder / "more", "b")
    best = str(place.undisturbed("plain") / "best")
    words = {
        "unlabelled": ["train", "tiny.yaml", "training.output_dir=run", *VARIANTS["unlabelled"]],
        "label": ["label", best, "more", "-o", "out", "--min-confidence", "0.2"],
        "select": ["select", best, "more", "-o", "out", "--to", "cvat"],
    }
    ended = forks.run(words[command], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, ended)
    if command == "label" and ended.code != 0 and (folder / "out").exists():
        verdict.add("lost", "something was written")
    return verdict


def _without(*names: str) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        for name in names:
            for path in data.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _all_of_one_class(data: Path) -> None:
    import PIL.Image

    for path in data.glob("masks/*/*.png"):
        PIL.Image.new("L", (48, 48), 1).save(path)


def _all_ignored(data: Path) -> None:
    import PIL.Image

    for path in data.glob("masks/*/*.png"):
        PIL.Image.new("L", (48, 48), 255).save(path)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "nothing": _without("*"),
    "no masks": _without("masks"),
    "no classes": _without("classes.json"),
    "only val": _without("*/train", "*/test"),
    "only test": _without("*/train", "*/val"),
    "one picture": _without("*/val", "*/test", "*/train/train[1-9].png"),
    "one class": _all_of_one_class,
    "ignored everywhere": _all_ignored,
    "one name": lambda data: (data / "classes.json").write_text('["sky"]'),
}


def _data(place: Workplace, change: Callable[[Path], object], folder: Path) -> Verdict:
    place.prepare(folder)
    change(folder / "data")
    small = ["training.batch_size=2", "training.max_steps=1", "training.report=false", "training.device=cpu"]
    ends = [
        forks.run(["recipes", "propose", "data", "-o", "proposed.yaml"], folder, secret=place.secret),
        forks.run(["train", "data", *small], folder, secret=place.secret),
        forks.run(["crossval", "tiny.yaml", "--folds", "9"], folder, secret=place.secret),
        forks.run(["tune", "tiny.yaml", "--budget", "1s"], folder, secret=place.secret),
    ]
    verdict = Verdict.of(*ends)
    judge_end(verdict, folder, *ends)
    return verdict
