"""Images and masks to what SegFormer reads, and its logits back to masks, with NumPy and Pillow alone.

A drop-in for transformers' ``SegformerImageProcessor``: same fields, same file, same pixels as its Pillow backend.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .upsampling import upsample, upsampled_prediction

if TYPE_CHECKING:  # from a folder, transformers 4 takes the files that this one names, and none that only those name
    from .triton_kernels import predict  # noqa: F401

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:  # before transformers 5.23

    class SemanticSegmentationPostProcessorOutput(BatchFeature):  # type: ignore[no-redef]
        """A class map and the logits that it was made of."""


logger = logging.get_logger(__name__)

FIELDS = (
    "do_resize",
    "size",
    "size_divisor",
    "window",
    "stride",
    "resample",
    "do_rescale",
    "rescale_factor",
    "value_range",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_reduce_labels",
)
# not of transformers, with their defaults
OWN_FIELDS = {"size_divisor": 1, "window": None, "stride": None, "value_range": None}
# Further arguments of transformers that mean something here, and are kept in the file as there.
CALL_FIELDS = ("default_to_square", "do_convert_rgb", "input_data_format", "return_tensors")
# Those that transformers takes and its SegFormer processor (on Pillow) ignores without a word, with the values that
# ask for nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "crop_size": (),
    "data_format": ("channels_first",),
    "device": ("cpu",),
    "disable_grouping": (True, False),
    "do_center_crop": (False,),
    "do_pad": (False,),
    "image_seq_length": (),
    "pad_size": (),
    "use_fast": (False,),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIZE_FORMS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)
IGNORED = 255  # what label reduction makes of id 0

# Four channels go through Pillow as CMYK: it would multiply the first three of an RGBA image by the fourth.
_PILLOW_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class SegformerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What a call takes besides what every processor of transformers takes; transformers' processors read it."""

    size_divisor: int | None
    window: int | None
    stride: int | None
    value_range: Sequence[float] | None
    do_reduce_labels: bool | None


class SegformerImageProcessor(ImageProcessingMixin):
    """Resize, rescale and normalise images; resize (nearest) and optionally reduce masks; turn logits into maps.

    Every argument of transformers' class is taken and does the same; what that class ignores without a word
    (`do_center_crop`, `do_pad`, `data_format`, ...) changes nothing here either, and is warned of. None stands for the
    default, which is the class attribute of that name.

    Args:
        do_resize: resize every image to `size`.
        size: `{"height": h, "width": w}`, or `{"shortest_edge": n}` which keeps the aspect ratio (rounded down, as
            in transformers), with `"longest_edge": m` as its bound, or `{"max_height": h, "max_width": w}`, the
            largest that fits; `n` and `(h, w)` are read as a square (with `default_to_square=False`, as the shortest
            edge) and as height and width.
        size_divisor: both sides are rounded up to a multiple of this, within the one resize, also where `do_resize`
            is off. (transformers does not know this field: it keeps it in the file and does not apply it.)
        window: side of the windows that predictions are made in and blended from; None: the whole image at once.
            `preprocess` does not look at it, nor at `stride`; transformers keeps both in the file.
        stride: from one window to the next.
        resample: Pillow's filter for images, `PIL.Image.Resampling` or its number, or torchvision's
            `InterpolationMode` or its name; 2 is bilinear.
        do_rescale: multiply by `rescale_factor`. 8-bit images need 1/255, 16-bit ones 1/65535.
        value_range: the smallest and the largest of the numbers that images are given in, where that was declared in
            training: files are then read with the numbers that they hold, rather than as 8-bit pictures. `preprocess`
            does not look at it.
        do_normalize: subtract `image_mean` and divide by `image_std`.
        image_mean: one value per channel; their number is the number of channels of an image. A single number holds
            for every channel of `image_std`, or for three.
        image_std: as `image_mean`.
        do_reduce_labels: masks hold 0 for "no class" and classes from 1: 0 becomes 255, the others go down by one,
            255 stays. The caller's array is never written. `reduce_labels`, its name in transformers before 4.30,
            means the same here, with a warning; transformers 5 ignores it.
        others: further arguments of transformers. `return_tensors` and `input_data_format` hold for every call that
            does not give them; `do_convert_rgb` is what is always done where three channels are wanted.

    Raises:
        TypeError: an argument that does not exist; the message names the nearest one that does.
        ValueError: a value that makes no sense.
    """

    valid_kwargs = SegformerImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 (a plain list in transformers' base class)

    # defaults; a subclass may have others, as in transformers
    do_resize: bool = True
    size: dict[str, int] = {"height": 512, "width": 512}  # noqa: RUF012
    size_divisor: int = 1
    window: int | None = None
    stride: int | None = None
    resample: int = 2
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    value_range: Sequence[float] | None = None
    do_normalize: bool = True
    image_mean: Sequence[float] = IMAGENET_MEAN
    image_std: Sequence[float] = IMAGENET_STD
    do_reduce_labels: bool = False

    def __init__(
        self,
        *,
        do_resize: bool | None = None,
        size: Mapping[str, int] | Sequence[int] | int | None = None,
        size_divisor: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        resample: int | str | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        value_range: Sequence[float] | None = None,
        do_normalize: bool | None = None,
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        do_reduce_labels: bool | None = None,
        **others: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in FIELDS}
        given = _known({**given, **others}, "SegformerImageProcessor")
        super().__init__(**{name: value for name, value in given.items() if name not in FIELDS})
        fields = {name: given.get(name, getattr(type(self), name)) for name in FIELDS}
        self.do_resize = bool(fields["do_resize"])
        self.size = _size_dict(fields["size"], given.get("default_to_square", True))
        self.size_divisor = _positive_int("size_divisor", fields["size_divisor"])
        self.window = None if fields["window"] is None else _positive_int("window", fields["window"])
        self.stride = None if fields["stride"] is None else _positive_int("stride", fields["stride"])
        self.resample = _filter(fields["resample"])
        self.do_rescale = bool(fields["do_rescale"])
        self.rescale_factor = float(fields["rescale_factor"])
        self.value_range = None if fields["value_range"] is None else [float(value) for value in fields["value_range"]]
        self.do_normalize = bool(fields["do_normalize"])
        self.image_mean, self.image_std = _channel_values(fields["image_mean"], fields["image_std"])
        self.do_reduce_labels = bool(fields["do_reduce_labels"])
        for name in ("rescale_factor", "value_range", "image_mean", "image_std"):
            values = getattr(self, name)
            if not np.isfinite([] if values is None else values).all():
                raise ValueError(f"{name} holds finite numbers, not {values!r}")
        if self.value_range is not None and (len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]):
            raise ValueError(f"value_range is the smaller and the larger of two numbers, not {value_range!r}")
        if not self.image_mean or len(self.image_mean) != len(self.image_std) or 0.0 in self.image_std:
            raise ValueError(
                "image_mean and image_std need one value per channel, none of image_std 0; "
                f"got {self.image_mean} and {self.image_std}"
            )

    # ---- files ----

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Build from the content of a `preprocessor_config.json`, of ours or of any version of transformers.

        Fields of the file that this class does not know are kept and written again; unknown `kwargs` are refused, or
        handed back as the second of a pair where `return_unused_kwargs` is true.
        """
        return_unused = kwargs.pop("return_unused_kwargs", False)
        stored = dict(image_processor_dict)
        if "reduce_labels" in stored:  # transformers before 4.30
            stored.setdefault("do_reduce_labels", stored.pop("reduce_labels"))
        for name in ("image_processor_type", "feature_extractor_type", "processor_class", "reduce_labels"):
            stored.pop(name, None)
        for name in ("dtype", "torch_dtype", "_from_auto"):  # transformers' pipelines and Auto classes pass them along
            kwargs.pop(name, None)
        fields = {name: stored.pop(name) for name in list(stored) if _is_known(name)}
        unused = {name: kwargs.pop(name) for name in list(kwargs) if return_unused and not _is_known(name)}
        if "reduce_labels" in kwargs:  # what is asked for now counts more than what the file says
            fields.pop("do_reduce_labels", None)
        processor = cls(**{**fields, **kwargs})
        for name, value in stored.items():
            if not hasattr(cls, name):
                setattr(processor, name, value)
        return (processor, unused) if return_unused else processor

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """Build from a JSON file; see `from_dict`."""
        with open(json_file, encoding="utf-8") as reader:
            return cls.from_dict(json.load(reader))

    def to_dict(self) -> dict[str, Any]:
        """All fields, those only kept from a file included, as `save_pretrained` writes them."""
        fields = {name: value for name, value in super().to_dict().items() if not name.startswith("_")}
        for name, default in OWN_FIELDS.items():
            if fields[name] == default:
                del fields[name]  # transformers 4 warns of a field it does not know
        if not self.do_resize and fields["size"] == type(self).size:
            del fields["size"]  # the default, which nothing is resized to
        return {**fields, "image_processor_type": "SegformerImageProcessor"}

    # ---- images and masks in ----

    def __call__(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, segmentation_maps, **kwargs)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Prepare one image or several, with their masks.

        Args:
            images: a PIL image, an array or tensor `(H, W)`, `(H, W, C)` or `(C, H, W)`, a batch of them with one
                axis more in front, or a list. Where `C` is 3, greyscale is repeated and alpha is dropped.
            segmentation_maps: as many masks `(H, W)` of the same sizes, PIL (palette indices are the ids), arrays or
                tensors of any integer type.
            return_tensors: `"pt"`, `"np"`, or None for lists of arrays, whose sizes may differ.
            input_data_format: `"channels_first"` or `"channels_last"` where the shape leaves it open.
            overrides: fields of this class, and other arguments of transformers, for this call only; None leaves
                what the processor has.

        Returns:
            `pixel_values`, float32 `(C, h, w)` each, and with masks `labels`, int64 `(h, w)` each.

        Raises:
            TypeError, ValueError: something is no image or no mask, sizes or numbers do not match, or sizes differ
                where one tensor is asked for.
        """
        given = _known(overrides, "preprocess")
        fields = {name: getattr(self, name) for name in FIELDS}
        square = getattr(self, "default_to_square", None)
        settings = type(self)(**{"default_to_square": square, **fields, **given})
        return_tensors = getattr(self, "return_tensors", None) if return_tensors is None else return_tensors
        if input_data_format is None:
            input_data_format = getattr(self, "input_data_format", None)
        channels = len(settings.image_mean)
        arrays = [channels_last(image, channels, input_data_format) for image in _as_list(images, ndim=3)]
        data = {"pixel_values": [settings._prepare_image(array) for array in arrays]}
        if segmentation_maps is not None:
            masks = [_id_map(mask) for mask in _as_list(segmentation_maps, ndim=2)]
            _check_pairs(arrays, masks)
            data["labels"] = [settings._prepare_mask(mask) for mask in masks]
        if return_tensors is not None:
            _check_stackable(data["pixel_values"])
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _prepare_image(self, image: np.ndarray) -> np.ndarray:
        """`(H, W, C)` of any real type to float32 `(C, h, w)`."""
        if (
            self.do_rescale
            and self.rescale_factor < 1
            and image.dtype.kind == "f"
            and image.min() >= 0
            and image.max() <= 1
        ):
            logger.warning_once(
                f"A floating-point image with no value above 1 is multiplied by {self.rescale_factor:g}; pass "
                "do_rescale=False where images are already between 0 and 1."
            )
        resized = resize(image, self.target_size(*image.shape[:2]), self.resample)
        planes = np.ascontiguousarray(resized.transpose(2, 0, 1))  # (C, h, w)
        values = np.empty(planes.shape, dtype=np.float32)
        # The product is rounded once, from float64: so do transformers, and the pixels are equal to the last bit.
        factor = self.rescale_factor if self.do_rescale else 1.0
        np.multiply(planes, factor, out=values, dtype=np.float64, casting="unsafe")
        if self.do_normalize:
            values -= np.array(self.image_mean, dtype=np.float32)[:, None, None]
            values /= np.array(self.image_std, dtype=np.float32)[:, None, None]
        return values

    def _prepare_mask(self, mask: np.ndarray) -> np.ndarray:
        """Integer `(H, W)` to int64 `(h, w)`, nearest neighbour."""
        height, width = self.target_size(*mask.shape)
        if mask.shape != (height, width):
            stored = mask if mask.dtype == np.uint8 else mask.astype(np.int32)
            mask = np.asarray(Image.fromarray(stored).resize((width, height), Image.Resampling.NEAREST))
        labels = mask.astype(np.int64)
        if self.do_reduce_labels:
            labels = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)
        return labels

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is resized to."""
        if self.do_resize:
            height, width = _resized(height, width, self.size)
        divisor = self.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    # ---- logits out ----

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Any]:
        """Class maps of a batch.

        Args:
            outputs: what the model returned; `outputs.logits` is `(B, K, h, w)`.
            target_sizes: `(height, width)` for each image; None leaves the logits' own size.
            return_segmentation_scores: give for each image an object with the fields `segmentation`, its class map,
                and `segmentation_scores`, its logits `(K, height, width)`, rather than the class map alone.

        Returns:
            `B` int64 maps `(height, width)` of the largest logit; of a model with one logit, 1 where it is above 0.

        Raises:
            ValueError: there is not one target size for each image.
        """
        logits = outputs.logits
        sizes = [logits.shape[-2:]] * len(logits) if target_sizes is None else target_sizes
        sizes = [(int(height), int(width)) for height, width in sizes]
        if len(sizes) != len(logits):
            raise ValueError(f"{len(sizes)} target_sizes were given for {len(logits)} images; give one for each")
        if len(set(sizes)) == 1 and logits.device.type != "cpu":  # at once; a CPU sees one image after another anyway
            maps = list(upsampled_prediction(logits, sizes[0]))
        else:
            maps = [upsampled_prediction(logits[i : i + 1], size)[0] for i, size in enumerate(sizes)]
        if not return_segmentation_scores:
            return maps
        scores = [upsample(logits[i : i + 1], size)[0] for i, size in enumerate(sizes)]  # (K, height, width) each
        return [
            SemanticSegmentationPostProcessorOutput(data={"segmentation": one, "segmentation_scores": score})
            for one, score in zip(maps, scores, strict=True)
        ]


SegformerFeatureExtractor = SegformerImageProcessor  # its name in transformers before 4.27


def channels_last(image: Any, num_channels: int, input_data_format: str | None = None) -> np.ndarray:
    """One PIL image, array or tensor as an array `(H, W, num_channels)`.

    Where three channels are wanted, greyscale is repeated, alpha dropped, 16-bit greyscale PIL images brought to 8 bit.

    Raises:
        TypeError: this is no image.
        ValueError: the channels cannot be found or their number does not fit.
    """
    array = _pil_array(image, num_channels) if isinstance(image, Image.Image) else _array(image, "image")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3) or 0 in array.shape:
        raise TypeError(f"an image is (H, W), (H, W, C) or (C, H, W) of numbers; got {array.dtype} {array.shape}")
    if array.ndim == 2:
        array = array[:, :, None]  # (H, W, 1)
    elif not isinstance(image, Image.Image) and _is_channels_first(array.shape, num_channels, input_data_format):
        array = array.transpose(1, 2, 0)  # (H, W, C)
    if num_channels == 3 and array.shape[2] in (1, 4):
        array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]  # (H, W, 3)
    if array.shape[2] != num_channels:
        raise ValueError(
            f"an image has {array.shape[2]} channels, image_mean and image_std have {num_channels} values; "
            "give one value per channel"
        )
    return array


def _pil_array(image: Image.Image, num_channels: int) -> np.ndarray:
    if num_channels in (1, 3) and image.mode in (*_SIXTEEN_BIT, "F"):
        array = np.asarray(image)
        if num_channels == 3 and image.mode != "F":
            array = (array.clip(0, 65535) >> 8).astype(np.uint8)
        return array  # (H, W)
    if num_channels == 3:
        # A palette with several transparent entries only converts without a warning by way of RGBA.
        image = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        return np.asarray(image.convert("RGB"))  # (H, W, 3)
    return np.asarray(image.convert("L") if num_channels == 1 else image)


def _is_channels_first(shape: tuple[int, ...], num_channels: int, layout: str | None) -> bool:
    if layout is not None:
        name = str(getattr(layout, "value", layout))
        if name not in ("channels_first", "channels_last"):
            raise ValueError(f"input_data_format is channels_first or channels_last, not {name!r}")
        return name == "channels_first"
    for channels in ((num_channels,), (1, 4)):
        if shape[0] in channels:
            return True
        if shape[2] in channels:
            return False
    raise ValueError(
        f"neither end of the image's shape {shape} is its {num_channels} channels (as many as image_mean has values); "
        "check the image, or give input_data_format"
    )


def _array(value: Any, what: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return value
    raise TypeError(f"an {what} is a PIL image, a NumPy array or a tensor, not {type(value).__name__}")


def _as_list(values: Any, ndim: int) -> list[Any]:
    """One item, or a batch of items of `ndim` axes, as a list of items."""
    if isinstance(values, (list, tuple)):
        items = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    elif isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim == ndim + 1:
        single = ndim == 2 and values.shape[-1] == 1 and values.shape[0] > 1  # a mask (H, W, 1)
        items = [values] if single else list(values)
    else:
        items = [values]
    if not items:
        raise ValueError("there is no image in the list")
    return items


def _id_map(mask: Any) -> np.ndarray:
    """A mask as an integer array `(H, W)`; may share the caller's memory."""
    array = np.asarray(mask) if isinstance(mask, Image.Image) else _array(mask, "id mask")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[:, :, 0] if array.shape[-1] == 1 else array[0]  # (H, W)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise TypeError(f"a mask is (H, W) integer ids; got {array.dtype} {array.shape}: turn colours into ids first")
    return array.astype(np.uint8) if array.dtype == bool else array


def _check_pairs(images: list[np.ndarray], masks: list[np.ndarray]) -> None:
    if len(images) != len(masks):
        raise ValueError(f"{len(images)} images but {len(masks)} segmentation_maps")
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if image.shape[:2] != mask.shape:
            raise ValueError(f"image {index} is {image.shape[:2]} (height, width), its segmentation map {mask.shape}")


def _check_stackable(arrays: list[np.ndarray]) -> None:
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"images of different sizes {shapes[:4]} make no single tensor: pass them one at a time, "
            "set do_resize with a size of height and width, or leave return_tensors out"
        )


def resize(
    image: np.ndarray, size: tuple[int, int], resample: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """`(H, W, C)` to `(*size, C)`, uint8 or float32, with Pillow's anti-aliased filters.

    Args:
        box: left, top, right and bottom of the part that becomes `size`; what lies around it is seen by the filter.
    """
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    if image.shape[:2] == size and box is None:
        return image
    height, width, channels = image.shape
    if image.dtype == np.uint8 and channels in _PILLOW_MODES:
        data, mode = np.ascontiguousarray(image), _PILLOW_MODES[channels]
        resized = Image.frombuffer(mode, (width, height), data, "raw", mode, 0, 1).resize(size[::-1], resample, box)
        return np.asarray(resized).reshape(*size, channels)
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, i])) for i in range(channels)]
    return np.stack([np.asarray(plane.resize(size[::-1], resample, box)) for plane in planes], axis=-1)  # (*size, C)


def _size_dict(size: Any, default_to_square: bool) -> dict[str, int]:
    if isinstance(size, int):
        size = {"height": size, "width": size} if default_to_square else {"shortest_edge": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    fields = {}
    if isinstance(size, Mapping) or hasattr(size, "keys"):  # transformers' SizeDict is no Mapping
        fields = {name: value for name, value in dict(size).items() if value is not None}
    if set(fields) not in SIZE_FORMS:
        raise ValueError(
            "size is {'height': h, 'width': w}, {'shortest_edge': n} with or without 'longest_edge', or "
            f"{{'max_height': h, 'max_width': w}}, not {size!r}"
        )
    return {name: _positive_int(f"size[{name!r}]", value) for name, value in fields.items()}


def _resized(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) after resizing to `size`; rounded as in transformers."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))
    short, long = min(height, width), max(height, width)
    edge: float = size["shortest_edge"]
    if "longest_edge" in size and long / short * edge > size["longest_edge"]:
        edge = size["longest_edge"] * short / long
    if round(edge) == short:  # left as it is, even where the longest edge is a little longer
        return height, width
    short, long = max(1, round(edge)), int(edge * long / short)
    return (short, long) if height < width else (long, short)


def _filter(resample: Any) -> int:
    """Pillow's number of a filter, given by that number or by torchvision's name of it."""
    name = getattr(resample, "value", resample)
    if isinstance(name, str):
        known = {one.name.lower(): int(one) for one in Image.Resampling}
        known["nearest-exact"] = known["nearest"]
        if name not in known:
            raise ValueError(f"resample is a filter of Pillow, not {name!r}; there are: {', '.join(sorted(known))}")
        return known[name]
    return int(Image.Resampling(resample))


def _channel_values(*values: Any) -> list[list[float]]:
    """Mean and standard deviation for each channel; a single number holds for all channels."""
    lists = [None if isinstance(value, Real) else [float(x) for x in value] for value in values]
    channels = next((len(one) for one in lists if one is not None), 3)
    return [[float(value)] * channels if one is None else one for one, value in zip(lists, values, strict=True)]


def _positive_int(name: str, value: Any) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name} is a whole number of at least 1, not {value!r}")
    return int(value)


def _is_known(name: str) -> bool:
    return name in FIELDS or name in CALL_FIELDS or name in WITHOUT_EFFECT or name == "reduce_labels"


def _known(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments that are not None, under their present names; warns of those without effect, refuses unknown ones.

    Raises:
        TypeError: an argument that neither this class nor transformers knows.
    """
    for name in arguments:
        if not _is_known(name):
            nearest = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(FIELDS)}"
            raise TypeError(f"{where} has no argument {name!r}; {hint}")
    given = {name: value for name, value in arguments.items() if value is not None}
    if "reduce_labels" in given:
        reduced = given.pop("reduce_labels")
        logger.warning_once(
            f"reduce_labels={reduced} is taken for do_reduce_labels, its name since transformers 4.30; transformers 5 "
            "ignores the old one without a word."
        )
        given.setdefault("do_reduce_labels", reduced)
    for name, neutral in WITHOUT_EFFECT.items():
        if name in given and str(getattr(given[name], "value", given[name])) not in map(str, neutral):
            logger.warning_once(
                f"{name}={given[name]!r} has no effect: SegFormer's processor neither crops nor pads, and gives "
                "pixel_values as (channels, height, width) on the CPU; transformers' own ignores it without a word."
            )
    return given
