"""How often exports answer as their checkpoints do, on test pictures: a row of a table for each checkpoint.

    python benchmarks/export_agreement.py --camvid data/camvid
    python benchmarks/export_agreement.py --camvid data/camvid --cases runs/demo/best runs/camvid/best

The pictures are the test tiles of the embedded data, and 20 of the test split of a folder with `images/test`, each also
cropped at its centre to 333x251 and to 65x97. What reads four channels gets them with a fourth one, the excess of green
over red and blue. Checkpoints are of random weights, made here, or folders of trained ones. `segtune export` exports
each; what is told stands in its `certificate.json`. An export that does not agree ends this with its message.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import segtune
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

TILES = Path(segtune.__file__).parent / "data" / "earth" / "images" / "test"
PHOTOGRAPHS = 20
CROPS = ((333, 251), (65, 97))  # width, height
RANDOM: dict[str, dict[str, Any]] = {  # the default is B0
    "B2 of 60 labels": {"variant": "b2", "num_labels": 60},
    "one logit": {"num_labels": 1},
    "four channels": {"num_labels": 11, "num_channels": 4},
}
TARGETS = ("onnx", "openvino")
COLUMNS = (
    "checkpoint",
    "pictures",
    "pixels",
    "`onnx/model.onnx`, `product.onnx`",
    "`openvino/model.xml`, `product.xml`",
    "no ties",
    "worst picture",
    "OpenVINO in bf16",
)


def write_random(folder: Path, fields: dict[str, Any], image: np.ndarray) -> None:
    """A checkpoint of random weights, the logits of whose classes have mean 0 and deviation 1 on `image` (H, W, C)."""
    channels = fields.get("num_channels", 3)
    processor = SegformerImageProcessor(do_resize=False, image_mean=[0.45] * channels, image_std=[0.22] * channels)
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig.from_variant(**{"variant": "b0", **fields})).eval()
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt", input_data_format="channels_last")).logits
        classifier = model.decode_head.classifier
        spread = logits.std((0, 2, 3))
        classifier.bias.copy_((classifier.bias - logits.mean((0, 2, 3))) / spread)
        classifier.weight /= spread[:, None, None, None]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def pictures(camvid: Path | None) -> Iterator[tuple[str, Image.Image]]:
    """Names and RGB pictures."""
    for path in sorted(TILES.iterdir()):
        yield path.stem, Image.open(path).convert("RGB")
    photographs = [] if camvid is None else sorted((camvid / "images" / "test").iterdir())
    for number in np.linspace(0, len(photographs) - 1, min(len(photographs), PHOTOGRAPHS)).round().astype(int):
        picture = Image.open(photographs[number]).convert("RGB")
        yield photographs[number].stem, picture
        for width, height in CROPS:
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            yield f"{photographs[number].stem}-{width}x{height}", picture.crop((left, top, left + width, top + height))


def with_green(picture: Image.Image) -> Image.Image:
    """With a fourth channel: the excess of green over red and blue, 128 where there is none."""
    red, green, blue = np.moveaxis(np.asarray(picture, np.int16), 2, 0)
    excess = np.clip(128 + 2 * green - red - blue, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([np.asarray(picture), excess]))


def write_pictures(folder: Path, camvid: Path | None, limit: int) -> None:
    """At most `limit` of the pictures, spread over them: in `3` as they are, in `4` with a fourth channel."""
    found = list(pictures(camvid))
    for number in sorted({*np.linspace(0, len(found) - 1, min(len(found), limit)).round().astype(int)}):
        name, picture = found[number]
        for channels, made in ((3, picture), (4, with_green(picture))):
            (folder / str(channels)).mkdir(parents=True, exist_ok=True)
            made.save(folder / str(channels) / f"{name}.png")


def export(checkpoint: Path, images: Path, target: str, output: Path) -> list[dict[str, Any]]:
    """What the certificate of an export says of its files."""
    number = str(sum(1 for _ in images.iterdir()))
    words = ["--to", target, "--images", str(images), "--limit", number, "--output", str(output)]
    subprocess.run([sys.executable, "-m", "segtune", "-q", "export", str(checkpoint), *words], check=True, stdout=2)
    return list(json.loads((output / "certificate.json").read_text(encoding="utf-8"))["files"])


def row(name: str, files: Sequence[dict[str, Any]]) -> str:
    """A line of the table: pixels whose class is not the checkpoint's."""
    single = [entry for entry in files if entry["precision"] == "fp32"]
    differ = [
        ", ".join(f"{entry['differing_pixels']:,}" for entry in single if entry["runtime"] == runtime) or "not run"
        for runtime in ("onnxruntime", "openvino")
    ]
    errors = sum(entry["differing_pixels"] - entry["of_these_ties"] for entry in single)
    worst = min(entry["worst_image"]["agreement"] for entry in single)
    half = [f"{entry['differing_pixels']:,}" for entry in files if entry["precision"] == "bf16"]
    counts = (single[0]["images"], f"{single[0]['pixels']:,}")
    return f"| {' | '.join(map(str, (name, *counts, *differ, errors, f'{worst:.5f}', *(half or ['not run']))))} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, help="a folder with images/test; without it, tiles alone")
    parser.add_argument("--cases", nargs="+", default=list(RANDOM), help=f"of {', '.join(RANDOM)}; or checkpoints")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--limit", type=int, default=100, help="at most as many pictures, spread over all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, options.camvid, options.limit)
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
        for number, case in enumerate(options.cases):
            checkpoint, channels = Path(case), 3
            if case in RANDOM:
                checkpoint, channels = folder / f"checkpoint-{number}", RANDOM[case].get("num_channels", 3)
                first = min((folder / str(channels)).iterdir())
                write_random(checkpoint, RANDOM[case], np.asarray(Image.open(first)))
            images = folder / str(channels)
            outputs = {target: folder / f"{number}-{target}" for target in options.targets}
            files = [entry for target in outputs for entry in export(checkpoint, images, target, outputs[target])]
            print(row(case, files), flush=True)


if __name__ == "__main__":
    main()
