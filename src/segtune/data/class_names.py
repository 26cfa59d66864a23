"""Class names: which mask value is which class, by the recipe, else by a label file, else by the format itself."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segtune.data.config import PACKAGED, DatasetConfig
from segtune.errors import UsageError
from segtune.labels.label_file import canonical, read_label_file
from segtune.labels.label_map import USUAL_IGNORE, WIDE_IGNORE, LabelMap
from segtune.labels.mask_values import show_value

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
        elif classes is not None and _listed_names(data):
            label_map = _by_name(data, classes, config.ignore_index)
        else:
            label_map = LabelMap.from_dict(data, config.ignore_index)
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
    """What a label file in the folder says, and its path; names that are not the format's speak of something else."""
    for path in (root / name for name in LABEL_FILES):
        if path.is_file():
            data = read_label_file(path)
            names = set(_listed_names(data))
            if classes is None or not names or names == {name for name in classes.values() if name is not None}:
                return data, str(path)
            logger.info("%s is passed over: it does not name the classes that the annotations have", path)
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
    """The data's own names in labels that are written by name: ["sky", "road"] or {"pavement": "road", "car": null}."""
    if data is None or (isinstance(data, Mapping) and ({"ids", "mask_colors"} & set(data))):
        return []
    classes = canonical(data)["classes"]
    if isinstance(classes, list):
        return classes
    keys = list(classes) if isinstance(classes, Mapping) else []
    return keys if all(isinstance(key, str) and key[:1] not in "#0123456789" for key in keys) else []


def _by_name(data: Any, classes: Classes, ignore_index: int) -> LabelMap:
    """A label map from names of the data's classes, which must all be there, in the order given."""
    options = canonical(data)
    targets = options["classes"]
    targets = {name: name for name in targets} if isinstance(targets, list) else targets
    names = list(dict.fromkeys(name for name in targets.values() if name is not None))
    known = {name: value for value, name in classes.items() if name is not None}
    if unknown := [name for name in targets if name not in known]:
        raise UsageError(f"the data has no class {unknown[0]!r}; it has {', '.join(known)}")
    if missing := [name for name in known if name not in targets]:
        example = ", ".join(f'"{name}": null' for name in missing[:3])
        raise UsageError(f"{', '.join(missing)}: not named, though the data has them; ignore them with {{{example}}}")
    ids = {
        value: None if name is None or (target := targets[name]) is None else names.index(target)
        for value, name in classes.items()
    }
    shown = LabelMap.from_names(names, options.get("colors"), ignore_ids=(), ignore_index=ignore_index)
    return LabelMap(tuple(names), shown.colors, ids=ids, ignore_index=ignore_index)
