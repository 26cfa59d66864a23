"""A page that segments pictures in the visitor's browser: static files around a product graph.

The page runs one picture through the model before it takes others, and compares the mask with the checkpoint's: what a
certificate says of the machine that exported, it says of the browser. A file in 8-bit integers, which processors
compute in several ways, is compared with what it answered at its certificate, and left for the one in float32 where it
answers otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segtune.engines.onnx_model import SMALLEST_SIDE
from segtune.errors import UsageError
from segtune.export.web_runtime import FILES, INTEGRITY, VERSION, integrity, is_address
from segtune.imageio.writers import encode_png
from segtune.inference.segmenter import form_of
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.viz.html import render

SETTINGS = "page.json"
RUNTIME = "runtime/"
SCRIPTS = ("page.js", "worker.js")
CHECK_IMAGE = "check.png"
CHECK_SIZE = (96, 160)  # height and width of the picture that a browser is checked with
CANDIDATES = 8
MOST_PIXELS = 2**24, 2**20  # of a picture in a browser: where the processor resizes, and where the network sees it all
LEAST, LEAST_INT8 = 0.999, 0.99  # share of the pixels of the check that a browser must have right
LICENSE = "LICENSE.txt"


class PageModel(NamedTuple):
    """A product graph in the folder of a page.

    Attributes:
        file: its name.
        check: of the file that holds the picture of the check and the mask of it, `answer`'s.
        precision: in which it computes, in words.
        agreement: with the checkpoint, in words.
        answer: what a browser must answer: from an image `(H, W, 3)` uint8 to its mask `(H, W)`.
        least: share of the pixels of the check on which it must.
    """

    file: str
    check: str
    precision: str
    agreement: str
    answer: Callable[[np.ndarray], np.ndarray]
    least: float = LEAST


def refuse_other_pictures(processor: SegformerImageProcessor, channels: int) -> None:
    """Raise UsageError for a model that takes other than what browsers give: pictures of three 8-bit channels."""
    if channels != 3 or form_of(processor)[1]:
        what = f"{channels} channels" if channels != 3 else "other numbers than those of 8-bit pictures"
        raise UsageError(f"--to web: browsers give pictures of three 8-bit channels, this model reads {what}")


def write_page(
    folder: Path,
    models: Sequence[PageModel],
    title: str,
    about: Mapping[str, str],
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    *,
    runtime: str,
    bundled: Mapping[str, bytes],
    size: tuple[int, int] | None = None,
) -> None:
    """Lay the page into the folder of its product graphs.

    Args:
        models: in the order in which a browser tries them; the last one is in float32, and answers as the checkpoint.
        about: what else the page says of the model, by name.
        runtime, bundled: where the page finds ONNX Runtime Web, and what `runtime_files` gives for that.
        size: (height, width) of the only images that the graph takes; None for any.
    """
    image, _ = hardest(models[-1].answer, size or CHECK_SIZE)
    settings: dict[str, Any] = {
        "about": dict(about),
        "classes": [
            {"name": name, "color": list(color)} for name, color in zip(label_map.names, label_map.colors, strict=True)
        ],
        "size": size and list(size),
        "most_pixels": MOST_PIXELS[0] if processor.do_resize else MOST_PIXELS[1],
        "least_side": 1 if size or processor.do_resize else SMALLEST_SIDE,
        "check": CHECK_IMAGE,
        "models": [_of_model(folder, model) for model in models],
        "runtime": {
            "version": VERSION,
            "base": runtime.rstrip("/") + "/" if is_address(runtime) else RUNTIME,
            "files": FILES,
        },
    }
    ids = "u1" if label_map.num_labels <= 256 else "<i4"  # as the graph gives them
    (folder / CHECK_IMAGE).write_bytes(encode_png(image))
    for model in models:
        (folder / model.check).write_bytes(image.tobytes() + model.answer(image).astype(ids).tobytes())
    styles = [_template(name) for name in ("viz/templates/page.css", "export/templates/web.css")]
    texts = {
        SETTINGS: json.dumps(settings, indent=1) + "\n",
        "index.html": render("export/templates/index.html", title=title),
        "page.css": "".join(styles),
        **{name: _template(f"export/templates/{name}") for name in SCRIPTS},
    }
    if bundled:
        texts[RUNTIME + LICENSE] = render("export/templates/runtime_license.md", version=VERSION, integrity=INTEGRITY)
        (folder / RUNTIME).mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, file in bundled.items():
        (folder / RUNTIME / name).write_bytes(file)


def _of_model(folder: Path, model: PageModel) -> dict[str, Any]:
    """What the page is told of a file."""
    content = (folder / model.file).read_bytes()
    found = {"file": model.file, "bytes": len(content), "integrity": integrity(content, "sha384")}
    return found | {
        "check": model.check,
        "least": model.least,
        "precision": model.precision,
        "agreement": model.agreement,
    }


def hardest(predict: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of some pictures that are drawn by numbers, the one whose mask is the most mixed, and its mask.

    A picture of the data would be public with the page; and a mask of one class alone would check little.
    """
    found = [(image, predict(image)) for image in (drawn(seed, size) for seed in range(CANDIDATES))]
    return max(found, key=lambda one: _entropy(one[1]))


def drawn(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A picture `(H, W, 3)` uint8 of coloured patches and fine grain, the same for the same seed."""
    generator = np.random.default_rng(seed)
    height, width = size
    patches = generator.integers(0, 256, (2 + seed, 3 + seed, 3), dtype=np.uint8)
    kind = Image.Resampling.NEAREST if seed % 2 else Image.Resampling.BICUBIC
    image = np.asarray(Image.fromarray(patches).resize((width, height), kind), dtype=np.int16)
    grain = generator.integers(-6 * seed, 6 * seed + 1, (height, width, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _entropy(mask: np.ndarray) -> float:
    shares = np.unique(mask, return_counts=True)[1] / mask.size
    return float(-(shares * np.log(shares)).sum())


def _template(name: str) -> str:
    return files("segtune").joinpath(name).read_text(encoding="utf-8")
