"""The doctor's page: one HTML file with findings, classes, sizes and samples, which `templates/page.html` lays out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.check_classes import class_table
from segtune.doctor.examine import Diagnosis
from segtune.doctor.findings import SEVERITIES, Finding, sentence
from segtune.doctor.sample_facts import read_for_display
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import Color
from segtune.viz.charts import Axis, Frame
from segtune.viz.comparisons import evenly_spaced
from segtune.viz.html import check_page, data_url, render, write_page
from segtune.viz.numbers import count
from segtune.viz.overlay import overlay

COMMAND = "doctor"
SHOWN_FILES = 8
SHOWN_PICTURES, SHOWN_OVERLAYS = 4, 6  # of a finding
SHOWN_SAMPLES = 12
SETTING = re.compile(r"((?:dataset|transforms|model|training)\.[\w.]+=(?:\{[^}]*\}|\[[^]]*\]|[^\s,]+))")
SIDE_BY_SIDE = (
    "duplicates",
    "leaked-duplicates",
    "conflicting-duplicates",
    "near-duplicates",
    "leaked-near-duplicates",
)  # images to compare
SPLIT_COLORS = {"train": "blue", "val": "orange", "test": "green"}
SIDE = 400  # of the chart of sizes, pixels
HEIGHT = 240  # of a picture, pixels
WIDEST = 960
QUALITY = 82  # of the JPEG
NOT_NAMED: tuple[str, Color] = ("not named", (255, 0, 255))
GAP = 6

Draw = Callable[[Case, Sample], str | None]


def write_doctor_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page of a diagnosis; one that is there already is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path, COMMAND, "--html")
    write_page(path, page(diagnosis))


def page(diagnosis: Diagnosis) -> str:
    """The whole page, as HTML."""
    case = diagnosis.case
    root, errors, warnings = case.index.root, diagnosis.count("error"), diagnosis.count("warning")
    return render(
        "doctor/templates/page.html",
        command=COMMAND,
        title=f"{root.name}: {count(errors, 'error')}, {count(warnings, 'warning')}",
        root=root,
        tiles=_tiles(diagnosis),
        findings=[(_card(finding), _figures_of(case, finding)) for finding in diagnosis.findings],
        shown_files=SHOWN_FILES,
        split_colors={split: SPLIT_COLORS[split] for split in case.splits},
        samples=_samples(case),
        **_classes(case),
        **_sizes(case),
    )


def _tiles(diagnosis: Diagnosis) -> list[tuple[int, str, str]]:
    """The numbers of the headline, what each is, and the severity that colours it unless it is 0."""
    case = diagnosis.case
    splits = ", ".join(f"{number} {split}" for split, number in diagnosis.samples.items())
    named = "" if case.named else " (a guess: the recipe does not name them)"
    tiles = [(len(case.facts), f"samples: {splits}", ""), (case.label_map.num_labels, f"classes{named}", "")]
    for severity in SEVERITIES:
        number = diagnosis.count(severity)
        tiles.append((number, severity if severity == "info" or number == 1 else f"{severity}s", severity))
    return tiles


def _card(finding: Finding) -> dict[str, Any]:
    """A finding as the page says it: advice in parts, of which every second one is a recipe's setting."""
    found = finding.to_dict()
    return found | {"message": sentence(finding.message), "fix": [SETTING.split(line) for line in found["fix"]]}


# --- the data set ----------------------------------------------------------------------------------------------------


def _classes(case: Case) -> dict[str, Any]:
    """The share of the pixels of each class in each split, the largest of these, and how many images hold it."""
    rows = class_table(case)
    totals = {split: max(sum(row["pixels"][split] for row in rows), 1) for split in case.splits}
    for row in rows:
        row["shares"] = {split: row["pixels"][split] / totals[split] for split in case.splits}
    largest = max((share for row in rows for share in row["shares"].values()), default=1) or 1
    return {"classes": rows, "largest": largest}


def _sizes(case: Case) -> dict[str, Any]:
    """(height, width) of the images, each with its number of images, the most frequent first; the axes; the crop."""
    sizes = Counter(facts.image.size for facts in case.facts if facts.image).most_common()
    crop = case.transforms.crop_size
    crop = (crop, crop) if isinstance(crop, int) else crop
    ends = [float(max(side for size in (crop, *(size for size, _ in sizes)) for side in size))]
    frame = Frame(Axis("width, pixels").over(ends), Axis("height, pixels").over(ends), SIDE, SIDE)
    return {"sizes": sizes, "crop": crop, "frame": frame}


# --- pictures --------------------------------------------------------------------------------------------------------


def _samples(case: Case) -> list[tuple[Sample, str]]:
    """Overlays, spread over each split."""
    figures: list[tuple[Sample, str]] = []
    for split in case.splits:
        samples = [facts.sample for facts in case.facts if facts.sample.split == split and not facts.faults]
        spread = evenly_spaced(samples, SHOWN_SAMPLES // len(case.splits))
        figures += _figures(case, spread, overlay_of, len(spread))
    return figures


def _figures_of(case: Case, finding: Finding) -> list[tuple[Sample, str]]:
    if finding.code in SIDE_BY_SIDE:
        return _figures(case, finding.samples, overlay_of, SHOWN_OVERLAYS)
    return _figures(case, finding.samples, picture_of, SHOWN_PICTURES)


def _figures(case: Case, samples: Sequence[Sample], draw: Draw, limit: int) -> list[tuple[Sample, str]]:
    """Pictures of the first samples that can be drawn: both files of a sample could be read."""
    readable = {facts.sample for facts in case.facts if not facts.faults}
    drawn: list[tuple[Sample, str]] = []
    for sample in samples[: 3 * limit]:
        if len(drawn) < limit and sample in readable and (url := draw(case, sample)):
            drawn.append((sample, url))
    return drawn


def picture_of(case: Case, sample: Sample) -> str:
    """The image beside itself with the mask over it, as a data URL.

    Where the two differ in size, the right side is the mask alone.
    """
    pixels, mask = read_for_display(sample, case.opener, case.label_map.by_color)
    labels, label_map = _labels(case, mask)
    if pixels.shape[:2] == labels.shape:
        right = overlay(pixels, labels, label_map, legend=False)
    else:
        right = Image.fromarray(label_map.colorize(labels))
    return _url(_beside(Image.fromarray(pixels), right))


def overlay_of(case: Case, sample: Sample) -> str | None:
    """The image with the mask over it, as a data URL; None where they differ in size."""
    pixels, mask = read_for_display(sample, case.opener, case.label_map.by_color)
    labels, label_map = _labels(case, mask)
    if pixels.shape[:2] != labels.shape:
        return None
    return _url(_scaled(overlay(pixels, labels, label_map, legend=False)))


def _labels(case: Case, mask: np.ndarray) -> tuple[np.ndarray, LabelMap]:
    """Labels (H, W), and a label map that has one class more, for values without a name."""
    names, colors = case.label_map.names, case.label_map.colors
    extended = LabelMap((*names, NOT_NAMED[0]), (*colors, NOT_NAMED[1]), ignore_index=-1)
    return case.labels(mask), extended


def _scaled(picture: Image.Image) -> Image.Image:
    factor = min(HEIGHT / picture.height, WIDEST / picture.width)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    left, right = _scaled(left), _scaled(right)
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), (128, 128, 128))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def _url(picture: Image.Image) -> str:
    return data_url(picture.convert("RGB"), "jpeg", quality=QUALITY)
