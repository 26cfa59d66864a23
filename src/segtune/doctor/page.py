"""The doctor's page: one HTML file with findings, classes, sizes and samples; it needs no network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.check_classes import class_table
from segtune.doctor.examine import Diagnosis
from segtune.doctor.findings import LEAVE_OUT, SEVERITIES, Finding, count, percent, sentence
from segtune.doctor.sample_facts import read_for_display
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import Color
from segtune.viz.charts import Axis, Frame
from segtune.viz.html import asset, bar, check_page, data_url, document, section, swatch, tile, write_page
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
SIDE = 400.0  # of the chart of sizes, pixels
Item = TypeVar("Item")


def write_doctor_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page of a diagnosis; one that is there already is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path, COMMAND, "--html")
    write_page(path, page(diagnosis))


def page(diagnosis: Diagnosis) -> str:
    """The whole page."""
    case = diagnosis.case
    title = f"{case.index.root.name}: {_verdict(diagnosis)}"
    card = partial(_card, case)
    body = "\n".join(
        [
            _headline(diagnosis),
            section("Findings", "".join(map(card, diagnosis.findings)) or "<p>None.</p>", "findings"),
            section("Classes", _classes(case), "classes"),
            section("Sizes", _sizes(case), "sizes"),
            section("Samples", _samples(case), "samples"),
        ]
    )
    return document(title, body, command=COMMAND, style=asset("doctor/page.css"))


def _verdict(diagnosis: Diagnosis) -> str:
    errors, warnings = diagnosis.count("error"), diagnosis.count("warning")
    return f"{count(errors, 'error')}, {count(warnings, 'warning')}"


def _headline(diagnosis: Diagnosis) -> str:
    case = diagnosis.case
    named = "" if case.named else " (a guess: the recipe does not name them)"
    tiles = [
        (str(len(case.facts)), "samples: " + ", ".join(f"{n} {split}" for split, n in diagnosis.samples.items())),
        (str(case.label_map.num_labels), f"classes{named}"),
        *(
            (str(number), severity if severity == "info" or number == 1 else f"{severity}s")
            for severity, number in ((severity, diagnosis.count(severity)) for severity in SEVERITIES)
        ),
    ]
    kinds = ["", "", *SEVERITIES]
    shown = "".join(
        tile(number, text, kind=kind if number != "0" else "")
        for kind, (number, text) in zip(kinds, tiles, strict=True)
    )
    return (
        f'<header><h1>{escape(case.index.root.name)}</h1><p class="soft path">{escape(str(case.index.root))}</p>'
        f'<div class="tiles">{shown}</div></header>'
    )


# --- findings --------------------------------------------------------------------------------------------------------


def _card(case: Case, finding: Finding) -> str:
    fix = "".join(f"<li>{_mend(line)}</li>" for line in (*finding.fix, *([LEAVE_OUT] if finding.drop else [])))
    compared = finding.code in SIDE_BY_SIDE
    draw, limit = (overlay_of, SHOWN_OVERLAYS) if compared else (picture_of, SHOWN_PICTURES)
    pictures = "".join(_figures(case, finding.samples, draw, limit))
    return (
        f'<article class="{finding.severity}"><h3><span class="badge">{finding.severity}</span> {finding.code}</h3>'
        f"<p>{escape(sentence(finding.message))}</p>{_files(finding.files)}"
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + (f'<ul class="mend">{fix}</ul>' if fix else "")
        + "</article>"
    )


def _mend(line: str) -> str:
    """Advice, with the recipe's settings in it as code."""
    parts = SETTING.split(line)
    return "".join(f"<code>{escape(part)}</code>" if i % 2 else escape(part) for i, part in enumerate(parts))


def _files(files: Sequence[str]) -> str:
    if not files:
        return ""
    shown = "".join(f"<li>{escape(file)}</li>" for file in files[:SHOWN_FILES])
    more = (
        f"<li>and {len(files) - SHOWN_FILES} more (all in <code>--json</code>)</li>" if len(files) > SHOWN_FILES else ""
    )
    return (
        f"<details><summary>{count(len(files), 'file')}: {escape(files[0])}</summary><ul>{shown}{more}</ul></details>"
    )


def _figures(
    case: Case, samples: Sequence[Sample], draw: Callable[[Case, Sample], str | None], limit: int
) -> Iterator[str]:
    """Pictures of the first samples that can be drawn."""
    drawn = 0
    for sample in samples[: 3 * limit]:
        if drawn < limit and (url := draw(case, sample)):
            drawn += 1
            yield (
                f'<figure><img src="{url}" alt="{escape(sample.id)}">'
                f"<figcaption>{escape(sample.split)}/{escape(sample.id)}</figcaption></figure>"
            )


# --- the data set ----------------------------------------------------------------------------------------------------


def _classes(case: Case) -> str:
    """A row a class: its share of the pixels in each split as bars, and how many images hold it."""
    rows = class_table(case)
    totals = {split: max(sum(row["pixels"][split] for row in rows), 1) for split in case.splits}
    shares = [[row["pixels"][split] / totals[split] for split in case.splits] for row in rows]
    largest = max((share for row in shares for share in row), default=1) or 1
    legend = " ".join(f'<span class="{SPLIT_COLORS[split]}"><i></i>{split}</span>' for split in case.splits)
    lines = "".join(_class_row(case, row, own, largest) for row, own in zip(rows, shares, strict=True))
    return (
        '<p class="soft">Share of the pixels, and the number of images that hold the class.'
        f'<span class="key">{legend}</span></p><div class="classes">{lines}</div>'
    )


def _class_row(case: Case, row: dict[str, Any], shares: Sequence[float], largest: float) -> str:
    bars = "".join(
        f'<div class="{SPLIT_COLORS[split]}">{bar(share / largest)}<span class="soft">'
        f"{percent(share) + ', ' + count(row['images'][split], 'image') if share else 'none'}</span></div>"
        for split, share in zip(case.splits, shares, strict=True)
    )
    return f'<div class="name">{swatch(row["color"])}{escape(str(row["name"]))}</div><div>{bars}</div>'


def _sizes(case: Case) -> str:
    """Width against height, a disc for each size, as large as its number of images; the crop as a frame."""
    sizes = Counter(facts.image.size for facts in case.facts if facts.image)
    if not sizes:
        return "<p>No image could be read.</p>"
    crop = case.transforms.crop_size
    crop_height, crop_width = (crop, crop) if isinstance(crop, int) else crop
    ends = [float(max(*(max(size) for size in sizes), crop_height, crop_width))]
    frame = Frame(Axis("width, pixels").over(ends), Axis("height, pixels").over(ends), SIDE, SIDE)
    discs = "".join(
        f'<circle class="blue" cx="{across:.1f}" cy="{up:.1f}" r="{3 + 9 * (number / max(sizes.values())) ** 0.5:.1f}">'
        f"<title>{height}x{width}: {count(number, 'image')}</title></circle>"
        for (height, width), number in sizes.items()
        for across, up in [frame.place(width, height)]
    )
    (left, top), (right, bottom) = frame.place(0, crop_height), frame.place(crop_width, 0)
    around = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}"
    (height, width), number = sizes.most_common(1)[0]
    return (
        f"<p>{number} of {sum(sizes.values())} images are {height}x{width} (height x width)"
        f"{f'; there are {len(sizes)} sizes' if len(sizes) > 1 else ''}. The frame is the training crop, "
        f"{crop_height}x{crop_width}.</p>"
        + frame.figure("Sizes of images and, dashed, of the training crop", f'<path class="crop" d="{around}"/>{discs}')
    )


def _samples(case: Case) -> str:
    """Overlays, spread over each split."""
    figures: list[str] = []
    for split in case.splits:
        samples = [facts.sample for facts in case.facts if facts.sample.split == split and not facts.faults]
        spread = _spread(samples, SHOWN_SAMPLES // len(case.splits))
        figures += _figures(case, spread, overlay_of, len(spread))
    return f'<div class="pictures">{"".join(figures)}</div>'


def _spread(items: Sequence[Item], limit: int) -> list[Item]:
    number = min(limit, len(items))
    return [items[index * len(items) // number] for index in range(number)]


HEIGHT = 240  # of a picture, pixels
WIDEST = 960
QUALITY = 82  # of the JPEG
NOT_NAMED: tuple[str, Color] = ("not named", (255, 0, 255))
GAP = 6


def picture_of(case: Case, sample: Sample) -> str | None:
    """The image beside itself with the mask over it, as a data URL; None where one of them cannot be read.

    Where the two differ in size, the right side is the mask alone.
    """
    try:
        pixels, mask = read_for_display(sample, case.opener)
    except Exception:  # decoders raise what they like, and the finding says it
        return None
    labels, label_map = _labels(case, mask)
    if pixels.shape[:2] == labels.shape:
        right = overlay(pixels, labels, label_map, legend=False)
    else:
        right = Image.fromarray(label_map.colorize(labels))
    return _url(_beside(Image.fromarray(pixels), right))


def overlay_of(case: Case, sample: Sample) -> str | None:
    """The image with the mask over it, as a data URL; None where that cannot be made."""
    try:
        pixels, mask = read_for_display(sample, case.opener)
    except Exception:  # as above
        return None
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
