"""A page that segments pictures in the visitor's browser: static files around a product graph.

The page runs one picture through the model before it takes others, and compares the mask with the checkpoint's: what a
certificate says of the machine that exported, it says of the browser.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segtune.errors import UsageError
from segtune.export.web_runtime import FILES, INTEGRITY, VERSION, integrity, is_address, runtime_files
from segtune.imageio.writers import encode_png
from segtune.inference.segmenter import form_of
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.viz.html import render

MODEL, SETTINGS = "model.onnx", "page.json"
RUNTIME = "runtime/"
COPIED = ("page.js", "worker.js")
CHECK_SIZE = (96, 160)  # height and width of the picture that a browser is checked with
CANDIDATES = 8
MOST_PIXELS = 2**24, 2**20  # of a picture in a browser: where the processor resizes, and where the network sees it all
LEAST = 0.999  # share of the pixels of the check that must agree, in float32
LICENSE = "LICENSE.txt"


class Page(NamedTuple):
    """What a page says of its model.

    Attributes:
        title: of the page.
        about: lines of a name and a value, shown as they are.
        least: the share of the pixels of the check that a browser must have right.
    """

    title: str
    about: dict[str, str]
    least: float = LEAST


def check_web(processor: SegformerImageProcessor, channels: int) -> None:
    """Raise UsageError for a model that takes other than what browsers give: pictures of three 8-bit channels."""
    if channels != 3 or form_of(processor)[1]:
        what = f"{channels} channels" if channels != 3 else "other numbers than those of 8-bit pictures"
        raise UsageError(f"--to web: browsers give pictures of three 8-bit channels, this model reads {what}")


def write_page(
    folder: Path,
    page: Page,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    predict: Callable[[np.ndarray], np.ndarray],
    runtime: str,
    size: tuple[int, int] | None = None,
) -> None:
    """Lay the page around the product graph `model.onnx`, which is in the folder.

    Args:
        predict: the checkpoint, from an image `(H, W, 3)` uint8 to its mask `(H, W)`.
        runtime: see `runtime_files`.
        size: (height, width) of the only images that the graph takes; None for any.

    Raises:
        UsageError, DataError: see `runtime_files`.
    """
    bundled = runtime_files(runtime)
    image, mask = hardest(predict, size or CHECK_SIZE)
    ids = "u1" if label_map.num_labels <= 256 else "<i4"  # as the graph gives them
    model = (folder / MODEL).read_bytes()
    settings: dict[str, Any] = {
        "title": page.title,
        "about": page.about,
        "classes": [
            {"name": name, "color": list(color)}
            for name, color in zip(label_map.names, label_map.colors, strict=True)
        ],
        "size": size and list(size),
        "most_pixels": MOST_PIXELS[0] if processor.do_resize else MOST_PIXELS[1],
        "model": {"file": MODEL, "bytes": len(model), "integrity": integrity(model, "sha384")},
        "runtime": {
            "version": VERSION,
            "base": runtime.rstrip("/") + "/" if is_address(runtime) else RUNTIME,
            "files": FILES,
        },
        "check": {"image": "check.png", "mask": "check.bin", "least": page.least},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (folder / "check.png").write_bytes(encode_png(image))
    (folder / "check.bin").write_bytes(image.tobytes() + mask.astype(ids).tobytes())
    (folder / "index.html").write_text(render("export/templates/index.html", title=page.title), encoding="utf-8")
    styles = [_template(name) for name in ("viz/templates/page.css", "export/templates/web.css")]
    (folder / "page.css").write_text("".join(styles), encoding="utf-8")
    for name in COPIED:
        (folder / name).write_text(_template(f"export/templates/{name}"), encoding="utf-8")
    if bundled:
        (folder / RUNTIME).mkdir()
        for name, content in bundled.items():
            (folder / RUNTIME / name).write_bytes(content)
        text = render("export/templates/onnxruntime_license.md", version=VERSION, integrity=INTEGRITY)
        (folder / RUNTIME / LICENSE).write_text(text, encoding="utf-8")


def hardest(predict: Callable[[np.ndarray], np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Of some pictures that are drawn by numbers, the one whose mask is the most mixed, and its mask.

    A picture of the data would be public with the page; and a mask of one class alone would check little.
    """
    found = [(image, predict(image)) for image in map(lambda seed: drawn(seed, size), range(CANDIDATES))]
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
