"""Image outliers: unusual sizes, crops that are mostly padding, dark value ranges, blank images, odd colour modes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.findings import Finding
from segtune.doctor.sample_facts import COLOR_BINS, Facts, ImageFacts
from segtune.viz.numbers import by, count, percent

UNUSUAL_AREA = 4.0  # times the median area, or a fourth of it, where most pictures have nearly the same size
LEAST_IMAGES = 10  # for a size to be unusual
LEAST_RANGE = 1 / 15  # of white: below, values were stored on another scale (12 bits in 16 reach 1/16, 0 to 1 in 8 0)
BLANK_STD = 1 / 255  # of values from 0 to 1: below, there is nothing to see
GREY_SHARE = 0.999  # of pixels without colour, for a picture to count as grey
MINORITY = 0.1  # share of the images that are odd ones; more are a kind of their own
PADDED_MUCH, PADDED = 0.5, 0.25  # share of a training crop that is padding in the median image, at scale 1


def check_images(case: Case) -> Iterator[Finding]:
    """All findings about images."""
    yield from _unusual_sizes(case)
    yield from _crops(case)
    yield from _ranges(case)
    yield from _blank(case)
    yield from _modes(case)


def _unusual_sizes(case: Case) -> Iterator[Finding]:
    sized = [(facts.sample, facts.image.size) for facts in case.facts if facts.image]
    if len(sized) < LEAST_IMAGES or case.transforms.short_side:
        return
    areas = np.log2([height * width for _, (height, width) in sized])
    away = np.abs(areas - np.median(areas))
    least = max(np.log2(UNUSUAL_AREA), 4 * 1.4826 * np.median(away))
    odd = {sample: size for (sample, size), distance in zip(sized, away, strict=True) if distance >= least}
    if odd:
        usual = Counter(size for _, size in sized).most_common(1)[0][0]
        yield case.finding(
            "unusual-size",
            "warning",
            f"{count(len(odd), 'image')} of an unusual size, such as {by(next(iter(odd.values())))} where most are "
            f"{by(usual)} (height x width)",
            list(odd),
            f"transforms.short_side={min(usual)} brings all images to one scale before the crop",
            {"sizes": {sample.id: list(size) for sample, size in odd.items()}},
            of="image",
        )


def _crops(case: Case) -> Iterator[Finding]:
    sizes = [facts.image.size for facts in case.facts if facts.image]
    if not sizes:
        return
    crop = case.transforms.crop_size
    crop = (crop, crop) if isinstance(crop, int) else crop
    factors = [(case.transforms.short_side or min(size)) / min(size) for size in sizes]
    covered = [
        min(1, height * factor / crop[0]) * min(1, width * factor / crop[1])
        for (height, width), factor in zip(sizes, factors, strict=True)
    ]
    padded = 1 - float(np.median(covered))
    if padded >= PADDED:
        side = int(np.median([min(size) * factor for size, factor in zip(sizes, factors, strict=True)]))
        yield Finding(
            "padded-crops",
            "warning" if padded >= PADDED_MUCH else "info",
            f"training crops of {by(crop)} are larger than the images: at scale 1, {percent(padded)} of the median "
            "crop is padding",
            numbers={"padded_share": padded},
            fix=(f"transforms.crop_size={side // 32 * 32 or side}",),
        )


def _ranges(case: Case) -> Iterator[Finding]:
    narrow: dict[int | None, list[tuple[Sample, ImageFacts]]] = defaultdict(list)
    for facts in case.facts:
        if facts.image and is_narrow(facts.image):
            narrow[facts.image.white].append((facts.sample, facts.image))
    for white, images in narrow.items():
        highest = max(image.highest for _, image in images)
        everywhere = len(images) > len(case.facts) / 2
        limit = 2 ** int(highest).bit_length() - 1  # 4095 for 12 bits
        yield case.finding(
            "value-range",
            "error",
            f"{count(len(images), 'image')} with values up to {highest:.0f} where {white} is white: nearly black",
            [sample for sample, _ in images],
            f"transforms.value_range=[0, {limit}]" if everywhere else f"spread their values over 0 to {white}",
            {"highest": {sample.id: image.highest for sample, image in images}},
            of="image",
            drop=() if everywhere else None,
        )


def is_narrow(image: ImageFacts) -> bool:
    """The values were stored on a smaller scale than the file's."""
    return image.white is not None and image.highest <= LEAST_RANGE * image.white


def _blank(case: Case) -> Iterator[Finding]:
    blank = [f.sample for f in case.facts if f.image and f.image.std.max() < BLANK_STD and not is_narrow(f.image)]
    if blank:
        yield case.finding(
            "blank-image",
            "warning",
            f"{count(len(blank), 'image')} of a single colour",
            blank,
            "replace these files",
            of="image",
        )


def _modes(case: Case) -> Iterator[Finding]:
    """A few images of another kind than the others: grey ones among colours, with transparency, with 16 bits."""
    kinds = {facts.sample: kind for facts in case.facts if facts.image and (kind := _kind(facts, facts.image))}
    if not kinds:
        return
    usual, _ = Counter(kinds.values()).most_common(1)[0]
    odd = [sample for sample, kind in kinds.items() if kind != usual]
    if odd and len(odd) <= MINORITY * len(kinds):
        found = Counter(kinds[sample] for sample in odd)
        yield case.finding(
            "image-mode",
            "info",
            f"most images are {usual}, but {', '.join(f'{number} {kind}' for kind, number in found.items())}",
            odd,
            "all are read as RGB: look whether that is what these show",
            {"kinds": dict(Counter(kinds.values()))},
            of="image",
            drop=(),
        )


def _kind(facts: Facts, image: ImageFacts) -> str | None:
    """In words; None where there is nothing to see."""
    if image.std.max() < BLANK_STD or is_narrow(image):
        return None
    mode = image.header.mode
    if mode.startswith("I"):
        return "grey with 16 bits"
    color_histograms = sum(facts.color_histograms.values(), np.zeros(COLOR_BINS))
    if mode in ("1", "L", "LA") or (
        color_histograms.sum() and color_histograms[COLOR_BINS // 2] > GREY_SHARE * color_histograms.sum()
    ):
        return "grey"
    return {"RGBA": "RGB with transparency", "P": "RGB", "": f"{len(image.mean)} channels"}.get(mode, mode)
