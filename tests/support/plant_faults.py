"""Plants faults into a copy of a data set, each as it happens in practice, with the finding that must name it.

`python tests/support/plant_faults.py SOURCE TARGET` makes such a copy to look at. SOURCE is like CamVid and the
embedded tiles: images/{train,val,test}/*.jpg, masks/{train,val,test}/*.png of 8-bit ids and classes.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from segtune.labels.label_map import LabelMap


class Fault(NamedTuple):
    """A fault and what must be said about it.

    Attributes:
        code: of the finding.
        plant: changes the copy; returns the files that the finding must name.
        says: a text that the finding's message must hold.
        share: of the files, that must be named.
    """

    code: str
    plant: Callable[[Copy], Iterable[Path]]
    says: str = ""
    share: float = 1.0


class Copy:
    """A copy of a data set; each fault takes samples of its own."""

    def __init__(self, source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        self.root = target
        self.labels = json.loads((target / "classes.json").read_text(encoding="utf-8"))
        self.ignored = self.labels["ignore_id"]
        self.classes = len(self.labels["classes"])
        self.colors = np.zeros((256, 3), dtype=np.uint8)
        for key, color in enumerate(LabelMap.from_dict(self.labels).colors):
            self.colors[key] = color
        self.random = np.random.default_rng(0)
        self._free = {
            split: [path.stem for path in sorted((target / "images" / split).glob("*.jpg"))]
            for split in ("train", "val", "test")
        }

    def take(self, number: int, split: str = "train", least_values: int = 3, where: str = "") -> list[str]:
        """Samples that no other fault has, spread over the split, whose masks hold at least so many values."""
        free = [name for name in self._free[split] if where in name]
        rich = [name for name in free if len(np.unique(self.read_mask(split, name))) >= least_values]
        taken = [rich[(2 * i + 1) * len(rich) // (2 * number)] for i in range(number)]
        self._free[split] = [name for name in self._free[split] if name not in taken]
        return taken

    def image(self, split: str, name: str, suffix: str = ".jpg") -> Path:
        return self.root / "images" / split / f"{name}{suffix}"

    def mask(self, split: str, name: str, suffix: str = ".png") -> Path:
        return self.root / "masks" / split / f"{name}{suffix}"

    def read_image(self, split: str, name: str) -> Image.Image:
        with Image.open(self.image(split, name)) as image:
            return image.convert("RGB")

    def read_mask(self, split: str, name: str) -> np.ndarray:
        with Image.open(self.mask(split, name)) as mask:
            return np.array(mask)

    def change_masks(self, number: int, change: Callable[[np.ndarray], Any], **options: Any) -> list[Path]:
        """Pass masks of training samples through a function of arrays or to pictures."""
        paths = []
        for name in self.take(number, **options):
            changed = change(self.read_mask("train", name))
            picture = changed if isinstance(changed, Image.Image) else Image.fromarray(changed)
            picture.save(self.mask("train", name))
            paths.append(self.mask("train", name))
        return paths

    def add(self, split: str, name: str, image: Image.Image | Path, mask: np.ndarray) -> Path:
        """A new sample; an image given as a path is copied byte by byte."""
        if isinstance(image, Path):
            shutil.copy(image, self.image(split, name))
        else:
            image.save(self.image(split, name), quality=92)
        Image.fromarray(mask).save(self.mask(split, name))
        return self.image(split, name)

    def save_labels(self) -> None:
        (self.root / "classes.json").write_text(json.dumps(self.labels), encoding="utf-8")


# -- files ------------------------------------------------------------------------------------------------------------


def image_without_mask(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    copy.mask("train", name).unlink()
    yield copy.image("train", name)


def mask_without_image(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1, "test")
    copy.image("test", name).unlink()
    yield copy.mask("test", name)


def two_images_of_one_name(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    copy.read_image("train", name).save(copy.image("train", name, ".png"))
    yield copy.image("train", name)


def truncated_image(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    path = copy.image("train", name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    yield path


def truncated_mask(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1, "val")
    path = copy.mask("val", name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    yield path


def empty_file(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    copy.mask("train", name).write_bytes(b"")
    yield copy.mask("train", name)


def web_page_instead_of_image(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    copy.image("train", name).write_text("<!DOCTYPE html><title>429 Too Many Requests</title>")
    yield copy.image("train", name)


def halved_mask(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, lambda mask: mask[::2, ::2])


def transposed_mask(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, lambda mask: mask.T)


def photo_turned_by_exif(copy: Copy, orientation: int = 6) -> Iterable[Path]:
    """The annotation tool showed the picture as the sensor saw it; a viewer turns it."""
    (name,) = copy.take(1)
    picture = copy.read_image("train", name)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(copy.image("train", name), quality=92, exif=exif)
    yield copy.image("train", name)


def photo_upside_down_by_exif(copy: Copy) -> Iterable[Path]:
    return photo_turned_by_exif(copy, orientation=3)


def enlarged_sample(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    picture, mask = copy.read_image("train", name), copy.read_mask("train", name)
    picture.resize((picture.width * 3, picture.height * 3)).save(copy.image("train", name), quality=92)
    Image.fromarray(mask.repeat(3, 0).repeat(3, 1)).save(copy.mask("train", name))
    yield copy.image("train", name)


def grey_image(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    copy.read_image("train", name).convert("L").save(copy.image("train", name), quality=92)
    yield copy.image("train", name)


def eight_bits_in_sixteen(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    values = np.array(copy.read_image("train", name).convert("L"), dtype=np.uint16)
    copy.image("train", name).unlink()
    Image.fromarray(values).save(copy.image("train", name, ".png"))
    yield copy.image("train", name, ".png")


def image_scaled_to_one(copy: Copy) -> Iterable[Path]:
    """Divided by 255 for a network, then saved as bytes."""
    (name,) = copy.take(1)
    values = np.array(copy.read_image("train", name)) / 255
    copy.image("train", name).unlink()
    Image.fromarray(values.round().astype(np.uint8)).save(copy.image("train", name, ".png"))
    yield copy.image("train", name, ".png")


def blank_image(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    Image.new("RGB", copy.read_image("train", name).size, (114, 114, 114)).save(copy.image("train", name))
    yield copy.image("train", name)


def images_written_as_bgr(copy: Copy) -> Iterable[Path]:
    for name in copy.take(8):
        pixels = np.array(copy.read_image("train", name))
        Image.fromarray(pixels[:, :, ::-1]).save(copy.image("train", name), quality=92)
        yield copy.image("train", name)


# -- values of masks --------------------------------------------------------------------------------------------------


def stray_id(copy: Copy) -> Iterable[Path]:
    def spot(mask: np.ndarray) -> np.ndarray:
        mask[20:28, 30:38] = 200
        return mask

    return copy.change_masks(1, spot)


def ids_from_one(copy: Copy) -> Iterable[Path]:
    """Of a mask that holds the last class: of another, all ids would have names still."""
    return copy.change_masks(1, lambda mask: mask + 1, least_values=min(copy.classes + 1, 8))


def most_frequent(mask: np.ndarray, number: int) -> np.ndarray:
    values, counts = np.unique(mask, return_counts=True)
    return values[np.argsort(-counts)[:number]]


def binary_mask(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, lambda mask: np.where(mask == most_frequent(mask, 1), 255, 0).astype(np.uint8))


def trimap(copy: Copy) -> Iterable[Path]:
    def reduce(mask: np.ndarray) -> np.ndarray:
        foreground, unsure = most_frequent(mask, 2)
        return np.select([mask == foreground, mask == unsure], [255, 128], 0).astype(np.uint8)

    return copy.change_masks(1, reduce)


def colors_among_ids(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(2, lambda mask: copy.colors[mask])


def ids_in_sixteen_bits(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, lambda mask: mask.astype(np.uint16) * 257)


def ids_stretched_to_be_seen(copy: Copy) -> Iterable[Path]:
    factor = 255 // copy.classes
    return copy.change_masks(1, lambda mask: np.where(mask < copy.classes, mask * factor, 0).astype(np.uint8))


def mask_from_zero_to_one(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    mask = copy.read_mask("train", name).astype(np.float32) / 255
    copy.mask("train", name).unlink()
    Image.fromarray(mask).save(copy.mask("train", name, ".tif"))
    yield copy.mask("train", name, ".tif")


def mask_resized_smoothly(copy: Copy) -> Iterable[Path]:
    def resize(mask: np.ndarray) -> Image.Image:
        size = mask.shape[::-1]
        small = Image.fromarray(mask).resize((size[0] * 2 // 3, size[1] * 2 // 3), Image.Resampling.NEAREST)
        return small.resize(size, Image.Resampling.BILINEAR)

    return copy.change_masks(2, resize)


def mask_turned_smoothly(copy: Copy) -> Iterable[Path]:
    """Straightened by 2 degrees together with its image, both with interpolation."""
    (name,) = copy.take(1)
    copy.read_image("train", name).rotate(2, Image.Resampling.BICUBIC).save(copy.image("train", name), quality=92)
    turned = Image.fromarray(copy.read_mask("train", name)).rotate(2, Image.Resampling.BICUBIC)
    turned.save(copy.mask("train", name))
    yield copy.mask("train", name)


def jpeg_mask(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    Image.fromarray(copy.read_mask("train", name)).save(copy.mask("train", name, ".jpg"), quality=90)
    copy.mask("train", name).unlink()
    yield copy.mask("train", name, ".jpg")


def jpeg_mask_saved_as_png(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    path = copy.mask("train", name, ".jpg")
    Image.fromarray(copy.read_mask("train", name)).save(path, quality=90)
    with Image.open(path) as picture:
        picture.save(copy.mask("train", name))
    path.unlink()
    yield copy.mask("train", name)


def palette_numbered_anew(copy: Copy) -> Iterable[Path]:
    """Painted in the classes' colours, then reduced to a palette, which numbers the colours by frequency or hue."""
    return copy.change_masks(2, lambda mask: Image.fromarray(copy.colors[mask]).quantize(256, dither=Image.Dither.NONE))


def all_ignored(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, lambda mask: np.full_like(mask, copy.ignored))


def blank_mask(copy: Copy) -> Iterable[Path]:
    return copy.change_masks(1, np.zeros_like)


def half_done_mask(copy: Copy) -> Iterable[Path]:
    def stop_early(mask: np.ndarray) -> np.ndarray:
        mask[: mask.shape[0] * 3 // 4] = copy.ignored
        return mask

    return copy.change_masks(1, stop_early)


def specks(copy: Copy) -> Iterable[Path]:
    def sprinkle(mask: np.ndarray) -> np.ndarray:
        spots = copy.random.random(mask.shape) < 0.08
        mask[spots] = copy.random.integers(0, copy.classes, spots.sum())
        return mask

    return copy.change_masks(1, sprinkle)


# -- masks and images -------------------------------------------------------------------------------------------------


def shifted_masks(copy: Copy) -> Iterable[Path]:
    """Padding that was added to the masks only."""

    def shift(mask: np.ndarray) -> np.ndarray:
        return np.pad(mask, ((0, 4), (6, 0)), constant_values=copy.ignored)[4:, :-6]

    return copy.change_masks(3, shift, least_values=4)


def mirrored_masks(copy: Copy) -> Iterable[Path]:
    """An augmentation stored on disk that forgot the images."""
    return copy.change_masks(3, lambda mask: mask[:, ::-1], least_values=4)


def exchanged_masks(copy: Copy) -> Iterable[Path]:
    first, second = copy.take(2, "test", least_values=4)
    paths = copy.mask("test", first), copy.mask("test", second)
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    return paths


# -- copies and splits ------------------------------------------------------------------------------------------------


def copy_within_split(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    source = copy.image("train", name)
    return [source, copy.add("train", f"copy of {name}", source, copy.read_mask("train", name))]


def copy_in_another_split(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    source = copy.image("train", name)
    return [source, copy.add("test", f"{name} (1)", source, copy.read_mask("train", name))]


def copy_with_another_mask(copy: Copy) -> Iterable[Path]:
    """Annotated twice, by two people."""
    (name,) = copy.take(1)
    mask = copy.read_mask("train", name)
    mask[mask == mask[0, 0]] = copy.ignored
    source = copy.image("train", name)
    return [source, copy.add("train", f"{name} second annotator", source, mask)]


def brightened_copy_in_another_split(copy: Copy) -> Iterable[Path]:
    (name,) = copy.take(1)
    picture = ImageEnhance.Brightness(copy.read_image("train", name)).enhance(1.15)
    return [copy.image("train", name), copy.add("test", f"{name} bright", picture, copy.read_mask("train", name))]


def mirrored_copy(copy: Copy) -> Iterable[Path]:
    """An augmentation stored on disk beside its original."""
    (name,) = copy.take(1)
    picture = copy.read_image("train", name).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored = np.ascontiguousarray(copy.read_mask("train", name)[:, ::-1])
    return [copy.image("train", name), copy.add("train", f"{name} flipped", picture, mirrored)]


def frames_of_a_test_drive_in_train(copy: Copy) -> Iterable[Path]:
    for name in copy.take(12, "test", where="Seq05VD"):
        for path in (copy.image, copy.mask):
            shutil.move(path("test", name), path("train", name))
    return []


def class_that_never_occurs(copy: Copy) -> Iterable[Path]:
    copy.labels["classes"][str(copy.classes + 2)] = "animal"
    copy.save_labels()
    return []


def class_missing_in_val(copy: Copy) -> Iterable[Path]:
    """The last class was not annotated there."""
    for path in sorted((copy.root / "masks" / "val").glob("*.png")):
        with Image.open(path) as picture:
            mask = np.array(picture)
        mask[mask == copy.classes - 1] = copy.ignored
        Image.fromarray(mask).save(path)
    return []


# Those that change whole splits come first; the others take samples that are still as they were.
FAULTS = (
    Fault("class-missing-in-split", class_missing_in_val),
    Fault("unused-class", class_that_never_occurs, says="animal"),
    Fault("unpaired", image_without_mask),
    Fault("unpaired", mask_without_image),
    Fault("ambiguous-name", two_images_of_one_name),
    Fault("unreadable", truncated_image),
    Fault("unreadable", truncated_mask),
    Fault("unreadable", empty_file),
    Fault("unreadable", web_page_instead_of_image),
    Fault("size-mismatch", halved_mask),
    Fault("size-mismatch", transposed_mask),
    Fault("exif-mismatch", photo_turned_by_exif),
    Fault("exif-mismatch", photo_upside_down_by_exif),
    Fault("unusual-size", enlarged_sample),
    Fault("image-mode", grey_image),
    Fault("value-range", eight_bits_in_sixteen),
    Fault("value-range", image_scaled_to_one),
    Fault("blank-image", blank_image),
    Fault("channel-order", images_written_as_bgr, share=0.5),
    Fault("unnamed-ids", stray_id),
    Fault("unnamed-ids", ids_from_one),
    Fault("binary-mask", binary_mask),
    Fault("binary-mask", trimap),
    Fault("color-mask", colors_among_ids),
    Fault("scaled-mask", ids_in_sixteen_bits),
    Fault("scaled-mask", ids_stretched_to_be_seen),
    Fault("float-mask", mask_from_zero_to_one),
    Fault("smoothed-mask", mask_resized_smoothly),
    Fault("smoothed-mask", mask_turned_smoothly),
    Fault("lossy-mask", jpeg_mask),
    Fault("smoothed-mask", jpeg_mask_saved_as_png),
    Fault("palette-order", palette_numbered_anew),
    Fault("all-ignored", all_ignored),
    Fault("one-class", blank_mask),
    Fault("much-ignored", half_done_mask),
    Fault("specks", specks),
    Fault("shifted-masks", shifted_masks),
    Fault("mirrored-masks", mirrored_masks),
    Fault("misfit-masks", exchanged_masks),
    Fault("duplicates", copy_within_split),
    Fault("leaked-duplicates", copy_in_another_split),
    Fault("conflicting-duplicates", copy_with_another_mask),
    Fault("leaked-near-duplicates", brightened_copy_in_another_split),
    Fault("near-duplicates", mirrored_copy, says="mirrored"),
    Fault("leaked-sequence", frames_of_a_test_drive_in_train, says="Seq05VD"),
)


def plant(source: Path, target: Path, faults: Sequence[Fault] = FAULTS) -> list[list[str]]:
    """Copy a data set and plant faults in it; returns the files of each fault, below `target`."""
    copy = Copy(source, target)
    return [[path.relative_to(target).as_posix() for path in fault.plant(copy)] for fault in faults]


def is_found(fault: Fault, files: Sequence[str], findings: Sequence[Any]) -> bool:
    """Some finding of the fault's code says what it should and names the share of the files that it should."""
    return any(
        finding.code == fault.code
        and fault.says in finding.message
        and len(set(files) & set(finding.files)) >= fault.share * len(files)
        for finding in findings
    )


if __name__ == "__main__":
    for planted, names in zip(FAULTS, plant(Path(sys.argv[1]), Path(sys.argv[2])), strict=True):
        print(f"{planted.code:24}{planted.plant.__name__:36}{', '.join(names[:3])}")
