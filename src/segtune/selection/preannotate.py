"""Pre-annotation: images and what the model makes of them, as a folder for an annotation tool.

What comes back from the tool lies in the same folder, which segtune's readers read as it is: `classes.json` has the
classes of the model in their order, and says that what no shape covers is ignored, unless the model has a background.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from segtune.data.class_names import BACKGROUND, LABEL_FILES, is_background
from segtune.errors import UsageError
from segtune.files import name_fault
from segtune.imageio.read import stem_of
from segtune.inference import polygons
from segtune.labels.label_map import LabelMap
from segtune.selection import tool_files

logger = logging.getLogger(__name__)

Tool = Literal["labelme", "cvat", "labelstudio", "coco"]
CLASSES = "classes.json"
IMAGES = "images"
IMPORT = "import"  # what a tool is given at its start, and does not give back
ANNOTATIONS = {"cvat": "annotations.xml", "coco": "annotations.json"}


@dataclass(frozen=True)
class Form:
    """How a selection is written for a tool.

    Attributes:
        tool: which one.
        link: images are symbolic links to where they are, where the system can; else copies.
        simplify, min_region: of the polygons, see `polygons.trace`.
    """

    tool: Tool
    link: bool = False
    simplify: float = 0.0
    min_region: int = 0


class PreAnnotated(NamedTuple):
    """An image for the tool: where it is, its predicted ids `(H, W)`, and how sure the model is of them, 0 to 1."""

    path: Path
    labels: np.ndarray
    score: float


Add = Callable[[str, tuple[int, int], list[polygons.Region], PreAnnotated], None]


def write_annotations(
    folder: Path, images: Iterable[PreAnnotated], names: dict[Path, str], label_map: LabelMap, form: Form, model: str
) -> None:
    """Fill an empty folder with the images, their regions and what else the tool wants.

    Args:
        names: of the images in the folder, see `flat_names`.
        model: what made the predictions.

    Raises:
        UsageError: a package that makes polygons is not installed.
    """
    flat = form.tool == "labelme"  # which opens a folder, with each image beside its file
    place = folder if flat else folder / IMAGES
    place.mkdir(parents=True, exist_ok=True)
    _write_classes(folder, label_map)
    with ExitStack() as stack:
        add = stack.enter_context(_Files(folder, label_map, form, model))
        for image in images:
            name = names[image.path]
            _bring(image.path, place / name, form.link)
            regions = polygons.trace(image.labels, label_map, simplify=form.simplify, min_region=form.min_region)
            height, width = image.labels.shape
            add(name, (height, width), regions, image)


def flat_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each image in one folder: its own, with a number where that is taken, also by another suffix.

    Tools name annotations by the images' names without suffix, and some file systems know no capitals.

    Raises:
        UsageError: a name that tools and other systems could not take.
    """
    taken = {stem_of(name).lower() for name in LABEL_FILES}
    names: dict[Path, str] = {}
    for path in paths:
        if fault := name_fault(path.name):
            raise UsageError(f"{path} cannot be given to an annotation tool: {fault}. Rename the image")
        stem = stem_of(path.name)
        suffix, number = path.name[len(stem) :], 1
        name = stem
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names[path] = name + suffix
    return names


def check_names(label_map: LabelMap) -> None:
    """Raise UsageError where a class has a name that the files of tools, lines of text and XML, could not hold."""
    if unfit := [
        name for name in label_map.names if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name)
    ]:
        raise UsageError(
            f"the class {unfit[0]!r} cannot be given to an annotation tool, it has control characters: rename it in "
            "id2label of the checkpoint's config.json"
        )


def check_packages() -> None:
    """Raise UsageError where a package that makes polygons is not installed; told before anything is computed."""
    polygons.trace(np.zeros((1, 1), np.uint8), LabelMap.from_names(["a"]))


def _write_classes(folder: Path, label_map: LabelMap) -> None:
    """The classes in the order of the model, for segtune; what lies under no shape is ignored or its background."""
    bare = not any(is_background(name) for name in label_map.names)
    names: dict[str, str | None] = {BACKGROUND: None} if bare else {}
    names |= {name: name for name in label_map.names}
    colors = {name: list(color) for name, color in zip(label_map.names, label_map.colors, strict=True)}
    content = {"classes": names, "colors": colors}
    (folder / CLASSES).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bring(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            target.symlink_to(os.path.abspath(source))
            return
        except OSError as error:  # of Windows, and of file systems without links
            logger.warning("%s is copied, since it cannot be linked: %s", source, error)
    shutil.copyfile(source, target)


class _Files(AbstractContextManager[Any]):
    """What is written of the images for a tool; as a context it is the function that takes them."""

    def __init__(self, folder: Path, label_map: LabelMap, form: Form, model: str) -> None:
        self.folder, self.label_map, self.tool, self.model = folder, label_map, form.tool, model
        self.stack = ExitStack()
        self.tasks: list[dict[str, Any]] = []

    def __enter__(self) -> Add:
        return {
            "labelme": self._labelme,
            "cvat": self._cvat,
            "labelstudio": self._label_studio,
            "coco": self._coco,
        }[self.tool]()

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def _labelme(self) -> Add:
        (self.folder / "labels.txt").write_text("\n".join(self.label_map.names) + "\n", encoding="utf-8")

        def add(name: str, size: tuple[int, int], regions: list[polygons.Region], image: PreAnnotated) -> None:
            content = polygons.labelme(regions, self.label_map, size, name)
            self._json(f"{stem_of(name)}.json", content)

        return add

    def _cvat(self) -> Add:
        file = tool_files.CvatFile(self.label_map)

        def add(name: str, size: tuple[int, int], regions: list[polygons.Region], image: PreAnnotated) -> None:
            file.add(name, size, regions)

        def close() -> None:
            (self.folder / ANNOTATIONS["cvat"]).write_bytes(file.text())
            self._json(f"{IMPORT}/labels.json", tool_files.cvat_labels(self.label_map))

        self.stack.callback(close)
        return add

    def _label_studio(self) -> Add:
        def add(name: str, size: tuple[int, int], regions: list[polygons.Region], image: PreAnnotated) -> None:
            place = f"{IMAGES}/{name}"
            self.tasks.append(
                tool_files.label_studio_task(place, size, regions, self.label_map, self.model, image.score)
            )

        def close() -> None:
            self._json(f"{IMPORT}/tasks.json", self.tasks)
            (self.folder / IMPORT / "interface.xml").write_bytes(tool_files.label_studio_config(self.label_map))

        self.stack.callback(close)
        return add

    def _coco(self) -> Add:
        file = self.stack.enter_context(polygons.coco_file(self.folder / ANNOTATIONS["coco"], self.label_map))

        def add(name: str, size: tuple[int, int], regions: list[polygons.Region], image: PreAnnotated) -> None:
            file.add(name, size, regions)

        return add

    def _json(self, name: str, content: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
