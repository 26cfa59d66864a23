"""The label contract: which id or colour of a stored mask is which class, decided once and used everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segtune.errors import DataError, UsageError
from segtune.labels.label_file import FORMS, canonical, read_label_file
from segtune.labels.mask_values import (
    MOST_IDS,
    Color,
    count_codes,
    distinct_colors,
    encode_value,
    id_range,
    is_color,
    masked_pixels,
    pack,
    read_color,
    read_id,
    read_name,
    shorten,
    show_value,
    show_values,
)

USUAL_IGNORE, WIDE_IGNORE = 255, 65535  # the second where the first is a class
MOST_CLASSES = 10_000  # a network has a logit for each of them at every pixel

Colors = Mapping[Any, Any] | Sequence[Any] | None
SAVED: dict[str, tuple[type, ...]] = {  # what `LabelMap.to_dict` writes
    "names": (list, tuple),
    "colors": (list, tuple),
    "ids": (Mapping, type(None)),
    "mask_colors": (Mapping, type(None)),
}
Key = TypeVar("Key", int, Color)


class LabelError(DataError):
    """A mask holds what its label map does not name; `values` maps each such id or colour to its pixel count."""

    def __init__(self, message: str, values: Mapping[Any, int] | None = None) -> None:
        super().__init__(message)
        self.values = dict(values or {})

    def named(self, what: str) -> LabelError:
        return LabelError(f"{what}: {self}", self.values)


@dataclass(frozen=True)
class LabelMap:
    """From the ids or colours of stored masks to training ids, names and display colours.

    Made by `from_names`, `from_ids`, `from_colors` or `from_file`. Raises UsageError when it contradicts itself.

    Attributes:
        names: training id -> name; unique.
        colors: training id -> RGB for display; a palette of distinct colours when left out.
        ids: mask id -> training id, None for ignored ids. None when the masks are colours.
        mask_colors: mask colour -> training id, None for ignored colours. None when the masks are ids.
        ignore_index: what ignored pixels become in labels. In masks of ids it is ignored too, unless `ids` names it.
            The usual 255 becomes 65535 where there are so many classes that it is one of them.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()
    ids: Mapping[int, int | None] | None = None
    mask_colors: Mapping[Color, int | None] | None = None
    ignore_index: int = 255

    def __post_init__(self) -> None:
        _check_count(len(self.names))
        names = tuple(read_name(name) for name in self.names)
        if self.ignore_index == USUAL_IGNORE < len(names):
            object.__setattr__(self, "ignore_index", WIDE_IGNORE)
        colors = tuple(read_color(color) for color in self.colors) or distinct_colors(len(names))
        ids, mask_colors = self.ids, self.mask_colors
        if ids is None and mask_colors is None:
            ids = {i: i for i in range(len(names))}
        if isinstance(self.names, str) or not names:
            raise UsageError(f"a label map needs a list of class names, got {self.names!r}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"class {twice!r} is named twice: give several ids one name to merge them")
        if len(colors) != len(names):
            raise UsageError(f"{len(colors)} colours for {len(names)} classes: give one for each, or none")
        if ids is not None and mask_colors is not None:
            raise UsageError("a label map reads ids or colours from the masks, not both")
        for key, target in (ids or mask_colors or {}).items():
            if target is not None and (not isinstance(target, int) or not 0 <= target < len(names)):
                raise UsageError(f"mask value {key!r} has the training id {target!r} among {len(names)} classes")
        if 0 <= self.ignore_index < len(names):
            raise UsageError(
                f"ignore_index {self.ignore_index} is the training id of {names[self.ignore_index]!r}: "
                "use a number that is no class, such as -100 (in a recipe, dataset.ignore_index)"
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "ids", None if ids is None else {read_id(key): ids[key] for key in ids})
        if mask_colors is not None:
            object.__setattr__(self, "mask_colors", {read_color(key): mask_colors[key] for key in mask_colors})

    # -- making one ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        colors: Colors = None,
        ignore_ids: Iterable[int] | None = None,
        ignore_index: int = 255,
    ) -> LabelMap:
        """Mask id i is training id i. `ignore_ids` defaults to 255 where there are fewer classes than that."""
        if isinstance(names, str):
            raise UsageError(f"class names must be a list, got the text {names!r}")
        _check_count(len(names))
        names = [read_name(name) for name in names]
        if ignore_ids is None:
            ignore_ids = (255,) if len(names) <= 255 else ()
        ids: dict[int, int | None] = {i: i for i in range(len(names))}
        _add_ignored(ids, [read_id(key) for key in ignore_ids], names)
        return cls(tuple(names), _display(colors, names, ids), ids=ids, ignore_index=ignore_index)

    @classmethod
    def from_ids(
        cls,
        classes: Mapping[Any, str | None],
        colors: Colors = None,
        ignore_ids: Iterable[int] = (),
        ignore_index: int = 255,
    ) -> LabelMap:
        """Mask id, or a range of ids "128-255", -> name, None for ignored ids. Ids of one name are merged.

        Training ids follow the ascending mask ids: {7: "road", 8: "road", 11: "car", 0: None} makes road 0 and car 1.
        """
        count = sum(len(id_range(keys)) for keys in classes)
        if count > MOST_IDS:
            widest = max(classes, key=lambda keys: len(id_range(keys)))
            raise UsageError(f"{count} mask ids, as in {widest!r}: at most {MOST_IDS} are named")
        named = {key: name for keys, name in classes.items() for key in id_range(keys)}
        if len(named) < count:
            raise UsageError(f"a mask id is named twice in {', '.join(map(str, classes))}")
        names, ids = _number({key: named[key] for key in sorted(named)})
        _add_ignored(ids, [read_id(key) for key in ignore_ids], names)
        return cls(names, _display(colors, names, ids), ids=ids, ignore_index=ignore_index)

    @classmethod
    def from_colors(
        cls,
        classes: Mapping[Any, str | None],
        colors: Colors = None,
        ignore_colors: Iterable[Any] = (),
        ignore_index: int = 255,
    ) -> LabelMap:
        """Mask colour, (128, 64, 128) or "#804080", -> name, None for ignored colours.

        Training ids follow the order given; a class is displayed in its first mask colour unless `colors` says other.
        """
        names, table = _number({read_color(key): name for key, name in classes.items()})
        _add_ignored(table, [read_color(key) for key in ignore_colors], names)
        first = {target: color for color, target in reversed(list(table.items())) if target is not None}
        shown = _display(colors, names, table, default=[first[i] for i in range(len(names))])
        return cls(names, shown, mask_colors=table, ignore_index=ignore_index)

    @classmethod
    def from_file(cls, path: str | Path, ignore_index: int = 255) -> LabelMap:
        """Read a file that `read_label_file` understands: JSON of any form that `from_dict` takes, or lines."""
        path = Path(path).expanduser()
        try:
            return cls.from_dict(read_label_file(path), ignore_index)
        except UsageError as error:
            raise error if str(path) in str(error) else UsageError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[Any, Any] | Sequence[str], ignore_index: int = 255) -> LabelMap:
        """Read what `to_dict` wrote, or a form people write by hand.

        A list of names; ids {"0": "sky", "128-255": "road"} or colours {"#804080": "road"} or {"road": [128, 64, 128]};
        bare, or under "classes" (or "names", "id2label", "categories") beside "ignore_id" (or "ignore_ids": [..]),
        "colors" (or "palette"; by id, name or position) and "ignore_index". Other entries there are left alone. The
        argument counts where the data has no "ignore_index".
        """
        if isinstance(data, Mapping):
            ignore_index = read_id(data.get("ignore_index", ignore_index))
            if "ids" in data or "mask_colors" in data:
                own = {key: _of_kind(key, data[key], kinds) for key, kinds in SAVED.items() if key in data}
                return cls(**{"names": ()} | own, ignore_index=ignore_index)
        options = canonical(data)
        classes = options["classes"]
        ignored = options.get("ignore_ids", options.get("ignore_id"))
        ignored = ignored if isinstance(ignored, (list, tuple)) else [] if ignored is None else [ignored]
        colors = options.get("colors", options.get("palette"))
        if isinstance(classes, (list, tuple)):
            return cls.from_names(classes, colors, ignored or None, ignore_index)
        if not isinstance(classes, Mapping) or not classes:
            raise UsageError(f"no classes in {classes!r}; write {FORMS}")
        if all(is_color(key) for key in classes):
            return cls.from_colors(classes, colors, ignored, ignore_index)
        return cls.from_ids(classes, colors, ignored, ignore_index)

    @classmethod
    def from_config(cls, config: Any) -> LabelMap:
        """Restore the label map of a SegformerConfig: the one saved in it, else one made from its `id2label`.

        A saved map that no longer fits `id2label` (the head was replaced) is passed over. A config of one logit
        without a saved map gets the classes background and foreground.
        """
        names = [name for _, name in sorted((int(i), name) for i, name in config.id2label.items())]
        saved = getattr(config, "label_map", None)
        if saved:
            label_map = cls.from_dict(saved)
            if list(label_map.names) == names or (len(names) == 1 and label_map.num_labels == 2):
                return label_map
        if len(names) == 1:
            names = ["background", "foreground"]
        names = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
        return cls.from_names(names, ignore_index=getattr(config, "semantic_loss_ignore_index", 255))

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> LabelMap:
        """The label map of a checkpoint folder or Hub id; `kwargs` as for `AutoConfig.from_pretrained`."""
        from transformers import PretrainedConfig

        fields, _ = PretrainedConfig.get_config_dict(name, **kwargs)
        return cls.from_config(PretrainedConfig.from_dict(fields))

    # -- writing it down ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives back an equal label map."""
        data: dict[str, Any] = {"names": list(self.names), "colors": [show_value(color) for color in self.colors]}
        if self.ids is not None:
            data["ids"] = {str(key): target for key, target in self.ids.items()}
        if self.mask_colors is not None:
            data["mask_colors"] = {show_value(key): target for key, target in self.mask_colors.items()}
        return data | {"ignore_index": self.ignore_index}

    def config_fields(self) -> dict[str, Any]:
        """The fields of a SegformerConfig that carry this label map."""
        return {
            "id2label": self.id2label,
            "label2id": self.label2id,
            "semantic_loss_ignore_index": self.ignore_index,
            "label_map": self.to_dict(),
        }

    @property
    def by_color(self) -> bool:
        """Masks hold colours; those of a palette picture count, and not its indices."""
        return self.mask_colors is not None

    @property
    def names_every_grey(self) -> bool:
        """All 256 greys are divided among the classes, as {"0-127": …, "128-255": …} does for compressed masks."""
        return self.ids is not None and self.ids.keys() >= set(range(256))

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    # -- masks and labels ---------------------------------------------------------------------------------------------

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """Turn a stored mask into labels, a new array of training ids and `ignore_index`.

        Args:
            mask: (H, W) ids of any integer type or bool, or (H, W, 3 or 4) colours, whose alpha is not looked at.
                Grey colours and ids stand for each other: a mask of ids may be saved as RGB. Of a
                `numpy.ma.MaskedArray`, what is masked is ignored.

        Returns:
            (H, W), uint8 where all its values fit, else int32.

        Raises:
            LabelError: the mask holds ids or colours that the label map does not name.
        """
        ignored, mask = masked_pixels(mask), np.asarray(mask)
        codes = self._codes(mask)  # (H, W)
        if codes.dtype == np.uint8 or codes.dtype == np.uint16:
            table, named = self._table(codes.dtype)
            labels = table.take(codes)  # (H, W)
            gapless = named[: int(codes.max(initial=0)) + 1].all()  # usual, and saves a pass over the pixels
            known = np.array(True) if gapless else named.take(codes)  # (H, W)
        else:
            labels, known = self._look_up(codes.astype(np.int64))  # (H, W)
        if ignored is not None:
            labels[ignored] = self.ignore_index
            known = known | ignored
        if not known.all():
            values = count_codes(codes[~known], colors=self.mask_colors is not None)
            hint = "" if self.ids is not None or mask.ndim == 3 else " (a grey or palette mask: name ids, not colours)"
            raise LabelError(f"the mask holds {show_values(values)}: not one of the {self}{hint}", values)
        return labels

    def count_pixels(self, labels: np.ndarray) -> np.ndarray:
        """How many pixels of labels (H, W) each training id has and, last, `ignore_index`: int64 (K + 1,)."""
        places = np.where(labels == self.ignore_index, self.num_labels, labels)
        return np.bincount(places.ravel(), minlength=self.num_labels + 1)

    def unknown(self, mask: np.ndarray) -> dict[Any, int]:
        """Ids or colours of a stored mask that the label map does not name, each with its pixel count."""
        codes = self._codes(np.asarray(mask)).astype(np.int64)  # (H, W)
        known, ignored = self._look_up(codes)[1], masked_pixels(mask)
        return count_codes(codes[~(known if ignored is None else known | ignored)], colors=self.mask_colors is not None)

    def colorize(self, labels: np.ndarray) -> np.ndarray:
        """Paint labels (H, W) for display: (H, W, 3) uint8 RGB, ignored pixels black.

        Raises:
            LabelError: a value is neither a training id nor `ignore_index`.
        """
        labels = np.asarray(labels).astype(np.int64)  # (H, W)
        ignored = labels == self.ignore_index
        wrong = ~ignored & ((labels < 0) | (labels >= self.num_labels))
        if wrong.any():
            values = count_codes(labels[wrong])
            raise LabelError(f"labels hold {show_values(values)}; training ids are 0 to {self.num_labels - 1}", values)
        palette = np.array([*self.colors, (0, 0, 0)], dtype=np.uint8)
        return palette[np.where(ignored, self.num_labels, labels)]  # (H, W, 3)

    def __str__(self) -> str:
        table: Mapping[Any, int | None] = self.ids if self.ids is not None else self.mask_colors or {}
        named = shorten([key for key, target in table.items() if target is not None])
        ignored = shorten([key for key, target in self._targets().items() if target == self.ignore_index])
        return f"{self.num_labels} classes ({named}; ignored: {ignored or 'none'})"

    def _targets(self) -> dict[Any, int]:
        """Every mask value that has a meaning -> what it becomes in labels."""
        table: Mapping[Any, int | None] = self.mask_colors or {}
        if self.ids is not None:
            table = {self.ignore_index: None} | dict(self.ids)
        return {key: self.ignore_index if target is None else target for key, target in table.items()}

    @cached_property
    def _tables(self) -> dict[np.dtype, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _table(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """What all codes of a type stand for; made once, since masks are read window by window."""
        if dtype not in self._tables:
            self._tables[dtype] = self._look_up(np.arange(np.iinfo(dtype).max + 1))
        return self._tables[dtype]

    def _look_up(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of mask codes, and which of them have a meaning at all; both of the codes' shape."""
        targets = {encode_value(key): target for key, target in self._targets().items()}
        small = self.num_labels <= self.ignore_index <= 255  # all training ids are below it, or it is negative
        keys = np.array(sorted(targets), dtype=np.int64)
        labels = np.array([targets[key] for key in sorted(targets)], dtype=np.uint8 if small else np.int32)
        position = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        return labels[position], keys[position] == codes

    def _codes(self, mask: np.ndarray) -> np.ndarray:
        """One integer a pixel (H, W): the id, or the colour as 0xRRGGBB."""
        if mask.ndim == 3 and mask.shape[2] == 1:
            mask = mask[:, :, 0]  # (H, W)
        if mask.dtype.kind not in "bui" or not (mask.ndim == 2 or (mask.ndim == 3 and mask.shape[2] in (3, 4))):
            raise LabelError(f"a mask holds integers (H, W) or colours (H, W, 3), not {mask.dtype} {mask.shape}")
        if mask.ndim == 2 and self.mask_colors is None:
            return mask.astype(np.uint8) if mask.dtype == bool else mask
        channels = np.atleast_3d(mask).astype(np.int64)  # (H, W, 1, 3 or 4)
        if mask.dtype != np.uint8 and ((channels < 0) | (channels > 255)).any():
            raise LabelError(f"colours are 0 to 255, but the mask holds {channels.min()} to {channels.max()}")
        if self.mask_colors is not None:
            return pack(channels)
        if (channels[:, :, :3] == channels[:, :, :1]).all():
            return channels[:, :, 0]  # (H, W)
        values = count_codes(pack(channels), colors=True)
        example = show_value(next(iter(values)))
        raise LabelError(
            f"the mask holds {show_values(values)}, but the label map names ids: "
            f'name its colours, as in {{"{example}": "<class>"}}',
            values,
        )


def _check_count(count: int) -> None:
    """Before a colour is made for each of them, and a network with a logit for each."""
    if count > MOST_CLASSES:
        raise UsageError(f"{count} classes: segtune takes {MOST_CLASSES} at most; one name for several ids merges them")


def _of_kind(key: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """A value that has one of some types; UsageError where it has none, which would fail in its depths."""
    if not isinstance(value, kinds):
        expected = " or ".join(name for kind, name in ((list, "a list"), (Mapping, "a mapping")) if kind in kinds)
        raise UsageError(f"{key} is {str(value)[:80]!r}: expected {expected}; write {FORMS}")
    return value


def _number(classes: Mapping[Key, str | None]) -> tuple[tuple[str, ...], dict[Key, int | None]]:
    """Number the names by first appearance."""
    numbers: dict[str, int] = {}
    table: dict[Key, int | None] = {}
    for key, name in classes.items():
        table[key] = None if name is None else numbers.setdefault(read_name(name), len(numbers))
    _check_count(len(numbers))
    return tuple(numbers), table


def _add_ignored(table: dict[Key, int | None], ignored: Iterable[Key], names: Sequence[str]) -> None:
    for key in ignored:
        target = table.setdefault(key, None)
        if target is not None:
            raise UsageError(f"mask value {show_value(key)} is both ignored and the class {names[target]!r}")


def _display(
    colors: Colors, names: Sequence[str], table: Mapping[Any, int | None], default: Sequence[Color] = ()
) -> tuple[Color, ...]:
    """One colour a class from colours by position, class name or mask value; the default where there is none."""
    colors = None if colors is None else _of_kind("colors", colors, (list, tuple, Mapping))
    if not isinstance(colors, Mapping):
        return tuple(colors or default)
    shown = dict(enumerate(default or distinct_colors(len(names))))
    for key, color in reversed(list(colors.items())):
        if key in names:
            shown[names.index(key)] = read_color(color)
        elif isinstance(key, str) and not is_color(key) and not key.lstrip("-").isdigit():
            raise UsageError(f"a colour is given for {key!r}, which is no class: {', '.join(names)}")
        elif (target := table.get(read_color(key) if is_color(key) else read_id(key))) is not None:
            shown[target] = read_color(color)
    return tuple(shown.values())
