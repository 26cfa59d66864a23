"""Unexpected mask values: what causes them, and the recipe line or the work on files that fixes them."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.findings import Finding, Severity
from segtune.doctor.sample_facts import MaskFacts
from segtune.errors import listed
from segtune.labels.mask_values import NO_DATA, Color, show_value
from segtune.viz.numbers import count, percent

# A mask reduced or turned with interpolation has a rim on at least 0.29 of its boundaries, a JPEG on 0.19; clean ones
# have it on at most 0.03 (CamVid), enlarged or reduced without interpolation on 0.06.
RIM_SHARE = 0.15
# Where classes lie in the order of their ids, as water, plants and bare ground often do, clean masks have rims as well
# (earth: on up to half of the boundaries). But three classes meet there in any order, the middle id in the middle at
# 0.61 of the places at most (CamVid: 0.45); interpolation makes no other order than that one (CamVid: 0.62 and more).
ORDERED_SHARE = 0.62
JPEG_RIM_SHARE, MANY_UNKNOWN = 0.1, 6  # the former suffices where so many values have no name
USUAL_RIM_SHARE = 0.2  # of the median mask, from which on all are smoothed (clean: 0.04, smoothed: 0.27)
LEAST_RIMS = 50  # pixels
FEW_RIMS = 0.03  # of the boundaries of the median mask: more, and rims are in the nature of these classes
BINARY_VALUES = ({0, 255}, {0, 128, 255}, {0, 127, 255})
IGNORED_LIKE_A_CLASS = 0.2  # share of value 255 in a 0/255 mask, above which it is no rim of ignored pixels
NEAR_COLOR = 48  # sum over three channels, up to which an unknown colour is taken for a named one
SHOWN_VALUES = 6
LEAST_MASKS = 5  # for ids that start at 1 to be more than a stray id
MOST_PROPOSED = 32  # colours of a proposed label map

Masks = Sequence[tuple[Sample, MaskFacts]]


def find_causes(case: Case) -> dict[str, list[tuple[Sample, MaskFacts]]]:
    """The masks whose values are wrong, by what explains that most."""
    groups: dict[str, list[tuple[Sample, MaskFacts]]] = defaultdict(list)
    for sample, mask in case.masks:
        if cause := cause_of(case, mask):
            groups[cause].append((sample, mask))
    return dict(groups)


def cause_of(case: Case, mask: MaskFacts) -> str | None:
    """The one fault of a mask's values that explains most."""
    values, unknown = mask.values, case.unknown(mask)
    if not values.is_color and any(not float(value).is_integer() for value in values.counts):
        return "float-mask"
    if mask.header.lossy and values.distinct > 1:
        return None if case.label_map.names_every_grey else "lossy-mask"
    if case.label_map.mask_colors is None and values.is_color and unknown:
        return "smoothed-mask" if is_smoothed(case, mask) and values.distinct > 64 else "color-mask"
    if is_binary(case, mask):
        return "binary-mask" if unknown else "foreground-ignored"
    if is_smoothed(case, mask):
        return "smoothed-mask"
    if unknown:
        return "scaled-mask" if factor_of(case, mask) else "unnamed-values"
    return None


def is_smoothed(case: Case, mask: MaskFacts) -> bool:
    """Values lie between those of their neighbours; only one such value, everywhere, is a class of contours."""
    values = mask.values
    if values.rims < LEAST_RIMS:
        return False
    if len(case.unknown(mask)) >= MANY_UNKNOWN:  # classes have ids of their own
        return values.rim_share >= JPEG_RIM_SHARE
    if values.rim_share < RIM_SHARE:
        return False
    usual = case.usual_rim_share
    if values.ordered_share < ORDERED_SHARE and FEW_RIMS < usual < USUAL_RIM_SHARE:
        return False
    return values.rim_values >= 2 or usual <= FEW_RIMS


def is_binary(case: Case, mask: MaskFacts) -> bool:
    """0 and 255 in a set of other ids, where 255 is no class: unknown, or taken for ignored in much of the mask."""
    held = set(mask.values.counts) - {NO_DATA}
    target = case.targets.get(255)
    if mask.values.is_color or held not in BINARY_VALUES or case.label_map.mask_colors is not None:
        return False
    if target is None:
        return True
    return target == case.label_map.num_labels and mask.values.counts[255] >= IGNORED_LIKE_A_CLASS * mask.values.pixels


def factor_of(case: Case, mask: MaskFacts) -> float | None:
    """What the named ids were multiplied with, so that only multiples are left: 257 (8 bits in 16), 255 / (K - 1), …"""
    if case.label_map.ids is None:
        return None
    values = sorted(value for value in mask.values.counts if value > 0)
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


def describe_causes(case: Case, groups: Mapping[str, Masks]) -> Iterator[Finding]:
    """One finding for each cause; `groups` are those of `find_causes`."""
    for cause, describe in DESCRIPTIONS.items():
        if cause in groups:
            yield describe(case, groups[cause])


def _describe_floats(case: Case, masks: Masks) -> Finding:
    values = [value for _, mask in masks for value in mask.values.counts]
    return _finding(
        case,
        "float-mask",
        masks,
        f"floating-point values from {min(values):.3g} to {max(values):.3g}, where ids are whole numbers",
        "save the ids themselves; of values from 0 to 1: Image.fromarray((mask * 255).round().astype('uint8'))",
    )


def _describe_colors(case: Case, masks: Masks) -> Finding:
    totals = _totals(masks)
    display = dict(zip(case.label_map.colors, case.label_map.names, strict=True))
    of_classes = totals.keys() <= display.keys() | {(0, 0, 0)}
    other = None if of_classes else "<class>"
    table = {show_value(color): display.get(color, other) for color, _ in totals.most_common(MOST_PROPOSED)}
    return _finding(
        case,
        "color-mask",
        masks,
        f"{'the colours in which the classes are shown' if of_classes else 'colours'} ({_show(totals)}), where "
        "the label map names ids",
        "convert these masks to ids by their colours",
        f"dataset.labels={json.dumps(table)}",
    )


def _describe_binary(case: Case, masks: Masks) -> Finding:
    ignored = case.targets.get(255) == case.label_map.num_labels
    middle = sorted({127, 128} & _totals(masks).keys())
    names = case.label_map.names if case.label_map.num_labels == 2 else ("background", "foreground")
    table = {"0": names[0], "255": names[1]} | {str(value): None for value in middle}
    line = f"dataset.labels={json.dumps(table)}" + (" dataset.ignore_index=-100" if ignored else "")
    held = ", ".join(map(str, [0, *middle])) + " and 255"
    return _finding(
        case,
        "binary-mask",
        masks,
        f"only {held}: 255 is {'ignored, so that no foreground is left' if ignored else 'not named'}",
        "replace these masks: they do not hold the ids of the classes",
        line,
        severity="error" if middle or not ignored or _is_usual(case, masks) else "warning",
    )


def _describe_smoothed(case: Case, masks: Masks) -> Finding:
    share = float(np.median([mask.values.rim_share for _, mask in masks]))
    return _finding(
        case,
        "smoothed-mask",
        masks,
        f"values between those of both neighbours on {percent(share)} of the boundaries: resized, turned or compressed "
        "with interpolation, so that rims hold ids of other classes",
        "make these masks again from the annotation, with nearest-neighbour resampling, as PNG",
        numbers={"rim_share": share},
    )


def _describe_lossy(case: Case, masks: Masks) -> Finding:
    formats = sorted({mask.header.format for _, mask in masks})
    advice = "save masks as PNG, from the annotation: what was lost does not come back"
    return _finding(case, "lossy-mask", masks, f"the format {', '.join(formats)}, which does not keep values", advice)


def _describe_scaled(case: Case, masks: Masks) -> Finding:
    factors = {sample.id: round(factor_of(case, mask) or 0, 3) for sample, mask in masks}
    factor, _ = Counter(factors.values()).most_common(1)[0]
    ids = {key: target for key, target in (case.label_map.ids or {}).items() if key >= 0}
    table = {str(round(key * factor)): None if t is None else case.label_map.names[t] for key, t in ids.items()}
    return _finding(
        case,
        "scaled-mask",
        masks,
        f"named ids times {' or '.join(f'{f:g}' for f in sorted(set(factors.values())))} ({_show(_totals(masks))}): "
        "stretched to be seen, or 8 bits stored in 16",
        f"divide the values of these masks by {factor:g}",
        f"dataset.labels={json.dumps(table)}",
        {"factors": factors},
    )


def _describe_unnamed(case: Case, masks: Masks) -> Finding:
    is_color = case.label_map.mask_colors is not None
    totals: Counter[Any] = Counter()
    for _, mask in masks:
        totals.update(case.unknown(mask))
    masks = sorted(masks, key=lambda item: -sum(case.unknown(item[1]).values()))
    entries = json.dumps({show_value(value): "<class>" for value, _ in totals.most_common(8)})[1:-1]
    hint, advice = _explain_colors(case, totals) if is_color else _explain_ids(case, masks, totals)
    if not advice:
        slip, advice = _explain_near_miss(case, masks, totals)
        hint = slip or hint
    code, word = ("unnamed-colors", "colours") if is_color else ("unnamed-ids", "ids")
    return _finding(
        case,
        code,
        masks,
        f"{word} that the label map does not name: {_show(totals)}{hint}",
        advice or f"dataset.labels: add {entries}, or null instead of a name to ignore them",
        numbers={"values": {show_value(value): pixels for value, pixels in totals.most_common()}},
    )


def _explain_ids(case: Case, masks: Masks, totals: Counter[Any]) -> tuple[str, str]:
    """Ids that start at 1 instead of 0, and what fixes them."""
    ids = case.label_map.ids or {}
    last = max(key for key, target in ids.items() if target is not None) if ids else 0
    last = max([last, *(key for key in ids if key == last + 1)])  # an ignored id may follow the classes
    held = {value for _, mask in masks for value in mask.values.counts}
    few = len(masks) < min(LEAST_MASKS, len(case.masks))
    if few or set(totals) != {last + 1} or 0 in held or not ids.keys() >= set(range(last + 1)):
        return "", ""
    names = {key: None if ids[key] is None else case.label_map.names[case.targets[key]] for key in range(last + 1)}
    table = json.dumps({str(key + 1): name for key, name in names.items()})
    advice = f"dataset.labels={table}" if _is_usual(case, masks) else "subtract 1 from the ids of these masks"
    return "; none of them holds 0, so that their ids are 1 higher than named", advice


def _explain_near_miss(case: Case, masks: Masks, totals: Counter[Any]) -> tuple[str, str]:
    """One named value that no mask holds, beside one unnamed value that most hold: a slip of the pen."""
    table: Mapping[Any, int | None] = case.label_map.mask_colors or case.label_map.ids or {}
    held = Counter(value for _, mask in case.masks for value in case.counts(mask))
    absent = [value for value, target in table.items() if target is not None and not held[value]]
    frequent = [
        value for value in totals if _is_usual(case, [item for item in masks if value in case.unknown(item[1])])
    ]
    if len(absent) != 1 or len(frequent) != 1:
        return "", ""
    name = {value: None if target is None else case.label_map.names[target] for value, target in table.items()}
    right = {show_value(frequent[0] if value == absent[0] else value): own for value, own in name.items()}
    hint = f"; {show_value(absent[0])} ({name[absent[0]]}) is held by none, and may be meant"
    return hint, f"dataset.labels={json.dumps(right)}"


def _explain_colors(case: Case, totals: Counter[Any]) -> tuple[str, str]:
    """Red and blue exchanged, or colours close to named ones."""
    if all(isinstance(value, tuple) and value[::-1] in case.targets for value in totals):
        return (
            "; with red and blue exchanged they are named: written as BGR",
            "write these masks as RGB: cv2.imwrite wants cv2.cvtColor(mask, cv2.COLOR_RGB2BGR)",
        )
    near = {value: _nearest(case, value) for value, _ in totals.most_common(3) if isinstance(value, tuple)}
    return "".join(f"; {show_value(color)} is near {named}" for color, named in near.items() if named), ""


def _nearest(case: Case, color: Color) -> str | None:
    """The named colour, and its class, that differs least from an unknown one; None where none is near."""
    known = case.label_map.mask_colors or {}
    distances = {named: sum(abs(a - b) for a, b in zip(color, named, strict=True)) for named in known}
    nearest = min(distances, key=lambda named: distances[named])
    if distances[nearest] > NEAR_COLOR:
        return None
    target = known[nearest]
    return f"{show_value(nearest)} ({'ignored' if target is None else case.label_map.names[target]})"


DESCRIPTIONS = {
    "float-mask": _describe_floats,
    "color-mask": _describe_colors,
    "binary-mask": _describe_binary,
    "foreground-ignored": _describe_binary,
    "lossy-mask": _describe_lossy,
    "smoothed-mask": _describe_smoothed,
    "scaled-mask": _describe_scaled,
    "unnamed-values": _describe_unnamed,
}


def _finding(
    case: Case,
    code: str,
    masks: Masks,
    fault: str,
    advice: str,
    line: str | None = None,
    numbers: Mapping[str, Any] | None = None,
    severity: Severity = "error",
) -> Finding:
    """A finding of masks that hold a fault; where most have it, `line` fixes the recipe instead of the files."""
    everywhere = _is_usual(case, masks)
    return case.finding(
        code,
        severity,
        f"{count(len(masks), 'mask')} of {len(case.masks)} with {fault}",
        [sample for sample, _ in masks],
        line if line and everywhere else advice,
        {"of": len(case.masks)} | dict(numbers or {}),
        drop=() if everywhere else None,
    )


def _is_usual(case: Case, masks: Masks) -> bool:
    return len(masks) > len(case.masks) / 2


def _totals(masks: Masks) -> Counter[Any]:
    totals: Counter[Any] = Counter()
    for _, mask in masks:
        totals.update(mask.values.counts)
    return totals


def _show(totals: Counter[Any]) -> str:
    return listed([show_value(value) for value, _ in totals.most_common()], SHOWN_VALUES)
