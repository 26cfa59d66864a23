"""Hostile input: annotation files, pictures, checkpoints, label files, recipes and paths that nobody meant well."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from faults import forks
from faults.forks import Ended
from faults.workplace import Case, Verdict, Workplace, files_of, leftovers

NAMES = [f"p{number}.png" for number in range(4)]
BOX = [[4.0, 4.0, 40.0, 4.0, 40.0, 30.0, 4.0, 30.0]]
# In the place of any value of a JSON document. `NONSENSE` can be meant nowhere: masks that it changes must be told.
NONSENSE: dict[str, Any] = {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "no number": "a word",
    "an object": {"a": 1},
    "a list": [[1]],
    "deep": "DEEP",
}
UNUSUAL: dict[str, Any] = {
    "null": None,
    "minus": -1,
    "1e9": 1e9,
    "1e308": 1e308,
    "digits": 10**30,
    "true": True,
    "nothing": [],
    "path": "../secret/private.png",
    "root": "/etc/passwd",
    "escapes": "\x1b[31m\u202e\n<script>",
    "long": "x" * 100_000,
}
DEEP = "[" * 100_000 + "]" * 100_000


def cases(place: Workplace, per_document: int = 16) -> Iterator[Case]:
    """Hostile values in each kind of file that others may have made."""
    draw = random.Random(0)
    for kind, write in FORMATS.items():
        whole(place, kind)
        for name, change in annotation_changes(kind, draw, per_document):
            yield Case("hostile input", f"{kind}: {name}", partial(_annotations, place, kind, write, change))
    for name in PICTURES:
        for target in ("images", "masks"):
            for command in ("doctor", "train", *(["predict"] if target == "images" else [])):
                judge = partial(_picture, place, name, target, command)
                yield Case("hostile input", f"{command}: {target}: {name}", judge)
    place.undisturbed("plain")
    for file in ("config.json", "preprocessor_config.json"):
        document = json.loads((place.undisturbed("plain") / "best" / file).read_text())
        for name, changed in json_changes(document, draw, per_document):
            yield Case("hostile input", f"checkpoint: {file}: {name}", partial(_checkpoint, place, file, changed))
    for name, text in {**dict(label_files(draw, per_document))}.items():
        yield Case("hostile input", f"labels: {name}", partial(_labels, place, text))
    for name, text in recipes().items():
        yield Case("hostile input", f"recipe: {name}", partial(_recipe, place, text))
    for name, write_table in TABLES.items():
        yield Case("hostile input", f"path: {name}", partial(_table, place, write_table))


# --- annotation files ------------------------------------------------------------------------------------------------


def coco() -> Any:
    images = [{"id": number, "file_name": name, "height": 48, "width": 48} for number, name in enumerate(NAMES)]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1 + number % 2, "segmentation": BOX, "iscrowd": 0}
        for number in range(3)
    ]
    runs = {"size": [48, 48], "counts": [0, 480, 1824]}
    annotations.append({"id": 3, "image_id": 3, "category_id": 1, "segmentation": runs, "iscrowd": 1})
    categories = [{"id": 1, "name": "road"}, {"id": 2, "name": "tree"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def labelme() -> Any:
    shape = {"label": "road", "points": [[4, 4], [40, 4], [40, 30]], "shape_type": "polygon", "flags": {}}
    round_one = {"label": "tree", "points": [[20, 20], [30, 20]], "shape_type": "circle", "group_id": None}
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [shape, round_one],
        "imagePath": NAMES[0],
        "imageData": None,
        "imageHeight": 48,
        "imageWidth": 48,
    }


def label_studio() -> Any:
    def region(kind: str, value: dict[str, Any]) -> dict[str, Any]:
        size = {"original_width": 48, "original_height": 48, "image_rotation": 0}
        return {**size, "value": {**value, kind: ["road"]}, "id": "a", "type": kind, "from_name": "l", "to_name": "i"}

    results = [
        region("polygonlabels", {"points": [[10, 10], [80, 10], [80, 60]], "closed": True}),
        region("rectanglelabels", {"x": 10, "y": 10, "width": 30, "height": 20, "rotation": 0}),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 30, "rotation": 0}),
    ]
    entry = {"id": 1, "result": results, "was_cancelled": False}
    return [
        {"id": number, "annotations": [copy.deepcopy(entry)], "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"}}
        for number, name in enumerate(NAMES)
    ]


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><job><id>1</id><labels><label><name>road</name></label><label><name>tree</name></label></labels></job></meta>
<image id="0" name="p0.png" width="48" height="48">
<polygon label="road" points="4.0,4.0;40.0,4.0;40.0,30.0" z_order="1"></polygon>
<box label="tree" xtl="1.0" ytl="1.0" xbr="6.0" ybr="3.0" rotation="10.0" z_order="0"></box></image>
<image id="1" name="p1.png" width="48" height="48">
<mask label="road" rle="1, 1, 2" left="4" top="2" width="2" height="2" z_order="2"></mask>
<ellipse label="tree" cx="20.5" cy="11.5" rx="10.6" ry="4.6" rotation="90.0" z_order="0"></ellipse></image>
</annotations>
"""
YOLO_LINES = "0 0.1 0.1 0.8 0.1 0.8 0.7\n1 0.2 0.2 0.5 0.2 0.5 0.5 0.2 0.5\n"
YOLO_CONFIG = "path: .\ntrain: images/train\nval: images/val\nnames: {0: road, 1: tree}\n"


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / name)


def _write_json(folder: Path, text: bytes, name: str) -> None:
    _pictures(folder if name == "p0.json" else folder / "images")
    (folder / name).write_bytes(text)


def _write_yolo(folder: Path, text: bytes, file: str) -> None:
    for split in ("train", "val"):
        _pictures(folder / "images" / split)
        (folder / "labels" / split).mkdir(parents=True)
        for name in NAMES:
            (folder / "labels" / split / name).with_suffix(".txt").write_text(YOLO_LINES)
    (folder / "data.yaml").write_text(YOLO_CONFIG)
    (folder / file).write_bytes(text)


FORMATS: dict[str, Callable[[Path, bytes], None]] = {
    "coco": partial(_write_json, name="instances_train.json"),
    "labelme": partial(_write_json, name="p0.json"),
    "label studio": partial(_write_json, name="project-1.json"),
    "cvat": partial(_write_json, name="annotations.xml"),
    "yolo": partial(_write_yolo, file="labels/train/p1.txt"),
    "yolo config": partial(_write_yolo, file="data.yaml"),
}
DOCUMENTS: dict[str, Callable[[], Any]] = {"coco": coco, "labelme": labelme, "label studio": label_studio}
TEXTS = {"cvat": CVAT, "yolo": YOLO_LINES, "yolo config": YOLO_CONFIG}

Change = tuple[bytes, bool]  # the file's content, and whether it can be meant nowhere


def annotation_changes(kind: str, draw: random.Random, count: int) -> Iterator[tuple[str, Change]]:
    """Contents of an annotation file, each hostile in one place, or as a whole."""
    if kind in DOCUMENTS:
        for name, text in json_changes(DOCUMENTS[kind](), draw, count):
            yield name, (text.encode(), name.rpartition(" = ")[2] in NONSENSE)
        whole_file = json.dumps(DOCUMENTS[kind]()).encode()
    else:
        yield from _token_changes(TEXTS[kind], draw, count)
        whole_file = TEXTS[kind].encode()
    yield from broken_files(whole_file)


def _token_changes(text: str, draw: random.Random, count: int) -> Iterator[tuple[str, Change]]:
    """A number or word of a text replaced."""
    tokens = list(re.finditer(r"-?\d+\.?\d*|(?<=[ \"/])[a-z]+[0-9]?\.?[a-z]*(?=[\"<,} \n])", text))
    values = {**NONSENSE, **UNUSUAL} | {"entity": "&lt;", "quote": '"', "brace": "{[", "colon": ": :"}
    for _ in range(count):
        token, value = draw.choice(tokens), draw.choice(sorted(values))
        new = DEEP if value == "deep" else json.dumps(values[value]).strip('"') if value != "quote" else '"'
        changed = text[: token.start()] + new + text[token.end() :]
        yield f"{token[0]} at {token.start()} = {value}", (changed.encode(), False)


def broken_files(content: bytes) -> Iterator[tuple[str, Change]]:
    """What any text file may be."""
    laughs = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    yield "empty", (b"", False)
    yield "half", (content[: len(content) // 2], False)
    yield "NUL bytes", (bytes(1000), False)
    yield "no UTF-8", (content.replace(b"road", b"r\xff\xfed"), False)
    yield "UTF-16", (content.decode().encode("utf-16"), False)
    yield "BOM", (b"\xef\xbb\xbf" + content, False)
    yield "nested deeply", (DEEP.encode(), False)
    yield "a list of nothing", (b"[null, null]", False)
    yield "a number", (b"1e999", False)
    yield "laughs of XML", (f"{laughs}]><annotations>&i;</annotations>".encode(), False)
    entity = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations><image name="&x;"/></annotations>'
    yield "an entity outside", (entity.encode(), False)
    yield (
        "laughs of YAML",
        (
            b"a: &a [x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n".encode() for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
            + b"names: *i\ntrain: images\n",
            False,
        ),
    )
    yield "a tag of YAML", (b"names: !!python/object/apply:os.system ['touch pwned']\ntrain: images\n", False)


def json_changes(document: Any, draw: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """The document with one value replaced, as text."""
    places = list(_places(document))
    values = {**NONSENSE, **UNUSUAL}
    for _ in range(count):
        path, name = draw.choice(places), draw.choice(sorted(values))
        changed = copy.deepcopy(document)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = values[name]
        yield f"{'.'.join(map(str, path))} = {name}", json.dumps(changed).replace('"DEEP"', DEEP)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from _places(item, (*path, key))


def _annotations(
    place: Workplace, kind: str, write: Callable[[Path, bytes], None], change: Change, folder: Path
) -> Verdict:
    content, is_nonsense = change
    write(folder / "data", content)
    looked = forks.run(["doctor", "data"], folder, secret=place.secret)
    converted = forks.run(["data", "convert", "data", "--output", "out"], folder, secret=place.secret)
    verdict = Verdict.of(looked, converted)
    judge_end(verdict, folder, looked, converted)
    is_accepted = converted.code == 0 and "0 errors, 0 warnings" in looked.said
    if is_nonsense and is_accepted and masks_of(folder / "out") != whole(place, kind):
        verdict.add("silent", f"other masks, and no word of it: {looked.said[-500:]} {converted.said[-300:]}")
    return verdict


@cache
def whole(place: Workplace, kind: str) -> dict[str, bytes]:
    """The masks of an annotation file that nobody touched."""
    folder = place.root / f"whole-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    content = json.dumps(DOCUMENTS[kind]()) if kind in DOCUMENTS else TEXTS[kind]
    FORMATS[kind](folder / "data", content.encode())
    ended = forks.run(["data", "convert", "data", "--output", "out"], folder)
    assert ended.code == 0, f"{kind}: {ended.said}"
    return masks_of(folder / "out")


def masks_of(folder: Path) -> dict[str, bytes]:
    return {path: content for path, content in files_of(folder).items() if path.startswith("masks")}


def judge_end(verdict: Verdict, folder: Path, *ends: Ended) -> None:
    """A command ends well, or with one message; nothing half-written stays, and no secret is told."""
    for ended in ends:
        if ended.code not in (0, 1, 2) and ended.code is not None:
            verdict.add("traceback", f"exit code {ended.code}: {ended.said[-500:]}")
        if ended.code in (1, 2) and not re.search("error", ended.said):
            verdict.add("silent", f"no message: {ended.said[-300:]}")
        if "a secret" in ended.said or "root:x:" in ended.said:
            verdict.add("outside", f"tells what is private: {ended.said[-500:]}")
    if left := leftovers(folder):
        verdict.add("lost", left)
    if any(path.name == "pwned" for path in folder.rglob("*")):
        verdict.add("outside", "code of the file ran")


# --- pictures --------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that states a size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    """A TIFF of one strip that states a size."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 10)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def _array(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def _npz_bomb() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.zeros((12_000, 12_000), np.uint8))
    return buffer.getvalue()


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _good(mode: str = "RGB", size: tuple[int, int] = (48, 48), form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


# contents, each with the suffix of its file; None: something that is no file
PICTURES: dict[str, tuple[str, Callable[[], bytes] | None]] = {
    "bomb of PNG": (".png", lambda: png(60_000, 60_000, zlib.compress(bytes(10**7)))),
    "size of 2^31": (".png", lambda: png(2**31 - 1, 2**31 - 1)),
    "size of 0": (".png", lambda: png(0, 0)),
    "no data": (".png", lambda: png(48, 48)),
    "too little data": (".png", lambda: png(48, 48, zlib.compress(bytes(100)))),
    "half": (".png", lambda: _good()[:60]),
    "empty": (".png", lambda: b""),
    "text": (".png", lambda: b"hello\n" * 100),
    "16 bits": (".png", lambda: _good("I;16")),
    "bomb of text": (".png", lambda: png(48, 48)[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**8)))),
    "JPEG cut off": (".jpg", lambda: _good(form="JPEG")[:300]),
    "JPEG of 65,500": (".jpg", lambda: _good(form="JPEG").replace(b"\0\x30\0\x30", b"\xff\xdc\xff\xdc", 1)),
    "TIFF of 2^31": (".tif", lambda: tiff(2**31 - 1, 2**31 - 1)),
    "TIFF of nothing": (".tif", lambda: tiff(48, 48)[:12]),
    "GIF": (".gif", lambda: _good("P", form="GIF")),
    "12 channels": (".npy", lambda: _array(np.zeros((48, 48, 12), np.uint8))),
    "complex numbers": (".npy", lambda: _array(np.zeros((48, 48), np.complex64))),
    "NaN": (".npy", lambda: _array(np.full((48, 48), np.nan, np.float32))),
    "a pickle": (".npy", lambda: _array(np.array([_Runs()], object), allow_pickle=True)),
    "shape of 10^12": (".npy", lambda: _array(np.zeros((48, 48), np.uint8)).replace(b"(48, 48)", b"(10**6,)")),
    "bomb of npz": (".npz", _npz_bomb),
    "a pipe": (".png", None),
    "a folder": (".png", None),
    "a loop": (".png", None),
    "a link into nowhere": (".png", None),
    "a link to a device": (".png", None),
}


def put(name: str, folder: Path, stem: str) -> None:
    suffix, make = PICTURES[name]
    (folder / f"{stem}.png").unlink(missing_ok=True)
    path = folder / f"{stem}{suffix}"
    if make is not None:
        path.write_bytes(make())
    elif name == "a pipe":
        os.mkfifo(path)
    elif name == "a folder":
        path.mkdir()
    else:
        path.symlink_to({"a loop": path.name, "a link into nowhere": "gone.png"}.get(name, "/dev/zero"))


def _picture(place: Workplace, name: str, target: str, command: str, folder: Path) -> Verdict:
    place.prepare(folder)
    put(name, folder / "data" / target / "train", "train0")
    words = {
        "doctor": ["doctor", "data"],
        "train": ["train", "tiny.yaml", "training.output_dir=run", "training.max_steps=2", "training.report=false"],
        "predict": ["predict", str(place.undisturbed("plain") / "best"), "data/images/train", "--output", "out"],
    }
    ended = forks.run(words[command], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, ended)
    return verdict


# --- checkpoints, labels, recipes, paths -----------------------------------------------------------------------------


def _checkpoint(place: Workplace, file: str, text: str, folder: Path) -> Verdict:
    place.prepare(folder)
    shutil.copytree(place.undisturbed("plain") / "best", folder / "best")
    (folder / "best" / ".manifest.json").unlink()
    (folder / "best" / file).write_text(text)
    ended = forks.run(["predict", "best", "data/images/test", "--output", "out"], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, ended)
    return verdict


def label_files(draw: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    document = {"classes": {"0": "sky", "1": "road", "2": "tree"}, "ignore_id": 255, "colors": {"sky": "#112233"}}
    for name, text in json_changes(document, draw, count):
        yield name, text.encode()
    for name, (content, _) in broken_files(json.dumps(document).encode()):
        yield name, content
    yield "a range of 10^11", b'{"0-99999999999": "a"}'
    yield "60,000 classes", json.dumps({str(number): f"c{number}" for number in range(60_000)}).encode()
    yield "a class twice", b'{"0": "a", "0": "b", "1": "a"}'


def _labels(place: Workplace, content: bytes, folder: Path) -> Verdict:
    place.prepare(folder)
    (folder / "data" / "classes.json").write_bytes(content)
    ended = forks.run(["doctor", "data"], folder, secret=place.secret)
    trained = forks.run(
        ["train", "tiny.yaml", "training.output_dir=run", "training.max_steps=1", "training.report=false"],
        folder,
        secret=place.secret,
    )
    verdict = Verdict.of(ended, trained)
    judge_end(verdict, folder, ended, trained)
    return verdict


def recipes() -> dict[str, bytes]:
    """Recipes of others."""
    base = b"dataset: {path: data}\nmodel: {name: null}\ntraining: {max_steps: 1, output_dir: run, report: false}\n"
    lines = {
        "NaN": b"transforms: {mean: [.nan, 0, 0]}\n",
        "infinite": b"training: {learning_rate: .inf, max_steps: 1, output_dir: run}\n",
        "a crop of 10^9": b"transforms: {crop_size: 1000000000}\n",
        "a batch of 10^9": b"training: {batch_size: 1000000000, max_steps: 1, output_dir: run}\n",
        "a deep network": b"model: {config: {depths: [100000, 1, 1, 1]}}\n",
        "a wide network": b"model: {config: {hidden_sizes: [1000000000, 2, 2, 2]}}\n",
        "10^6 workers": b"training: {num_workers: 1000000, max_steps: 1, output_dir: run}\n",
        "code in transforms": b"transforms: {extra: [{Lambda: {image: 'os.system'}}]}\n",
        "an expression that runs away": b"dataset: {path: data, group_by: '(a+)+$'}\n",
        "images outside": b"dataset: {path: data, images: '../secret', masks: '../secret'}\n",
        "a pattern outside": b"dataset: {path: data, images: '../secret/*.png', masks: '../secret/mask.png'}\n",
        "a split outside": b"dataset: {path: data, split_file: ../secret/notes.txt}\n",
        "labels outside": b"dataset: {path: data, labels: ../secret/notes.txt}\n",
        "a device as data": b"dataset: {path: /dev/zero}\n",
        "itself as data": b"dataset: {path: tiny.yaml}\n",
        "a window of -1": b"evaluation: {window: -1}\n",
        "a window of 10^9": b"evaluation: {window: 1000000000, stride: 1}\n",
        "keys twice": b"model: {name: null}\nmodel: {name: x}\n",
        "unknown keys": b"modell: {name: null}\n",
        "a list": b"- a\n",
    }
    made = {name: (base if name == "unknown keys" else b"") + text for name, text in lines.items()}
    for name, text in lines.items():
        if name not in ("keys twice", "unknown keys", "a list"):
            sections = dict(line.split(b": ", 1) for line in base.splitlines())
            key, value = text.strip().split(b": ", 1)
            made[name] = b"".join(k + b": " + v + b"\n" for k, v in (sections | {key: value}).items())
    return made | {f"as a whole {name}": content for name, (content, _) in broken_files(base)}


def _recipe(place: Workplace, content: bytes, folder: Path) -> Verdict:
    place.prepare(folder)
    shutil.copytree(place.secret, folder / "secret")  # a recipe may name it, as its author's; a data set may not
    (folder / "tiny.yaml").write_bytes(content)
    ended = forks.run(["train", "tiny.yaml", "model.variant=b0"], folder, secret=place.secret)
    verdict = Verdict.of(ended)
    judge_end(verdict, folder, replace(ended, said=ended.said.replace("a secret", "")))  # its author may name the file
    return verdict


def _csv(folder: Path, image: str, mask: str, secret: Path) -> None:
    rows = [f"images/train/train{n}.png,masks/train/train{n}.png,train" for n in range(4)]
    text = "\n".join(["image,mask,split", *rows, f"{image},{mask},train"]) + "\n"
    (folder / "data" / "metadata.csv").write_text(text.replace("SECRET", os.fspath(secret)))


def _parquet(folder: Path, identifier: str, picture: str | None, secret: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def cell(kind: str) -> dict[str, Any]:
        return {"bytes": (folder / "data" / kind / "train" / "train0.png").read_bytes(), "path": None}

    rows = [{"id": f"a{number}", "image": cell("images"), "mask": cell("masks")} for number in range(3)]
    outside = {"bytes": None, "path": picture.replace("SECRET", os.fspath(secret))} if picture else cell("images")
    rows.append({"id": identifier.replace("SECRET", os.fspath(secret)), "image": outside, "mask": cell("masks")})
    shutil.rmtree(folder / "data" / "images"), shutil.rmtree(folder / "data" / "masks")
    (folder / "data" / "classes.json").rename(folder / "data" / "labels.json")
    for split in ("train", "validation"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / f"{split}.parquet")


MASK = "masks/train/train0.png"
TABLES: dict[str, Callable[..., None]] = {
    **{
        f"table: {image[:40]} {mask}": partial(_csv, image=image, mask=mask)
        for image, mask in (
            ("../../secret/private.png", MASK),
            ("SECRET/private.png", MASK),
            ("images/train/train0.png", "SECRET/mask.png"),
            ("images/../../../secret/private.png", MASK),
            ("/dev/zero", MASK),
            ("", MASK),
            ("images/train/train0.png", "masks/train/train0.png\0x"),
            ("x" * 10_000, MASK),
            ("~/private.png", MASK),
            ("file:///etc/passwd", MASK),
            ("http://127.0.0.1:9/a.png", MASK),
        )
    },
    **{
        f"parquet: id {identifier}": partial(_parquet, identifier=identifier, picture=None)
        for identifier in ("../../secret/private", "SECRET/private", "..", "a/../../../x", "a\0b", "C:\\x", "con", "")
    },
    **{
        f"parquet: picture {picture}": partial(_parquet, identifier="a9", picture=picture)
        for picture in ("SECRET/private.png", "../../secret/private.png", "/dev/zero", "gone.png")
    },
}


def _table(place: Workplace, write: Callable[..., None], folder: Path) -> Verdict:
    place.prepare(folder)
    before = files_of(place.secret)
    write(folder, secret=place.secret)
    words = ["train", "tiny.yaml", "training.output_dir=run", "training.max_steps=2", "training.report=false"]
    ends = [
        forks.run(["doctor", "data", "--html", "page.html"], folder, secret=place.secret),
        forks.run(words, folder, secret=place.secret),
        forks.run(["data", "convert", "data", "--output", "out"], folder, secret=place.secret),
    ]
    verdict = Verdict.of(*ends)
    judge_end(verdict, folder, *ends)
    if files_of(place.secret) != before:
        verdict.add("outside", "a file outside has changed")
    return verdict
