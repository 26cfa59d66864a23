"""Data augmentation by Albumentations: transforms named in a recipe, presets, and what crops take from it."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ValidationError

from segtune.errors import UsageError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask PyPI for a newer version when imported

import albumentations as A
import cv2
from albumentations.augmentations.geometric.functional import resize

Named = str | dict[str, dict[str, Any] | None]  # "HorizontalFlip" or {"GaussNoise": {"std_range": [0.01, 0.05]}}
Preset = Literal["light", "medium", "strong"]

LINEAR, AREA, NEAREST = 1, 3, 6  # OpenCV's INTER_LINEAR, INTER_AREA and INTER_NEAREST_EXACT
NEAREST_MODES = (0, 6)
MASK_FILLS = ("fill_mask", "mask_drop_value")


def _one_of(p: float, *transforms: Named) -> Named:
    return {"OneOf": {"transforms": list(transforms), "p": p}}


_SOFT: list[Named] = [
    {"RandomGamma": {"gamma_limit": [80, 120], "p": 0.2}},
    _one_of(0.2, {"GaussianBlur": {"sigma_limit": [0.5, 1.5]}}, {"GaussNoise": {"std_range": [0.01, 0.04]}}),
]
_HOLES = {"num_holes_range": [2, 6], "hole_height_range": [0.05, 0.15], "hole_width_range": [0.05, 0.15], "p": 0.3}
PRESETS: dict[Preset, list[Named]] = {
    "light": _SOFT,
    "medium": [{"Affine": {"rotate": [-10, 10], "shear": [-5, 5], "p": 0.3}}, *_SOFT],
    "strong": [
        {"Affine": {"rotate": [-20, 20], "shear": [-10, 10], "p": 0.5}},
        _one_of(
            0.3,
            {"ElasticTransform": {"alpha": 80, "sigma": 10}},
            {"GridDistortion": {"distort_limit": [-0.2, 0.2]}},
            {"Perspective": {"scale": [0.03, 0.08]}},
        ),
        {"RandomGamma": {"gamma_limit": [60, 160], "p": 0.3}},
        _one_of(
            0.4,
            {"GaussianBlur": {"sigma_limit": [0.5, 2.5]}},
            {"MotionBlur": {"blur_limit": [3, 9]}},
            {"GaussNoise": {"std_range": [0.02, 0.08]}},
            {"Downscale": {"scale_range": [0.4, 0.8]}},
        ),
        {"CoarseDropout": _HOLES},
    ],
}
_UNSUITABLE = {
    **dict.fromkeys(
        ("Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"),
        "images are normalised and turned into tensors after the transforms (transforms.mean and std)",
    ),
    **dict.fromkeys(("Compose", "ReplayCompose"), "name Sequential for transforms that come together"),
    "Lambda": "a recipe holds no code",
    "Morphological": "it takes the ids of masks for brightness",
    "GridElasticDeform": "it fills masks with 0, which is a class; ElasticTransform and GridDistortion do not",
    "ToRGB": "the number of channels stays as it is",
}


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear; below half the size, where that would pass over pixels, the mean over the area of each new pixel."""
    shrinks = 4 * math.prod(size) < math.prod(image.shape[:2])
    return resize(image, size, AREA if shrinks else LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour: no value that was not there."""
    return resize(mask, size, NEAREST)


def planes(image: np.ndarray) -> Sequence[np.ndarray]:
    """The channels of an image (H, W, C), each (H, W) and contiguous."""
    return cv2.split(image)


def photometric_distortion() -> list[A.BasicTransform]:
    """The colour changes of the authors' recipe, for uint8 RGB images."""
    keep = (1.0, 1.0)
    return [
        A.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0.0, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.0, contrast_limit=0.5, p=0.5),
        A.ColorJitter(keep, keep, saturation=(0.5, 1.5), hue=(0.0, 0.0), p=0.5),
        A.ColorJitter(keep, keep, keep, hue=(-0.1, 0.1), p=0.5),
    ]


def strong_colors() -> list[A.BasicTransform]:
    """The colour changes of a strong view, for uint8 RGB images: jitter, grey and blur, as in FixMatch's descendants
    for segmentation (Yang et al. 2023, arXiv 2208.09910).
    """
    return [
        A.ColorJitter((0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (-0.25, 0.25), p=0.8),
        A.ToGray(p=0.2),
        A.GaussianBlur(sigma_limit=(0.1, 2.0), p=0.5),
    ]


def flips(horizontal: float, vertical: float) -> list[A.BasicTransform]:
    """Mirror with these probabilities."""
    return [A.HorizontalFlip(p=horizontal), A.VerticalFlip(p=vertical)]


class Stream(NamedTuple):
    """Random numbers of both kinds that Albumentations draws."""

    numpy: np.random.Generator
    python: random.Random

    @classmethod
    def several(cls, seed: Sequence[int], count: int) -> list[Stream]:
        """Independent streams that depend on the seed only."""
        generators = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(count))
        return [cls(generator, random.Random(int(generator.integers(2**63)))) for generator in generators]


def apply(
    transforms: Sequence[A.BasicTransform | A.BaseCompose], sample: dict[str, np.ndarray], stream: Stream
) -> dict[str, np.ndarray]:
    """The "image" (and "mask") of a sample after all transforms, which draw from one stream.

    `Compose.set_random_seed` would give each transform the same numbers, so that flips and colour changes would always
    come together.
    """
    for transform in transforms:
        transform.set_random_state(*stream)
        sample = transform(**sample)
    return sample


def make_transforms(
    named: Sequence[Named], fill_mask: int = 255, ignore_index: int | None = None
) -> list[A.BasicTransform | A.BaseCompose]:
    """Build what a recipe names: classes of the module `albumentations` and their arguments, nothing else.

    Args:
        named: "HorizontalFlip" or {"Rotate": {"limit": 10, "p": 0.3}}; {"OneOf": {"transforms": [...], "p": 0.5}} and
            its like hold others.
        fill_mask: what masks get where a transform leaves them empty. Transforms that hide a part of the image and
            keep its labels (CoarseDropout, …) do so, unless they are told fill_mask.
        ignore_index: what recipes call that value; None where that is not known yet.

    Raises:
        UsageError: no such class, one that cannot be used for images and masks, or arguments that it does not take.
    """
    return [_make(entry, fill_mask, ignore_index) for entry in named]


def of_colors(transforms: Sequence[A.BasicTransform | A.BaseCompose]) -> list[str]:
    """The names of those that change images alone, for the scale of 8-bit images, not masks."""
    names = []
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            names += of_colors(transform.transforms)
        elif isinstance(transform, A.ImageOnlyTransform):
            names.append(type(transform).__name__)
    return names


def _make(entry: Named, fill_mask: int, ignore_index: int | None) -> A.BasicTransform | A.BaseCompose:
    name, given = _name_and_arguments(entry)
    kind = _find(name)
    arguments = dict(given)
    _check_names(kind, arguments)
    if issubclass(kind, A.BaseCompose):
        inner = arguments.get("transforms")
        if not isinstance(inner, (list, tuple)) or not inner:
            raise UsageError(f"{name}.transforms: give a list of transforms")
        arguments["transforms"] = make_transforms(inner, fill_mask, ignore_index)
    _check_mask_arguments(name, arguments, fill_mask, ignore_index)
    strict = {"strict": True} if "InitSchema" in vars(kind) else {}  # wrong values raise, not only warn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to use another class
            transform = kind(**arguments, **strict)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{name}: {_reason(error)}") from error
    if "fill_mask" not in arguments and getattr(transform, "fill_mask", None) is not None:
        transform.fill_mask = fill_mask  # Albumentations' default is 0: a class
    return transform


def _name_and_arguments(entry: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping)):
            return name, arguments or {}
    raise UsageError(f"{entry!r}: write HorizontalFlip or GaussNoise: {{std_range: [0.01, 0.05], p: 0.3}}")


def _find(name: str) -> Any:
    kind = vars(A).get(name)
    if not inspect.isclass(kind) or not issubclass(kind, (A.BasicTransform, A.BaseCompose)) or kind in _ABSTRACT:
        close = difflib.get_close_matches(name, usable_transforms(), n=1)
        hint = f"did you mean {close[0]}?" if close else "see https://albumentations.ai/docs for their names"
        raise UsageError(f"{name}: albumentations has no such transform; {hint}")
    if reason := _unsuitable(kind):
        raise UsageError(f"{name} cannot be used here: {reason}")
    return kind


_ABSTRACT = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D, A.BaseCompose)


def usable_transforms() -> list[str]:
    """The names that `make_transforms` takes."""
    kinds = {name: kind for name, kind in vars(A).items() if inspect.isclass(kind)}
    return sorted(
        name
        for name, kind in kinds.items()
        if issubclass(kind, (A.BasicTransform, A.BaseCompose)) and kind not in _ABSTRACT and not _unsuitable(kind)
    )


def _unsuitable(kind: Any) -> str | None:
    """Why a class cannot be used for an image and its mask; None where it can."""
    if kind.__name__ in _UNSUITABLE:
        return _UNSUITABLE[kind.__name__]
    targets = [target.value for target in getattr(kind, "_targets", ())]
    if targets and "Image" not in targets:
        return "it is for volumes"
    if "BBox" in kind.__name__ or any(name.endswith(("metadata_key", "bbox_key")) for name in _parameters(kind)):
        return "it needs more than an image and its mask"
    if issubclass(kind, A.DualTransform) and "Mask" not in targets:
        return "it does not change masks along with images"
    return None


def _parameters(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "strict")]


def _check_names(kind: Any, arguments: Mapping[Any, Any]) -> None:
    known = _parameters(kind)
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
            raise UsageError(f"{kind.__name__} has no argument {name}; {hint}")


def _check_mask_arguments(name: str, arguments: dict[str, Any], fill_mask: int, ignore_index: int | None) -> None:
    """Masks hold ids: no values between them, and none that is no class."""
    if arguments.get("mask_interpolation", 0) not in NEAREST_MODES:
        raise UsageError(f"{name}.mask_interpolation = {arguments['mask_interpolation']}: only 0 (nearest) keeps ids")
    for key in MASK_FILLS:
        value = arguments.get(key)
        if value is not None:
            if ignore_index not in (None, value):
                raise UsageError(
                    f"{name}.{key} = {value}: give {ignore_index} (ignored), null (labels stay), or nothing"
                )
            arguments[key] = fill_mask


def _reason(error: BaseException) -> str:
    """What pydantic or Albumentations says, on one line and without its addresses."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    found = [
        f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg'].removeprefix('Value error, ')}"
        for item in cause.errors(include_url=False)
    ]
    return "; ".join(found)
