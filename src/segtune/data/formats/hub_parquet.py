"""Hub data sets and parquet: what `datasets` opens itself, `save_to_disk` folders among them."""

from __future__ import annotations

import errno
import json
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Image

from segtune.data.class_names import LABEL_FILES
from segtune.data.config import DatasetConfig
from segtune.data.containment import contain_cells, contained_stream
from segtune.data.formats.table import ID_COLUMNS, IMAGE_COLUMNS, MASK_COLUMNS, scan_rows
from segtune.data.index import DatasetIndex, Sample
from segtune.data.lazy_rows import undecoded
from segtune.data.splits import split_in, split_names, split_of
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.hub_errors import offline_if_out_of_reach, patiently
from segtune.imageio.object_store import fetch_stored, is_stored, list_stored, naming_store_faults
from segtune.imageio.walk import walk_files

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)

logger = logging.getLogger(__name__)


def open_hub(repository: str, config: DatasetConfig) -> tuple[DatasetDict, dict[int, str | None] | None]:
    """A data set of the Hub, from the cache where it is out of reach, and the classes of its id2label.json.

    Raises:
        UsageError: it cannot be loaded.
    """
    with offline_if_out_of_reach():
        with _saying(repository, config):
            loaded = load_uncounted(repository, config.name, revision=config.revision)
        return _as_dict(loaded), _hub_classes(repository, config)


def load_uncounted(*args: Any, **options: Any) -> Any:
    """`datasets.load_dataset` without the request to s3.amazonaws.com by which it counts, for local files as well.

    Raises:
        DataError: its cache, which it needs for local files too, cannot be written.
    """
    counted = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        return patiently(lambda: datasets.load_dataset(*args, **options), f"data set {args[0] if args else ''}".strip())
    except OSError as error:
        if error.errno in UNWRITABLE or str(error.filename).startswith(str(datasets.config.HF_CACHE_HOME)):
            raise DataError(
                f"the cache {error.filename or datasets.config.HF_DATASETS_CACHE} cannot be written "
                f"({error.strerror}): name another folder for it with HF_HOME"
            ) from error
        raise
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted


@contextmanager
def _saying(repository: str, config: DatasetConfig) -> Iterator[None]:
    if is_stored(config.path):
        with naming_store_faults(config.path):
            yield
        return
    try:
        yield
    except SegtuneError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"dataset.path = {config.path}: the Hub's data set {repository} cannot be loaded: {reason}"
        ) from error


def open_disk(root: Path) -> DatasetDict:
    """What `save_to_disk` wrote."""
    return _as_dict(datasets.load_from_disk(str(root)))


def parquet_files(root: Path, config: DatasetConfig) -> dict[str, list[str]]:
    """Split -> its parquet files, by a word of their names or their folder; train where neither names a split.

    Where `dataset.splits` says the names, files of other names are left out.

    Raises:
        UsageError: there are none.
    """
    found: dict[str, list[str]] = {}
    names = split_names(config.splits)
    if is_stored(config.path):
        listed = list_stored(config.path, lambda name: name.endswith(".parquet"), deep=True)
    else:
        listed = [str(root)] if root.is_file() else sorted(map(str, walk_files(root, ".parquet")))
    for path in listed:
        place = PurePath(path)
        split = split_in(place.stem, names) or split_of(place.parent.name, names)
        if split or not config.splits:
            found.setdefault(split or "train", []).append(path)
    if not found:
        raise UsageError(f"{place_of(root, config)}: no .parquet files of a split in it")
    return found


def place_of(root: Path, config: DatasetConfig) -> str:
    """The data set's folder, its name on the Hub or its address in an object store."""
    return config.path if is_stored(config.path) else root.as_posix()


@contextmanager
def label_folder(root: Path, config: DatasetConfig) -> Iterator[Path]:
    """The folder in which a data set's label file lies; of one in an object store, with a copy of that file."""
    if not is_stored(config.path):
        yield root.parent if root.is_file() else root
        return
    with tempfile.TemporaryDirectory(prefix="segtune-") as folder:
        files = [] if config.labels else list_stored(config.path, LABEL_FILES.__contains__)
        for file in files:
            if not file.endswith(".parquet"):
                fetch_stored(file, Path(folder) / PurePath(file).name)
        yield Path(folder)


def open_streams(
    root: Path, name: str, config: DatasetConfig, wanted: Collection[str]
) -> dict[str, datasets.IterableDataset]:
    """Some of our splits of parquet files or of a data set of the Hub as streams of "image" and "mask".

    Raises:
        UsageError: the data set cannot be reached, or its columns cannot be told.
    """
    names = split_names(config.splits)
    if name == "parquet":
        files = {split: found for split, found in parquet_files(root, config).items() if split in wanted}
        sources: dict[str, dict[str, Any]] = {
            split: {"path": "parquet", "data_files": {split: found}, "split": split} for split, found in files.items()
        }
    else:
        options = {"path": root.as_posix(), "name": config.name, "revision": config.revision}
        with offline_if_out_of_reach(), _saying(root.as_posix(), config):
            own = datasets.get_dataset_split_names(root.as_posix(), config.name, revision=config.revision)
        sources = {str(split_of(split, names)): {**options, "split": split} for split in own}
    streams = {}
    for split in wanted:
        if split in sources:
            place = place_of(root, config)
            with _saying(place, config):
                stream = load_uncounted(**sources[split], streaming=True)
            columns = with_columns(stream, *find_columns(stream.features, config, place))
            # Rows come undecoded: their cells are looked at, and a map's rows are not decoded after it.
            streams[split] = contained_stream(undecoded(columns), place, config)
    return streams


def scan_held_out(root: Path, name: str, config: DatasetConfig) -> DatasetIndex:
    """The rows of val and test alone, beside a training split that is streamed."""
    if name == "parquet":
        files = {split: found for split, found in parquet_files(root, config).items() if split != "train"}
        if not files:
            return DatasetIndex(root, tables={})
        with _saying(place_of(root, config), config):
            held = load_uncounted("parquet", data_files=files)
        return scan_tables(root, _as_dict(held), None, config.model_copy(update={"splits": None}))
    streams = open_streams(root, name, config, ("val", "test"))
    held = {
        split: Dataset.from_generator(_rows, features=stream.features, gen_kwargs={"stream": undecoded(stream)})
        for split, stream in streams.items()
    }
    classes = _hub_classes(root.as_posix(), config)
    if not held:
        return DatasetIndex(root, classes=classes, tables={})
    usual = config.model_copy(update={"images": None, "masks": None, "splits": None})  # as `open_streams` calls them
    return scan_tables(root, DatasetDict(held), classes, usual)


def _rows(stream: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def scan_parquet(root: Path, config: DatasetConfig) -> DatasetIndex:
    """The rows of parquet files, which hold the pictures, or the paths of files relative to the folder."""
    with _saying(place_of(root, config), config):
        tables = load_uncounted("parquet", data_files=parquet_files(root, config))
    image, _ = find_columns(next(iter(tables.values())).features, config, place_of(root, config))
    in_store = is_stored(config.path)  # where cells hold pictures, never the paths of files
    if in_store or any(getattr(table.features[image], "dtype", "") != "string" for table in tables.values()):
        return scan_tables(root, _as_dict(tables), None, config.model_copy(update={"splits": None}))
    folder = root.parent if root.is_file() else root
    return scan_rows(folder, ((split, folder, row) for split, table in tables.items() for row in table), config)


def scan_tables(
    root: Path, tables: DatasetDict, classes: Mapping[int, str | None] | None, config: DatasetConfig
) -> DatasetIndex:
    """The rows of `datasets`' splits, with their columns of images and masks found and named so.

    A sample's `image` is the name of its split in the data, its `image_part` the number of its row.

    Raises:
        UsageError: the columns cannot be told.
    """
    features = next(iter(tables.values())).features
    place = place_of(root, config)
    image, mask = find_columns(features, config, place)
    logger.info("%s: images in the column %r, masks in %r", place, image, mask)
    index = DatasetIndex(root, classes=classes or _class_labels(features[mask]), tables={})
    names = split_names(config.splits)
    for name, table in tables.items():
        split = split_of(name, names)
        if split is None:
            logger.warning("%s: the split %r is none of ours and left out; dataset.splits can name it", root, name)
            continue
        ids = _ids(table)
        assert index.tables is not None
        index.tables[name] = with_columns(table, image, mask, ids)
        contain_cells(index.tables[name], place, config)
        index.samples += [Sample(i, split, Path(name), Path(name), image_part=str(row)) for row, i in enumerate(ids)]
    return index


def find_columns(features: Features, config: DatasetConfig, where: str) -> tuple[str, str]:
    """The column of images and that of masks: by the recipe, by the usual names, or the only ones that are pictures.

    Raises:
        UsageError: they cannot be told.
    """
    for what, given in (("images", config.images), ("masks", config.masks)):
        if given and given not in features:
            raise UsageError(f"{where} has no column {given!r} (dataset.{what}); it has {', '.join(features)}")
    pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
    named = [name for name in features if name in (*IMAGE_COLUMNS, *MASK_COLUMNS) and name not in pictures]
    candidates = [name for name in (*pictures, *named) if _may_hold_pixels(features[name])]
    image = config.images or _only([name for name in IMAGE_COLUMNS if name in candidates], candidates)
    masks = [name for name in MASK_COLUMNS if name in candidates and name != image]
    mask = config.masks or _only(masks, [name for name in candidates if name != image])
    if not image or not mask:
        what = "; ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise UsageError(f"{where}: which columns are images and masks? Set dataset.images and dataset.masks: {what}")
    return image, mask


def with_columns(table: Any, image: str, mask: str, ids: list[str] | None = None) -> Any:
    """A table with the columns "id", "image" and "mask" alone; pictures as bytes or paths are decoded when read."""
    keep = [image, mask] if ids is not None else [name for name in ("id", image, mask) if name in table.column_names]
    table = table.select_columns(keep)
    table = table.rename_columns({old: new for old, new in ((image, "image"), (mask, "mask")) if old != new})
    for name in ("image", "mask"):
        if not isinstance(table.features[name], Image) and not _is_array(table.features[name]):
            table = table.cast_column(name, Image())
    return table if ids is None else table.add_column("id", ids)


def _as_dict(loaded: Any) -> DatasetDict:
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)


def _ids(table: Dataset) -> list[str]:
    """The table's own ids where they are all different, else the numbers of the rows."""
    for name in ID_COLUMNS:
        if name in table.column_names:
            ids = list(table.select_columns(name)[name])
            if None not in ids and len(set(map(str, ids))) == len(ids):
                return list(map(str, ids))
    return [f"{row:06d}" for row in range(len(table))]


def _only(preferred: list[str], candidates: list[str]) -> str | None:
    if preferred:
        return preferred[0]
    return candidates[0] if len(candidates) == 1 else None


def _may_hold_pixels(feature: Any) -> bool:
    return (
        isinstance(feature, (Image, dict))
        or _is_array(feature)
        or getattr(feature, "dtype", "") in ("binary", "string")
    )


def _is_array(feature: Any) -> bool:
    return (
        isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.Sequence, list))
        or type(feature).__name__ == "List"
    )


def _class_labels(feature: Any) -> dict[int, str | None] | None:
    """The names of a `ClassLabel` somewhere inside a column of masks."""
    while feature is not None and not isinstance(feature, datasets.ClassLabel):
        feature = getattr(feature, "feature", None)
    return None if feature is None else dict(enumerate(feature.names))


def _hub_classes(repository: str, config: DatasetConfig) -> dict[int, str | None] | None:
    """What a repository's id2label.json says; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(repository, "id2label.json", repo_type="dataset", revision=config.revision)
    except (EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return None
    return {int(key): name for key, name in json.loads(Path(path).read_text(encoding="utf-8")).items()}
