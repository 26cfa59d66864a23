"""The doctor's page: one HTML file with findings, classes, sizes and samples; it needs no network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import segtune
from segtune.data.doctor.case import Case
from segtune.data.doctor.classes import class_table
from segtune.data.doctor.examine import Diagnosis
from segtune.data.doctor.findings import LEAVE_OUT, SEVERITIES, Finding, count, percent, sentence
from segtune.data.scan import Sample
from segtune.doctor_pictures import overlay_of, picture_of
from segtune.errors import UsageError

MARK = "<!-- written by segtune doctor -->"
SHOWN_FILES = 8
SHOWN_PICTURES, SHOWN_OVERLAYS = 4, 6  # of a finding
SHOWN_SAMPLES = 12
SETTING = re.compile(r"((?:dataset|transforms|model|training)\.[\w.]+=(?:\{[^}]*\}|\[[^]]*\]|[^\s,]+))")
SIDE_BY_SIDE = ("copies", "leaked-copies", "disputed-copies", "near-copies", "leaked-near-copies")  # images to compare
SPLIT_COLORS = {"train": "var(--train)", "val": "var(--val)", "test": "var(--test)"}
Item = TypeVar("Item")


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page of a diagnosis; one that is there already is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(diagnosis), encoding="utf-8")


def check_page(path: Path) -> None:
    """Raises UsageError where a page would overwrite another file."""
    if path.exists() and (path.is_dir() or MARK.encode() not in path.read_bytes()[:200]):
        raise UsageError(f"--html {path}: it is there already and is no page of segtune doctor; name another file")


def page(diagnosis: Diagnosis) -> str:
    """The whole page."""
    case = diagnosis.case
    title = f"{case.scan.root.name}: {_verdict(diagnosis)}"
    body = "\n".join(
        [
            _headline(diagnosis),
            _section("Findings", "".join(_card(case, finding) for finding in diagnosis.findings) or "<p>None.</p>"),
            _section("Classes", _classes(case)),
            _section("Sizes", _sizes(case)),
            _section("Samples", _samples(case)),
        ]
    )
    return (
        f'<!DOCTYPE html>\n{MARK}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n<footer>segtune {segtune.__version__} doctor</footer>"
        f"</main></body></html>\n"
    )


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
            (str(diagnosis.count(severity)), f"{severity}s" if severity != "info" else severity)
            for severity in SEVERITIES
        ),
    ]
    kinds = ["plain", "plain", *SEVERITIES]
    shown = "".join(
        f'<div class="tile {kind if number != "0" else "plain"}"><b>{number}</b><span>{escape(text)}</span></div>'
        for kind, (number, text) in zip(kinds, tiles, strict=True)
    )
    return (
        f'<header><h1>{escape(case.scan.root.name)}</h1><p class="path">{escape(str(case.scan.root))}</p>'
        f'<div class="tiles">{shown}</div></header>'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


# -- findings ---------------------------------------------------------------------------------------------------------


def _card(case: Case, finding: Finding) -> str:
    mend = "".join(f"<li>{_mend(line)}</li>" for line in (*finding.mend, *([LEAVE_OUT] if finding.drop else [])))
    compared = finding.code in SIDE_BY_SIDE
    draw, limit = (overlay_of, SHOWN_OVERLAYS) if compared else (picture_of, SHOWN_PICTURES)
    pictures = "".join(_figures(case, finding.samples, draw, limit))
    return (
        f'<article class="{finding.severity}"><h3><span class="badge">{finding.severity}</span> {finding.code}</h3>'
        f"<p>{escape(sentence(finding.message))}</p>{_files(finding.files)}"
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + (f'<ul class="mend">{mend}</ul>' if mend else "")
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
                f'<figure><img src="{url}" alt="{escape(sample.id)}" loading="lazy">'
                f"<figcaption>{escape(sample.split)}/{escape(sample.id)}</figcaption></figure>"
            )


# -- the data set -----------------------------------------------------------------------------------------------------


def _classes(case: Case) -> str:
    """A row a class: its share of the pixels in each split as bars, and how many images hold it."""
    rows = class_table(case)
    totals = {split: max(sum(row["pixels"][split] for row in rows), 1) for split in case.splits}
    shares = [[row["pixels"][split] / totals[split] for split in case.splits] for row in rows]
    largest = max((share for row in shares for share in row), default=1) or 1
    legend = "".join(f'<span><i style="background:{SPLIT_COLORS[split]}"></i>{split}</span>' for split in case.splits)
    lines = "".join(_class_row(case, row, own, largest) for row, own in zip(rows, shares, strict=True))
    return (
        f'<p class="legend">Share of the pixels in {legend}; the number of images that hold the class</p>'
        f'<div class="classes">{lines}</div>'
    )


def _class_row(case: Case, row: dict[str, Any], shares: Sequence[float], largest: float) -> str:
    bars = "".join(
        f'<div class="bar"><i style="--share:{max(share / largest, 0.004 if share else 0):.4f};'
        f'background:{SPLIT_COLORS[split]}"></i><span>{percent(share) if share else "none"}, '
        f"{count(row['images'][split], 'image')}</span></div>"
        for split, share in zip(case.splits, shares, strict=True)
    )
    return (
        f'<div class="name"><i class="swatch" style="background:{row["color"]}"></i>{escape(str(row["name"]))}</div>'
        f"<div>{bars}</div>"
    )


def _sizes(case: Case) -> str:
    """Width against height, a disc for each size, as large as its number of images; the crop as a frame."""
    sizes = Counter(facts.image.size for facts in case.facts if facts.image)
    if not sizes:
        return "<p>No image could be read.</p>"
    crop = case.transforms.crop_size
    crop_height, crop_width = (crop, crop) if isinstance(crop, int) else crop
    top = 1.12 * max(*(max(size) for size in sizes), crop_height, crop_width)
    scale, base, left = 300 / top, 320, 50
    discs = "".join(
        f'<circle cx="{left + width * scale:.1f}" cy="{base - height * scale:.1f}" '
        f'r="{3 + 9 * (number / max(sizes.values())) ** 0.5:.1f}"><title>{height}x{width}: {number}</title></circle>'
        for (height, width), number in sizes.items()
    )
    step = _round_step(top / 4)
    ticks = "".join(
        f'<text x="{left + value * scale:.1f}" y="338" text-anchor="middle">{value}</text>'
        f'<text x="44" y="{base - value * scale + 4:.1f}" text-anchor="end">{value}</text>'
        for value in range(0, int(top), step)
    )
    (height, width), number = sizes.most_common(1)[0]
    return (
        f"<p>{number} of {sum(sizes.values())} images are {height}x{width} (height x width)"
        f"{f'; there are {len(sizes)} sizes' if len(sizes) > 1 else ''}. The frame is the training crop, "
        f"{crop_height}x{crop_width}.</p>"
        f'<svg viewBox="0 0 370 360" role="img" aria-label="sizes of images"><path class="axis" '
        f'd="M{left} 14V{base}H360"/><rect class="crop" x="{left}" y="{base - crop_height * scale:.1f}" '
        f'width="{crop_width * scale:.1f}" height="{crop_height * scale:.1f}"/>{discs}{ticks}'
        f'<text x="205" y="356" text-anchor="middle">width</text>'
        f'<text transform="translate(12 170) rotate(-90)" text-anchor="middle">height</text></svg>'
    )


def _round_step(step: float) -> int:
    """A round number near a step: 1, 2 or 5 times a power of ten."""
    power = 10 ** max(len(str(int(step))) - 1, 0)
    return max(1, next((power * factor for factor in (1, 2, 5) if power * factor >= step), 10 * power))


def _samples(case: Case) -> str:
    """Overlays, spread over each split."""
    figures: list[str] = []
    for split in case.splits:
        samples = [facts.sample for facts in case.facts if facts.sample.split == split and not facts.faults]
        spread = _spread(samples, SHOWN_SAMPLES // len(case.splits))
        figures += _figures(case, spread, overlay_of, len(spread))
    return f'<div class="pictures small">{"".join(figures)}</div>'


def _spread(items: Sequence[Item], limit: int) -> list[Item]:
    number = min(limit, len(items))
    return [items[index * len(items) // number] for index in range(number)]


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --fill: #f6f8fa;
  --error: #c62828; --warning: #9a6700; --info: #3b6ea5; --train: #4c78a8; --val: #e39b3b; --test: #5aa469; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #9aa4b0; --line: #333a44;
  --fill: #1d2229; --error: #ff7b72; --warning: #e3b341; --info: #79b8ff; --train: #6fa3d8; --val: #f0b45a;
  --test: #79c58c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { margin: 0; font-size: 28px; } h2 { margin: 40px 0 12px; font-size: 21px; } h3 { margin: 0; font-size: 16px; }
.path, figcaption, footer, summary, .legend { color: var(--soft); overflow-wrap: anywhere; }
.path { margin: 0 0 16px; } footer { margin-top: 48px; font-size: 14px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px; background: var(--fill); }
.tile b { display: block; font-size: 24px; } .tile span { color: var(--soft); font-size: 14px; }
.tile.error b { color: var(--error); } .tile.warning b { color: var(--warning); } .tile.info b { color: var(--info); }
article { border: 1px solid var(--line); border-left: 5px solid var(--info); border-radius: 8px; padding: 12px 16px;
  margin: 0 0 12px; }
article.error { border-left-color: var(--error); } article.warning { border-left-color: var(--warning); }
article p { margin: 6px 0; overflow-wrap: anywhere; }
.badge { color: var(--info); text-transform: uppercase; font-size: 12px; letter-spacing: .05em; }
.error .badge { color: var(--error); } .warning .badge { color: var(--warning); }
summary { cursor: pointer; font-size: 14px; } details ul { margin: 4px 0; font-size: 14px; overflow-wrap: anywhere; }
.mend { margin: 8px 0 0; padding: 8px 12px 8px 32px; background: var(--fill); border-radius: 6px;
  overflow-wrap: anywhere; }
code { font: 14px ui-monospace, monospace; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0; }
figure { margin: 0; max-width: 100%; } figcaption { font-size: 13px; }
.pictures img { display: block; max-width: 100%; height: auto; max-height: 170px; border-radius: 4px; }
.small img { max-height: 150px; }
.classes { display: grid; grid-template-columns: minmax(90px, max-content) 1fr; gap: 8px 16px; align-items: center; }
.name { overflow-wrap: anywhere; } .swatch, .legend i { display: inline-block; width: 14px; height: 14px;
  border-radius: 3px; border: 1px solid var(--line); margin: 0 8px 0 0; vertical-align: -1px; }
.legend span { margin: 0 8px 0 4px; white-space: nowrap; } .legend i { margin-right: 4px; border: 0; }
.bar { display: flex; align-items: center; gap: 8px; height: 18px; }
.bar i { display: block; height: 11px; border-radius: 2px; flex: none; width: calc(var(--share) * (100% - 150px)); }
.bar span { font-size: 13px; color: var(--soft); white-space: nowrap; }
svg { width: 100%; max-width: 460px; } svg text { font-size: 12px; fill: var(--soft); }
circle { fill: var(--train); opacity: .7; } .axis { stroke: var(--line); fill: none; }
.crop { fill: none; stroke: var(--warning); stroke-dasharray: 5 4; stroke-width: 1.5; }
"""
