"""Generated annotation files for any reader: valid ones, and valid ones with one mutation, from one seed.

A format is a function that makes the files of a small data set: `make(rng)` gives {name below the folder: JSON-able
data, or text}. `fuzz(make, "coco", count)` writes them, mutates one of them in seven of eight rounds, opens the data
set and reads every mask. It fails where anything but an error of segtune comes out, where an error does not name the
data set, where the tally loses count, where a valid file is refused, or where much memory was taken.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import random
import resource
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset, rows_of, scan_dataset
from segtune.data.index import DatasetIndex
from segtune.errors import SegtuneError
from segtune.imageio.read import read_mask

Files = Mapping[str, Any]
Make = Callable[[random.Random], dict[str, Any]]
Count = Callable[[Files], "int | None"]

SIZES = {"a": (12, 16), "b": (9, 7), "c": (10, 10)}  # pictures, (height, width)
MOST_MEMORY = 2**30  # bytes that a run may take more than before
WRONG = (
    None, True, -1, 0, 0.5, 77, 1e7, 1e300, 2**31, 10**400, math.nan, math.inf, "", "x", "1", "ä\u0301", "../a.png",
    [], [[]], [[[]]], {}, {"a": 1}, [None], [1, 2], [0.5] * 6, ["a"] * 6, "[" * 50,
)  # fmt: skip
WRONG_TEXTS = ("", "x", "nan", "inf", "-1", "0.5", "1e300", "9" * 400, "1,2;3", "../../a.png", "\u202e", "ä", "\x00")


def polygon(rng: random.Random, size: tuple[int, int]) -> list[float]:
    """An outline around a place in the picture, which covers some of its pixels."""
    height, width = size
    x, y = rng.uniform(3, width - 3), rng.uniform(3, height - 3)
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(5, 9)))
    angles = [0, 1.5, 3, 4.5, *angles]
    ends = [(x + 2.5 * math.cos(angle), y + 2.5 * math.sin(angle)) for angle in sorted(angles)]
    return [round(number, 2) for end in ends for number in end]


def write_pictures(root: Path) -> None:
    for name, size in SIZES.items():
        PIL.Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(root / f"{name}.png")


def fuzz(
    make: Make,
    format: str,
    count: int,
    folder: Path,
    seed: int = 0,
    annotations: Count | None = None,
    given: str | None = None,
    **options: Any,
) -> Counter[str]:
    """What came out of `count` data sets: "valid", "fine" (mutated, read all the same) and "refused".

    Args:
        folder: an empty one to write to.
        annotations: how many annotations a reader is given, of the mutated files; None where that is not clear.
        given: the file that `dataset.path` names, if not the folder.
        options: of `DatasetConfig`.
    """
    outcomes: Counter[str] = Counter()
    start = peak_memory()
    for number in range(count):
        rng = random.Random(f"{seed}:{number}")
        root = folder / str(number)
        root.mkdir()
        write_pictures(root)
        files, what = make(rng), "valid"
        if number % 8:
            what = mutate(files, rng)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_bytes(content))
        outcome = try_one(root, DatasetConfig(path=str(root / (given or "")), format=format, val_fraction=0, **options))
        expected = annotations(files) if annotations and outcome.index else None
        outcome.check(f"seed {seed}, number {number}: {what}", valid=not number % 8, given=expected)
        outcomes["valid" if not number % 8 else "refused" if outcome.error else "fine"] += 1
        shutil.rmtree(root)
    assert peak_memory() - start < MOST_MEMORY
    return outcomes


class Outcome:
    """What opening a data set and reading its masks gave."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index: DatasetIndex | None = None
        self.error: BaseException | None = None

    def check(self, what: str, valid: bool, given: int | None) -> None:
        if self.error is not None:
            assert isinstance(self.error, SegtuneError), f"{what}: {self.error!r}"
            assert not valid, f"{what}: {self.error}"
            named = str(self.root) in str(self.error) or any(f"{name}.png" in str(self.error) for name in SIZES)
            assert named and len(str(self.error)) < 3000, f"{what}: {self.error}"
        tally = self.index.tally if self.index else None
        if self.index and any(problem.kind == "annotation_unreadable" for problem in self.index.problems):
            given = None  # how many a file holds that cannot be read, nobody knows
        if tally is not None:
            assert tally.unaccounted == 0, f"{what}: {tally}"
            assert given is None or tally.given == given, f"{what}: {tally}, but {given} were given"


def try_one(root: Path, config: DatasetConfig) -> Outcome:
    outcome = Outcome(root)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            outcome.index = scan_dataset(config)
            open_dataset(config)
            outcome.index.raise_or_skip()
            for rows in rows_of(outcome.index, config).values():
                for row in rows:
                    read_mask(row["mask"])
    except Exception as error:  # what else it is, `check` tells
        outcome.error = error
    finally:
        logging.disable(logging.NOTSET)
    return outcome


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode("utf-8", "replace")


# -- mutations --------------------------------------------------------------------------------------------------------


def mutate(files: dict[str, Any], rng: random.Random) -> str:
    """Change one thing in one file; returns what was done."""
    name = rng.choice(sorted(name for name, content in files.items() if not isinstance(content, bytes)))
    content = files[name]
    if rng.random() < 0.1:
        files[name], what = _other_bytes(as_bytes(content), rng)
    elif isinstance(content, str):
        files[name], what = _mutate_text(content, rng)
    else:
        content = copy.deepcopy(content)
        files[name] = content
        what = _mutate_data(content, rng)
    return f"{name}: {what}"


def _other_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    text = content.decode("utf-8", "replace")
    place = rng.randrange(len(content) + 1)
    return rng.choice(
        [
            (text.encode("utf-16"), "as UTF-16"),
            (text.replace("car", "größe").encode("latin-1", "replace"), "as Latin-1"),
            (b"\xef\xbb\xbf" + content, "with a byte order mark"),
            (content[:place], f"cut at {place}"),
            (content[:place] + b"\x00\xff" + content[place:], f"with odd bytes at {place}"),
            (b"", "empty"),
            (content.replace(b"\n", b"\r\n"), "with line ends of Windows"),
        ]
    )


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object below one, with each of its keys."""
    keys = range(len(holder)) if isinstance(holder, list) else list(holder)
    for key in keys:
        yield holder, key
        if isinstance(holder[key], (list, dict)):
            yield from _places(holder[key])


def _mutate_data(data: Any, rng: random.Random) -> str:
    places = list(_places(data))
    holder, key = rng.choice(places)
    old = holder[key]
    kind = rng.choice(["wrong", "wrong", "missing", "swap", "text", "wrap", "twice", "rename", "empty", "scale"])
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if kind == "missing":
            del holder[key]
        elif kind == "swap":
            other, place = rng.choice(places)
            holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(old)
        elif kind == "text":
            holder[key] = json.dumps(old) if not isinstance(old, str) else float(old)
        elif kind == "wrap":
            holder[key] = [old]
        elif kind == "twice" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(old))
        elif kind == "rename" and isinstance(holder, dict):
            holder[f"{key}s"] = holder.pop(key)
        elif kind == "empty":
            holder[key] = type(old)()
        elif kind == "scale" and isinstance(old, (int, float)):
            holder[key] = old * rng.choice([0.01, -1, 1e5, 1e18])
        else:
            holder[key] = copy.deepcopy(rng.choice(WRONG))
        return f"{kind} of {key!r}, which was {old!r:.60}"
    holder[key] = copy.deepcopy(rng.choice(WRONG))
    return f"wrong {key!r}, which was {old!r:.60}"


def _mutate_text(text: str, rng: random.Random) -> tuple[str, str]:
    lines = text.split("\n")
    number = rng.randrange(len(lines))
    words = lines[number].split(" ")
    place = rng.randrange(len(words))
    kind = rng.choice(["wrong", "wrong", "missing", "twice", "swap", "line twice", "no line", "long"])
    if kind == "wrong":
        words[place] = rng.choice(WRONG_TEXTS)
    elif kind == "missing":
        del words[place]
    elif kind == "twice":
        words.insert(place, words[place])
    elif kind == "swap":
        other = rng.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    elif kind == "long":
        words[place:place] = [words[place]] * 3000
    lines[number] = " ".join(words)
    if kind == "line twice":
        lines.insert(number, lines[number])
    elif kind == "no line":
        del lines[number]
    return "\n".join(lines), f"{kind} in line {number + 1}, word {place + 1}"
