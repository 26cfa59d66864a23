"""Output files of a prediction: which inputs are meant, what is wanted of each, and where it goes."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from segtune.errors import UsageError, listed
from segtune.imageio.geotiff import is_georeferenced
from segtune.imageio.incoming import is_incoming
from segtune.imageio.read import is_picture, read_header, stem_of
from segtune.imageio.video import is_video
from segtune.inference.polygons import PolygonFormat

COCO_FILE = "annotations.coco.json"


@dataclass(frozen=True)
class Wanted:
    """What `segtune predict` writes beside the masks.

    Attributes:
        overlay: the classes in their colours over the image.
        confidence: probabilities as 8-bit PNG or 32-bit TIFF.
        polygons: in this format; `simplify` and `min_region` as for `polygons.trace`.
    """

    overlay: bool = False
    confidence: Literal["png", "tif"] | None = None
    polygons: PolygonFormat | None = None
    simplify: float = 0.0
    min_region: int = 0


def find_images(patterns: Iterable[str]) -> list[Path | str]:
    """The images of files, folders (not their sub-folders) and globs (`**` included), each once, in this order.

    Addresses, and "-" for standard input, stay as they are: see `incoming.as_files`.
    Raises UsageError for a pattern without any image.
    """
    found: dict[str, Path | str] = {}
    for pattern in patterns:
        if is_incoming(pattern):
            found[pattern] = pattern
            continue
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if is_picture(file.name))
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(file for file in map(Path, glob.glob(pattern, recursive=True)) if file.is_file())
        if not matches:
            raise UsageError(f"{pattern}: {'no images in this folder' if path.is_dir() else 'no such image'}")
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


class Frame(NamedTuple):
    """A page, frame or slice of a file, counted from 0, and how many the file has."""

    number: int
    total: int

    @property
    def ending(self) -> str:
        """Of names: "@p03", as samples of data sets have."""
        return f"@p{self.number:0{len(str(self.total - 1))}}"


def with_frames(
    sources: Iterable[Path], wanted: Literal["all", "first"] | None
) -> tuple[list[Path], list[Frame | None]]:
    """The inputs, files with several pages, frames or slices as often as these are wanted, and which is which.

    Raises:
        DataError: a file cannot be read.
    """
    found: list[tuple[Path, Frame | None]] = []
    for source in sources:
        count = read_header(source).frames if wanted and not is_video(source) else 1
        chosen = range(1 if wanted == "first" else count)
        found += [(source, Frame(number, count) if count > 1 else None) for number in chosen]
    return [path for path, _ in found], [frame for _, frame in found]


class Targets(NamedTuple):
    """The files that come of one input; None for what is not wanted.

    Attributes:
        name: of the input, its path below the folder that all inputs have in common.
        mask: of a video, a folder of masks.
        frame: of the input, the page, frame or slice that is segmented; None where there is only one.
    """

    name: str
    mask: Path
    overlay: Path | None = None
    confidence: Path | None = None
    polygons: Path | None = None
    frame: int | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.mask, self.overlay, self.confidence, self.polygons) if path is not None]


def plan_targets(
    sources: Sequence[Path],
    output: Path,
    wanted: Wanted,
    overwrite: bool = False,
    fetched: Collection[Path] = (),
    frames: Sequence[Frame | None] = (),
) -> list[Targets]:
    """Where everything goes: the paths of the inputs below the folder that all have in common, with other endings.

    `a.jpg` and `a.bmp` of one folder become `a.jpg.png` and `a.bmp.png`. A mask is a PNG; of a georeferenced TIFF, a
    TIFF; of a video, a folder.

    Args:
        fetched: those of the inputs that lie in a temporary folder, of which the name alone counts.
        frames: of each input, see `with_frames`; nothing where all are whole files.

    Raises:
        UsageError: something would lie in a folder of inputs, would be written twice, or exists.
    """
    absolute = [Path(os.path.abspath(path)) for path in sources]
    if fetched and wanted.polygons == "labelme":
        raise UsageError("--polygons labelme names the file of each image: save the images to files and name these")
    folders_of_files = [path.parent for path, source in zip(absolute, sources, strict=True) if source not in fetched]
    common = os.path.commonpath(folders_of_files) if folders_of_files else ""
    names = [
        Path(path.name) if source in fetched else path.relative_to(common)
        for path, source in zip(absolute, sources, strict=True)
    ]
    stems = [name.with_name(stem_of(name.name)) for name in names]
    uses = Counter(stem for stem, _ in set(zip(stems, names, strict=True)))
    targets = [
        _targets(source, name, output / (stem if uses[stem] == 1 else name), wanted, frame)
        for source, stem, name, frame in zip(absolute, stems, names, frames or [None] * len(names), strict=True)
    ]
    written = [path for target in targets for path in target.paths]
    if wanted.polygons == "coco":
        written.append(output / COCO_FILE)
    counts = Counter(written)
    if twice := next((path for path in written if counts[path] > 1), None):
        raise UsageError(f"{twice} would be written twice: predict these images one after the other")
    folders = {path.parent.resolve() for path in absolute}
    if clash := next((path for path in written if path.parent.resolve() in folders), None):
        raise UsageError(f"--output {output}: {clash} would lie among the input images; name another folder")
    if not overwrite:
        refuse_existing(written, "--overwrite")
    return targets


def refuse_existing(paths: Iterable[Path], option: str) -> None:
    """Raise UsageError where one of these files is there; `option` is what lets the command go on."""
    if existing := [path for path in paths if path.exists()]:
        raise UsageError(
            f"{listed(existing, 1)} exist{'s' * (len(existing) == 1)} already; name another folder, or say {option}"
        )


def _targets(source: Path, name: Path, base: Path, wanted: Wanted, frame: Frame | None) -> Targets:
    ending = frame.ending if frame else ""
    base = base.with_name(base.name + ending)

    def beside(ending: str, is_wanted: bool = True) -> Path | None:
        return base.with_name(base.name + ending) if is_wanted else None

    if is_video(source):
        if wanted.confidence or wanted.polygons:
            raise UsageError(f"{source}: --confidence and --polygons are for images, this is a video")
        return Targets(name.as_posix(), base, beside("_overlay.mp4", wanted.overlay))
    mask = base.with_name(base.name + (".tif" if is_georeferenced(source) else ".png"))
    endings = {"geojson": ".geojson", "labelme": ".json"}
    return Targets(
        name.as_posix() + ending,
        mask,
        beside("_overlay.png", wanted.overlay),
        beside(f"_confidence.{wanted.confidence}", wanted.confidence is not None),
        beside(endings.get(wanted.polygons or "", ""), wanted.polygons in endings),
        frame.number if frame else None,
    )
