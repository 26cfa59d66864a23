"""Colour channels: images whose red and blue are exchanged, and normalization that does not suit the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from segtune.doctor.case import Case
from segtune.doctor.findings import Finding
from segtune.doctor.sample_facts import COLOR_BINS, Facts
from segtune.viz.numbers import count

# Mean log likelihood of a pixel's red minus blue given its class, over that of blue minus red, learned from all other
# images.
# Clean images have at least -0.41 (CamVid, where colours are pale) and 0.0 (earth); with red and blue exchanged in one
# image of fifty, 6 of 10 such images of CamVid and all of earth are below -0.6, and no other one. Exchanged, they must
# also be as likely as 95 of 100 images are as they are: a mask with exchanged classes looks odd either way.
# A carpet or the sea may have any colour, so that one class or two say little: among pets on carpets, four of 244 clean
# images are below -0.6, the lowest at -1.55. Three classes must agree, or the sum be beyond doubt.
EXCHANGED = -0.6
AGREE, LEAST_AGREE, LEAST_SHARE = -0.3, 3, 0.01  # score of a class, number of classes, share of the image
BEYOND_DOUBT = -2.0
USUAL = 5  # per cent
LEAST_IMAGES = 20
LEAST_HOLDERS = 12  # images that hold a value, for its histogram to say something
FLOOR = 0.02  # of the probability, spread over all bins
FAR_MEAN, FAR_STD = 1.5, 3.0  # in units of transforms.std: CamVid has -0.4 and 1.2, earth -1.0 and 0.8


def check_colors(case: Case) -> Iterator[Finding]:
    """All findings about colours."""
    yield from _exchanged(case)
    yield from _normalization(case)


def _exchanged(case: Case) -> Iterator[Finding]:
    facts = [item for item in case.facts if item.color_histograms and item.sample not in case.untrusted]
    if len(facts) < LEAST_IMAGES:
        return
    as_is, exchanged, agree = color_likelihoods(facts).T
    scores = as_is - exchanged
    usual = np.percentile(as_is, USUAL)
    order = [int(i) for i in np.argsort(scores) if scores[i] <= EXCHANGED and exchanged[i] >= usual]
    order = [i for i in order if agree[i] >= LEAST_AGREE or scores[i] <= BEYOND_DOUBT]
    odd = [facts[i].sample for i in order]
    if odd:
        yield case.finding(
            "channel-order",
            "warning",
            f"{count(len(odd), 'image')} whose classes have the colours of the other images only with red and blue "
            "exchanged: written as BGR",
            odd,
            "write these images as RGB: cv2.imwrite takes BGR, Pillow takes RGB",
            {"scores": {facts[i].sample.id: round(float(scores[i]), 3) for i in order}},
            of="image",
        )


def color_likelihoods(facts: Sequence[Facts]) -> np.ndarray:
    """The mean log likelihood of each image's red minus blue given the classes, learned from all other images; in nats.

    Returns:
        (images, 3): as they are, and with red and blue exchanged; 0 where no class is held by enough images; last,
        how many classes are clearly likelier with the exchange.
    """
    totals: dict[int, np.ndarray] = {}
    holders: Counter[int] = Counter()
    shares = []
    for item in facts:
        pixels = sum(float(color_histograms.sum()) for color_histograms in item.color_histograms.values())
        shares.append({code: color_histograms / pixels for code, color_histograms in item.color_histograms.items()})
        for code, share in shares[-1].items():
            totals[code] = totals.get(code, np.zeros(COLOR_BINS)) + share
            holders[code] += 1
    likelihoods = np.zeros((len(facts), 3))
    for own, row in zip(shares, likelihoods, strict=True):
        known = {code: share for code, share in own.items() if holders[code] > LEAST_HOLDERS}
        for code, share in known.items():
            others = np.maximum(totals[code] - share, 0)
            likely = np.log((1 - FLOOR) * others / max(others.sum(), 1e-9) + FLOOR / COLOR_BINS)  # (COLOR_BINS,)
            here, other = share @ likely, share @ likely[::-1]
            weight = float(share.sum())
            row += here, other, weight >= LEAST_SHARE and here - other <= AGREE * weight
        row[:2] /= max(sum(float(share.sum()) for share in known.values()), 1e-9)
    return likelihoods


def _normalization(case: Case) -> Iterator[Finding]:
    images = [facts.image for facts in case.facts if facts.image and facts.sample.split == case.splits[0]]
    transforms = case.transforms
    if not images or isinstance(transforms.mean, str) or isinstance(transforms.std, str):
        return
    mean = np.mean([image.mean for image in images], axis=0)  # (C,)
    variance = np.mean([image.std**2 + (image.mean - mean) ** 2 for image in images], axis=0)
    std = np.sqrt(variance)
    shift = np.abs(mean - transforms.mean) / transforms.std
    stretch = np.maximum(std, 1e-6) / transforms.std
    if shift.max() < FAR_MEAN and max(stretch.max(), 1 / stretch.min()) < FAR_STD:
        return
    own = [[round(float(value), 3) for value in values] for values in (mean, std)]
    yield Finding(
        "normalization",
        "warning",
        f"after transforms.mean and std the images have mean {_numbers((mean - transforms.mean) / transforms.std)} and "
        f"standard deviation {_numbers(stretch)} a channel, where 0 and 1 are meant",
        numbers={"mean": own[0], "std": own[1]},
        fix=(
            f"transforms.mean={own[0]} transforms.std={own[1]}",
            "pretrained weights want the values they were trained with: [0.485, 0.456, 0.406] and [0.229, 0.224, "
            "0.225] of images from 0 to 1",
        ),
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2g}" for value in values)
