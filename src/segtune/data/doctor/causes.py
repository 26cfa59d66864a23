"""Why a mask holds values that the label map does not name, or that are not what they seem."""

from __future__ import annotations

import math

from segtune.data.doctor.case import Case
from segtune.data.doctor.facts import MaskFacts
from segtune.data.doctor.values import NO_DATA

# A mask reduced or turned with interpolation has a rim on at least 0.29 of its boundaries, a JPEG on 0.19; clean ones
# have it on at most 0.03 (CamVid) and 0.04 (earth), enlarged or reduced without interpolation on 0.06.
RIM_SHARE = 0.15
LEAST_RIMS = 50  # pixels
FEW_RIMS = 0.03  # of the boundaries of the median mask, for a rim of one value to be no class of contours
BINARY_VALUES = ({0, 255}, {0, 128, 255}, {0, 127, 255})
IGNORED_LIKE_A_CLASS = 0.2  # share of value 255 in a 0/255 mask, above which it is no rim of ignored pixels


def cause_of(case: Case, mask: MaskFacts) -> str | None:
    """The one fault of a mask's values that explains most."""
    values, unknown = mask.values, case.unknown(mask)
    if any(not float(code).is_integer() for code in values.counts):
        return "float-mask"
    if mask.header.lossy and values.distinct > 1:
        return None if names_every_grey(case) else "lossy-mask"
    if case.label_map.mask_colors is None and values.is_colour and unknown:
        return "smoothed-mask" if is_smoothed(case, mask) and values.distinct > 64 else "colour-mask"
    if is_binary(case, mask):
        return "binary-mask" if unknown else "foreground-ignored"
    if is_smoothed(case, mask):
        return "smoothed-mask"
    if unknown:
        return "scaled-mask" if factor_of(case, mask) else "unnamed-values"
    return None


def names_every_grey(case: Case) -> bool:
    """The label map divides all 256 greys among the classes, as in {"0-127": …, "128-255": …}: for compressed masks."""
    return case.label_map.ids is not None and case.label_map.ids.keys() >= set(range(256))


def is_smoothed(case: Case, mask: MaskFacts) -> bool:
    """Values lie between those of their neighbours; only one such value, everywhere, is a class of contours."""
    values = mask.values
    if values.rim_share < RIM_SHARE or values.rims < LEAST_RIMS:
        return False
    return values.rim_values >= 2 or case.usual_rim_share <= FEW_RIMS


def is_binary(case: Case, mask: MaskFacts) -> bool:
    """0 and 255 in a set of other ids, where 255 is no class: unknown, or taken for ignored in much of the mask."""
    held = set(mask.values.counts) - {NO_DATA}
    target = case.targets.get(255)
    if mask.values.is_colour or held not in BINARY_VALUES or case.label_map.mask_colors is not None:
        return False
    if target is None:
        return True
    return target == case.label_map.num_labels and mask.values.counts[255] >= IGNORED_LIKE_A_CLASS * mask.values.pixels


def factor_of(case: Case, mask: MaskFacts) -> float | None:
    """What the named ids were multiplied with, so that only multiples are left: 257 (8 bits in 16), 255 / (K - 1), …"""
    if case.label_map.ids is None:
        return None
    values = sorted(code for code in mask.values.counts if code > 0)
    if len(values) < 2 and values != [257]:
        return None
    named = {key for key in case.label_map.ids if key >= 0}
    factors: list[float] = [math.gcd(*map(int, values))]
    factors += [255 / (number - 1) for number in (len(named), len(named) + 1, case.label_map.num_labels) if number > 1]
    for factor in factors:
        ids = [round(value / factor) for value in values]
        exact = all(abs(i * factor - value) < 1 for i, value in zip(ids, values, strict=True))
        if factor > 1.5 and exact and named.issuperset(ids) and len(set(ids)) == len(ids):
            return factor
    return None
