"""Class names: which mask value is which class, by the recipe, else by a label file, else by the format itself."""

from __future__ import annotations

import json
import logging
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.data.config import PACKAGED, DatasetConfig
from segtune.errors import UsageError, listed
from segtune.labels.label_file import IGNORED, canonical, read_label_file
from segtune.labels.label_map import USUAL_IGNORE, WIDE_IGNORE, LabelMap
from segtune.labels.mask_values import read_name, show_value

LABEL_FILES = (
    "labels.json",
    "classes.json",
    "id2label.json",
    "class_names.txt",
    "classes.txt",
    "labels.txt",
    "label_colors.txt",
    "labelmap.txt",
    "class_dict.csv",
)
TABLES = Path(__file__).parent / "published"  # label maps and splits of published data sets
BACKGROUND = "background"
NO_INDEX = -100  # an ignore_index that is no class, where labels are only compared
logger = logging.getLogger(__name__)

Classes = Mapping[int, str | None]  # mask value -> name, None for values that are ignored


def number_classes(names: Iterable[str], config: DatasetConfig, root: Path) -> dict[int, str | None]:
    """Mask values for a format that has names only: 0 where nothing lies, then 1, 2, … in the order of `names`.

    Where `dataset.labels` uses those names, its order counts.
    """
    found = list(names)
    listed = [name for name in _listed_names(_given_labels(config, root)) if name in found]
    ordered = [*listed, *(name for name in found if name not in listed)]
    return dict(enumerate([BACKGROUND, *ordered]))


def drawn_names(names: Iterable[str]) -> list[str]:
    """The names that become classes: without the words for what is background, or ignored."""
    return [name for name in names if not is_background(name) and name != IGNORED]


def is_background(name: str) -> bool:
    """Whether a name is a word for what no shape covers: background, Background, _background_."""
    return name.strip().strip("_").casefold() == BACKGROUND


def value_of(name: str, values: Mapping[str, int]) -> int | None:
    """The mask value of a class of an annotation; None where it is to be ignored.

    Args:
        values: of the classes, by name.

    Raises:
        KeyError: there is no such class.
    """
    if name not in values and name == IGNORED:
        return None
    return 0 if name not in values and is_background(name) else values[name]


def listed_classes(config: DatasetConfig, root: Path) -> list[str]:
    """The names of the data's classes that `dataset.labels` lists, without the background; none where it uses ids."""
    return [name for name in _listed_names(_given_labels(config, root)) if name != BACKGROUND]


def label_map_of(config: DatasetConfig, root: Path, classes: Classes | None) -> LabelMap | None:
    """The label map of a data set; None where nothing says what its mask values mean.

    Args:
        classes: what the format says about its mask values.

    Raises:
        UsageError: labels of no known form, labels that leave out classes of the format, or another ignore_index.
    """
    data, origin = _given_labels(config, root), "dataset.labels"
    if data is None:
        data, origin = _usual_labels(root, classes)
    else:
        origin = str(find_file(config.labels, root)) if isinstance(config.labels, str) else origin
        _tell_passed_over(origin, data, root)
    if data is None and classes is None:
        return None
    try:
        if data is None:
            label_map = LabelMap.from_ids(dict(classes or {}), ignore_index=config.ignore_index)
        elif classes is None:
            label_map = LabelMap.from_dict(data, config.ignore_index)
        else:
            label_map = _match(data, classes, config.ignore_index)
    except UsageError as error:
        origin = origin or str(root)
        raise error if origin in str(error) else UsageError(f"{origin}: {error}") from error
    is_widened = config.ignore_index == USUAL_IGNORE and label_map.ignore_index == WIDE_IGNORE
    if is_widened and label_map.num_labels > USUAL_IGNORE:
        logger.info("%d classes: ignored pixels have the id %d in labels", label_map.num_labels, WIDE_IGNORE)
    elif label_map.ignore_index != config.ignore_index:
        raise UsageError(
            f"the labels say ignore_index {label_map.ignore_index}, the recipe says {config.ignore_index}: "
            f"set dataset.ignore_index={label_map.ignore_index}"
        )
    return label_map


def refuse_one_class(label_map: LabelMap, path: str) -> None:
    """Raise UsageError where nothing can be learned, since there is a single class; it says what to write instead."""
    if label_map.num_labels > 1:
        return
    name, table = label_map.names[0], dict(label_map.ids or label_map.mask_colors or {})
    value = next((key for key, target in table.items() if target == 0), 1) or 1
    other = "#000000" if label_map.mask_colors is not None else "0"
    example = json.dumps({other: BACKGROUND, show_value(value): name}, ensure_ascii=False)
    raise UsageError(
        f"{path}: {name!r} is the only class, and there is nothing to tell it from: name what else the masks hold, "
        f"as in dataset.labels={shlex.quote(example)}. With model.num_labels=1 as well, it trains a single logit"
    )


def find_file(file: str | Path, root: Path) -> Path:
    """A file named in the recipe: relative to the data set's folder, else to the working directory.

    "segtune://ade20k.json" is one inside the package.

    Raises:
        UsageError: it is in none of them.
    """
    if str(file).startswith(PACKAGED):
        name = str(file).removeprefix(PACKAGED)
        names = sorted(path.name for path in TABLES.glob("*.json"))
        if name not in names:
            raise UsageError(f"no file {str(file)!r} in the package; it has {', '.join(names)}")
        return TABLES / name
    places = [root / Path(file).expanduser(), Path(file).expanduser()]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(f"no file {file} in {root}, and none in the working directory {Path.cwd()}")


def _given_labels(config: DatasetConfig, root: Path) -> Any:
    """What `dataset.labels` says, inline or in a file."""
    return read_label_file(find_file(config.labels, root)) if isinstance(config.labels, str) else config.labels


def _usual_labels(root: Path, classes: Classes | None) -> tuple[Any, str]:
    """What a label file in the folder says, and its path; one without the format's names speaks of something else."""
    for path in (root / name for name in LABEL_FILES):
        if path.is_file():
            data = read_label_file(path)
            try:
                if classes is not None:
                    _match(data, classes)
                return data, str(path)
            except UsageError as error:
                logger.info(
                    "%s is passed over: it is not about the classes that the annotations have (%s)", path, error
                )
    return None, ""


def _tell_passed_over(origin: str, data: Any, root: Path) -> None:
    """Say so where a label file in the folder names other classes than the recipe, which count."""
    path = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    if path is not None and origin != str(path):
        try:
            differs = canonical(read_label_file(path))["classes"] != canonical(data)["classes"]
        except UsageError:
            return
        if differs:
            logger.warning("the classes are those of %s; %s names others and is passed over", origin, path)


def _listed_names(data: Any) -> list[str]:
    """The data's own names in labels that are written by name."""
    return [name for name in (data is not None and _targets(data)) or () if isinstance(name, str)]


def _targets(data: Any) -> dict[str, str | None] | None:
    """Name in the data -> name of the class, of labels that are written by name: ["sky", "road"] or {"pavement":
    "road", "car": null}; None of labels by number or colour."""
    if isinstance(data, Mapping) and ({"ids", "mask_colors"} & set(data)):
        return None
    classes = canonical(data)["classes"]
    if isinstance(classes, list):
        return {read_name(name): name for name in classes}
    keys = list(classes) if isinstance(classes, Mapping) else []
    by_name = keys and all(isinstance(key, str) and not re.fullmatch(r"#.*|-?\d+(-\d+)?", key) for key in keys)
    return {name: None if of is None else read_name(of) for name, of in classes.items()} if by_name else None


def _match(data: Any, classes: Classes, ignore_index: int = NO_INDEX) -> LabelMap:
    """The label map of a format that names its mask values: by these names, whatever numbers the labels have.

    Raises:
        UsageError: a class of the format is not named.
    """
    targets = _targets(data)
    own = None if targets is not None else LabelMap.from_dict(data, ignore_index)
    if own and _has_same_numbers(own, classes):
        return own
    if own:
        ignore_index = own.ignore_index
    targets = {name: name for name in own.names} if own else targets or {}
    colors = dict(zip(own.names, own.colors, strict=True)) if own else canonical(data).get("colors")
    names = list(dict.fromkeys(name for name in targets.values() if name is not None))
    known = {value: _named_in(targets, name) for value, name in classes.items() if name is not None}
    if missing := [str(classes[value]) for value, key in known.items() if key is None]:
        raise UsageError(_not_named(missing, targets, own, classes))
    if extra := [name for name in targets if name not in known.values()]:
        logger.info("no annotation has the class %s", listed(list(map(repr, extra))))
    if own:
        logger.info("labels by number: their names say which class of the annotations is which")
    ids = {
        value: None if (key := known.get(value)) is None or (target := targets[key]) is None else names.index(target)
        for value in classes
    }
    shown = LabelMap.from_names(names, colors, ignore_ids=(), ignore_index=ignore_index)
    return LabelMap(tuple(names), shown.colors, ids=ids, ignore_index=ignore_index)


def _has_same_numbers(own: LabelMap, classes: Classes) -> bool:
    """Whether labels by number name or ignore every mask value of the format, and none by the name of another."""
    if own.ids is None or not all(value in own.ids for value, name in classes.items() if name is not None):
        return False
    names = set(classes.values())
    for value, target in own.ids.items():
        name, theirs = own.names[target] if target is not None else None, classes.get(value)
        agrees = name == theirs or (theirs is not None and name and is_background(name) and is_background(theirs))
        if name is not None and not agrees and (theirs is not None or name in names):
            return False
    return True


def _named_in(targets: Mapping[str, Any], name: str) -> str | None:
    """The key by which labels speak of a class of the data."""
    if name in targets:
        return name
    return next((key for key in targets if is_background(key)), None) if is_background(name) else None


def _not_named(missing: Sequence[str], targets: Mapping[str, Any], own: LabelMap | None, classes: Classes) -> str:
    """What to say of classes of the data that labels leave out."""
    example = ", ".join(f'"{name}": null' for name in missing[:3])
    strange = [name for name in targets if name not in classes.values() and not is_background(str(name))]
    others = f" (and no {listed(list(map(repr, strange)))})" if strange else ""
    them = "it" if len(missing) == 1 else "them"
    message = f"{', '.join(missing)}: not named, though the data has {them}{others}; ignore {them} with {{{example}}}"
    near = {plain(key): key for key in targets}
    if alike := [f"{near[plain(name)]!r} for {name!r}" for name in missing if plain(name) in near]:
        message += f". Names count letter by letter: the labels have {', '.join(alike)}"
    if own and own.ids is not None:
        message += ". The labels are by number, but the data has names: write {name in the data: class}"
        odd = [
            f"{value} is {own.names[target]!r} in the labels and {classes[value]!r} in the data"
            for value, target in own.ids.items()
            if target is not None and classes.get(value) not in (None, own.names[target])
        ]
        message += f" ({listed(odd, 3)})" if odd else ""
    return message


def plain(name: str) -> str:
    """A name without what typing errors change: case, blanks and signs between words."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", str(name))).casefold()
