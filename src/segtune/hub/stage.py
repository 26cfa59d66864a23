"""Staging a run for the Hub: a folder of its files, as they are at one moment."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from segtune.errors import SegtuneError
from segtune.export.certificate import EXPORTS, read_certificate
from segtune.files import fingerprint, missing_last_line
from segtune.segformer.checkpoint_files import CERTIFICATE_FILE, check_saved
from segtune.training.run_folder import (
    MODEL_FILES,
    OVERLAYS,
    RECIPE_FILE,
    REPORT_FILE,
    RUN_FILES,
    SPLIT_FILE,
    find_checkpoint,
)
from segtune.viz.comparisons import OVERVIEW

logger = logging.getLogger(__name__)

CODE_FILES = (
    "configuration_segformer.py",
    "cpu_products.py",
    "cross_entropy.py",
    "fused.py",
    "fused_decode_head.py",
    "image_processing_segformer.py",
    "loading_report.py",
    "modeling_segformer.py",
    "parameter_names.py",
    "triton_kernels.py",
    "upsampling.py",
)
AUTO_MAPS = {
    "config.json": {
        "AutoConfig": "configuration_segformer.SegformerConfig",
        "AutoModelForSemanticSegmentation": "modeling_segformer.SegformerForSemanticSegmentation",
    },
    "preprocessor_config.json": {"AutoImageProcessor": "image_processing_segformer.SegformerImageProcessor"},
}
EXAMPLE, EXAMPLE_SIDE = "example.jpg", 768
EXPORTED = ("onnx/*", "openvino/*", "product.*", "network.*", "certificate-*.json")
REPLACED = (
    f"{OVERLAYS}/*",
    REPORT_FILE,
    EXAMPLE,
    *CODE_FILES,
    *EXPORTED,
)  # of an earlier push, where this one has none
MOST_PICTURES = 16
_PICTURES, _PICTURE_MODES = (".jpg", ".png"), ("RGB", "RGBA", "L", "P")


# --- files -----------------------------------------------------------------------------------------------------------


def stage(run: Path, target: Path, *, with_code: bool, pictures: bool) -> Path:
    """Put what is pushed into the empty folder `target`, without the card; what changes later does not change there.

    Args:
        with_code: add the network's code, for `trust_remote_code=True`.
        pictures: add pictures of the data: overlays and the report.

    Returns:
        The checkpoint whose weights these are, see `find_checkpoint`.

    Raises:
        UsageError: there is no finished run.
        DataError: its weights, config or image processor are not what training wrote.
    """
    run, checkpoint = find_checkpoint(run)
    check_saved(checkpoint, MODEL_FILES)
    for path in [checkpoint / name for name in MODEL_FILES] + [run / name for name in RUN_FILES]:
        if path.suffix == ".safetensors":
            _link(path, target / path.name)
        elif path.is_file():
            shutil.copyfile(path, target / path.name)
    for name, code in AUTO_MAPS.items():
        content = json.loads((target / name).read_text(encoding="utf-8"))
        content.pop("auto_map", None)  # of the repository that the weights started from
        content |= {"auto_map": code} if with_code else {}
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in CODE_FILES if with_code else ():
        shutil.copyfile(Path(__file__).parents[1] / "segformer" / name, target / name)
    for path in _evaluations(run, checkpoint):
        shutil.copyfile(path, target / path.name)
    if pictures:
        _stage_pictures(run, target)
    _stage_exports(run, checkpoint, target)
    return checkpoint


def _stage_exports(run: Path, checkpoint: Path, target: Path) -> None:
    """The files of `segtune export` that were made of these weights, where the Hub's libraries look for them."""
    for folder in sorted((run / EXPORTS).glob("*")):
        certificate = read_certificate(folder)
        if certificate is None:
            continue
        if certificate.get("sha256") != fingerprint(checkpoint / MODEL_FILES[1])["sha256"]:
            logger.warning("left out: %s is an export of other weights than those of %s", folder, checkpoint)
            continue
        for path in (file for file in sorted(folder.rglob("*")) if file.is_file()):
            name = path.relative_to(folder).as_posix()
            if name == CERTIFICATE_FILE:
                name = f"certificate-{folder.name}.json"
            if name not in MODEL_FILES:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _link(path, target / name)


def _evaluations(run: Path, checkpoint: Path) -> list[Path]:
    """What training and `segtune evaluate --save` counted with these weights; older files are of earlier ones."""
    from segtune.evaluation.evaluation import Evaluation, file_name

    written, found = (checkpoint / MODEL_FILES[1]).stat().st_mtime, []
    for path in run.glob(file_name("*")):
        try:
            about = Evaluation.load(path).about
            if path.stat().st_mtime >= written and Path(about.get("checkpoint", "")).name == checkpoint.name:
                found.append(path)
        except SegtuneError as error:
            logger.warning("left out: %s", error)
    return found


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is only ever replaced as a whole: no copy, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _stage_pictures(run: Path, target: Path) -> None:
    if (run / REPORT_FILE).is_file():
        shutil.copyfile(run / REPORT_FILE, target / REPORT_FILE)
    overlays = target / OVERLAYS
    for path in find_overlays(run / OVERLAYS):
        overlays.mkdir(exist_ok=True)
        shutil.copyfile(path, overlays / path.name)


def find_overlays(folder: Path) -> list[Path]:
    """Pictures of `segtune evaluate --overlays`, the overview first; where there are none, of the last evaluation."""
    steps = sorted(folder.glob("step-*"), reverse=True)
    for place, pattern in ((folder, "*"), *((step, "**/*") for step in steps)):
        found = [path for path in place.glob(pattern) if path.suffix in _PICTURES]
        if found:
            return sorted(found, key=lambda path: (path.name != OVERVIEW, path))[:MOST_PICTURES]
    return []


def example_picture(staged: Path) -> bytes | None:
    """A picture of the data for the Hub's widget; None where there is none. See `example_pictures`."""
    return next(iter(example_pictures(staged, 1)), None)


def example_pictures(run: Path, count: int, side: int = EXAMPLE_SIDE) -> list[bytes]:
    """Pictures of a run's data, of test where there is one, as JPEGs; none where its images are no pictures.

    It looks through the data, which may take a while.

    Args:
        count: of the pictures: the first, and others at equal distances.
        side: pixels of the longer side, at most.
    """
    from PIL import Image

    from segtune.data.dataset import load_segmentation_dataset

    config = read_recipe(run)["dataset"]
    options = {key: config.get(key) for key in ("images", "masks")}
    found = []
    try:
        dataset = load_segmentation_dataset(config["path"], split_file=(run / SPLIT_FILE).absolute(), **options)
        rows = next(dataset[split] for split in ("test", "val", "train") if split in dataset)
        for number in range(0, len(rows), max(1, -(-len(rows) // count))):
            picture = rows[number]["image"]
            if not isinstance(picture, Image.Image) or picture.mode not in _PICTURE_MODES:
                raise SegtuneError("the images are no RGB pictures")
            picture = picture.convert("RGB")
            picture.thumbnail((side, side))
            encoded = io.BytesIO()
            picture.save(encoded, "JPEG", quality=90)
            found.append(encoded.getvalue())
    except (SegtuneError, OSError) as error:
        logger.info("no example picture: %s", error)
    return found


def read_recipe(run: Path) -> dict[str, Any]:
    """The recipe.yaml of a run, by section; not as strictly as a training would, for earlier versions' keys.

    Raises:
        SegtuneError: the file is damaged or cut off.
    """
    path = run / RECIPE_FILE
    content = path.read_bytes()
    try:
        recipe = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError) as error:
        raise SegtuneError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if missing_last_line(content) is not None or not isinstance(recipe, dict):
        raise SegtuneError(f"{path} is cut off or no recipe. Restore the file; each training state has a copy")
    return recipe
