"""The certificate of an export: how often it answers as its checkpoint does, on which pictures, at what cost.

Nothing here knows of a file or an engine: both sides are functions from an image to its mask.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segtune.engines.graph import CHECKSUMS
from segtune.errors import DataError, SegtuneError
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.uncertainty import compare
from segtune.files import fingerprint, read_json, write_atomic
from segtune.segformer.checkpoint_files import CERTIFICATE_FILE

EXPORTS = "export"  # in a run folder: a folder for each target
FORMAT = 1
TIE = 1e-3  # of two logits that are no further apart, rounding decides which one is larger

Answer = Callable[[np.ndarray], np.ndarray]  # an image (H, W, C) -> training ids (H, W)
# an image (H, W, C), rows, columns, one class and another for each of n pixels -> how far apart their logits are, (n,)
Margins = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Picture(NamedTuple):
    """What both sides are asked about.

    Attributes:
        id: of a sample, or the path of a file.
        image: `(H, W, C)`, as `read_image` gives it.
        labels: the truth `(H, W)`, may hold the ignore index; None where nobody knows it.
    """

    id: str
    image: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Thresholds:
    """The least that an export must reach.

    Attributes:
        agreement: share of the pixels that get the same class.
        mean_iou: mean IoU of the export's masks with the checkpoint's.
    """

    agreement: float = 0.9995
    mean_iou: float = 0.999


FULL = Thresholds()
HALF = Thresholds(0.99, 0.99)  # of fp16, bf16 and int8, unless the user says otherwise


class CertificateError(SegtuneError):
    """The export does not agree with its checkpoint, so that it is not written."""


@dataclass(frozen=True)
class Certificate:
    """What was measured; `to_dict` is what `certificate.json` holds of a file.

    Attributes:
        pixels, differing, ties: of all pictures; ties are those among the differing pixels where the checkpoint's two
            logits are within `TIE`, so that either answer is right.
        agreement: share of the pixels with the same class.
        mean_iou: of the masks of both, over the classes that occur in one of them.
        per_class: IoU of the masks of both, by name; None where a class is in neither.
        worst: id and agreement of the picture with the lowest.
        milliseconds: of the checkpoint and of the export for a picture, medians of alternating calls.
        megabytes: the most that a call of each added to the process's resident memory; None where nobody tells.
        truth: what `uncertainty.compare` says of the true mIoU, first the checkpoint; None without labels.
    """

    thresholds: Thresholds
    images: int
    pixels: int
    differing: int
    ties: int
    agreement: float
    mean_iou: float
    per_class: dict[str, float | None]
    worst: tuple[str, float]
    milliseconds: tuple[float, float]
    megabytes: tuple[float | None, float | None]
    truth: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        return self.agreement >= self.thresholds.agreement and self.mean_iou >= self.thresholds.mean_iou

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        names = ("checkpoint", "export")
        return {
            "passed": self.passed,
            "agreement": self.agreement,
            "mean_iou_of_agreement": self.mean_iou,
            "thresholds": {"agreement": self.thresholds.agreement, "mean_iou": self.thresholds.mean_iou},
            "images": self.images,
            "pixels": self.pixels,
            "differing_pixels": self.differing,
            "of_these_ties": self.ties,
            "worst_image": {"id": self.worst[0], "agreement": self.worst[1]},
            "per_class_iou": self.per_class,
            "milliseconds": dict(zip(names, self.milliseconds, strict=True)),
            "megabytes": dict(zip(names, self.megabytes, strict=True)),
            "true_mean_iou": self._truth(),
        }

    def _truth(self) -> dict[str, Any] | None:
        if self.truth is None:
            return None
        row = self.truth["mean_iou"]
        return {
            "checkpoint": row["first"],
            "export": row["second"],
            "difference": row["difference"],
            "interval": row["bca"],
            "level": self.truth["level"],
        }

    def __str__(self) -> str:
        """One line for people."""
        ties = f", {self.ties:,} of them ties" if self.ties else ""
        return (
            f"agreement {self.agreement:.6f} (at least {self.thresholds.agreement}), mIoU of agreement "
            f"{self.mean_iou:.6f} (at least {self.thresholds.mean_iou}), on {self.images} images: "
            f"{self.differing:,} of {self.pixels:,} pixels differ{ties}; worst: {self.worst[0]} ({self.worst[1]:.6f})"
        )


def certify(
    checkpoint: Answer,
    export: Answer,
    pictures: Iterable[Picture],
    names: Sequence[str],
    *,
    thresholds: Thresholds = FULL,
    margins: Margins | None = None,
    ignore_index: int = 255,
) -> Certificate:
    """Ask both sides about every picture, in turns.

    Args:
        names: of the classes, by training id.
        margins: tells ties from errors; without it, no pixel is called a tie.
        ignore_index: of the pictures' labels.

    Raises:
        DataError: a mask of another size than its image, or a class that is none; or no picture at all.
    """
    agreement = Evaluation(names, ignore_index=-1)
    truths = [Evaluation(names, ignore_index) for _ in range(2)]
    calls = [_Calls(checkpoint), _Calls(export)]
    ties, shares = 0, {}
    for number, picture in enumerate(pictures):
        order = calls if number % 2 == 0 else calls[::-1]  # so that neither always finds the caches warm
        found = {side: side(picture.image) for side in order}
        expected, mask = (found[side] for side in calls)
        agreement.add(picture.id, expected.astype(np.int64), mask)
        differ = expected != mask
        shares[picture.id] = 1 - float(differ.mean())
        if margins is not None and differ.any():
            rows, columns = np.nonzero(differ)
            apart = margins(picture.image, rows, columns, expected[differ], mask[differ])
            ties += int((np.abs(apart) <= TIE).sum())
        if picture.labels is not None:
            for truth, one in zip(truths, (expected, mask), strict=True):
                truth.add(picture.id, picture.labels, one)
    if not shares:
        raise DataError("there is no picture to compare the export with its checkpoint on")
    scores = agreement.scores()
    pixels, same = int(agreement.confusion.sum()), int(agreement.confusion.trace())
    worst = min(shares.items(), key=lambda item: item[1])
    return Certificate(
        thresholds=thresholds,
        images=len(shares),
        pixels=pixels,
        differing=pixels - same,
        ties=ties,
        agreement=same / pixels,
        mean_iou=scores["mean_iou"],
        per_class={name: row["iou"] for name, row in scores["per_class"].items()},
        worst=worst,
        milliseconds=(calls[0].milliseconds, calls[1].milliseconds),
        megabytes=(calls[0].megabytes, calls[1].megabytes),
        truth=compare(*truths) if len(truths[0]) > 1 else None,
    )


def checksums(folder: Path) -> dict[str, dict[str, str]]:
    """What a certificate holds of the files that lie in its folder: the SHA-256 of each, by its path."""
    files = {path.relative_to(folder).as_posix(): fingerprint(path) for path in sorted(folder.rglob("*"))}
    return {CHECKSUMS: {path: entry["sha256"] for path, entry in files.items() if entry}}


def write_certificate(folder: Path, content: dict[str, Any]) -> None:
    """Write `certificate.json` into the folder of an export."""
    write_atomic(folder / CERTIFICATE_FILE, json.dumps({"format": FORMAT} | content, indent=2) + "\n")


def read_certificate(folder: Path) -> dict[str, Any] | None:
    """What `write_certificate` wrote; None where the folder has none.

    Raises:
        DataError: the file is damaged, or of a later version of segtune.
    """
    path = folder / CERTIFICATE_FILE
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): export once more") from error
    if found != FORMAT:
        raise DataError(f"{path} has format {found}, this version of segtune reads {FORMAT}")
    return dict(content)


class _Calls:
    """One side, with what its calls cost."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.seconds: list[float] = []
        self.added: list[float | None] = []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        before = _memory("VmRSS")
        _forget_peak()
        start = time.perf_counter()
        mask = self.answer(image)
        self.seconds.append(time.perf_counter() - start)
        peak = _memory("VmHWM")
        self.added.append(None if before is None or peak is None else peak - before)
        if mask.shape != image.shape[:2]:
            raise DataError(f"the mask of an image of {image.shape[:2]} (height, width) is {mask.shape}")
        return mask

    @property
    def milliseconds(self) -> float:
        timed = self.seconds[1:] or self.seconds  # the first call prepares what later ones find
        return round(1000 * statistics.median(timed), 3)

    @property
    def megabytes(self) -> float | None:
        known = [value for value in self.added if value is not None]
        return round(max(known), 1) if known else None


def _memory(entry: str) -> float | None:
    """Megabytes that Linux tells of this process: what is resident now, or was at most."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) / 1024
    return None


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
