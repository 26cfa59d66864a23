"""The picture gallery of a report: which images are shown under which title, and what is said below each."""

from __future__ import annotations

from typing import Any

from segtune.report.examples import Examination, Picture
from segtune.report.gather import Facts
from segtune.viz.numbers import number, percent

LAYERS = {"photo": "image", "truth": "truth", "prediction": "prediction", "errors": "errors"}
GROUPS = {
    "worst": "Worst, by the mean IoU of the classes in an image",
    "best": "Best",
    "random": "Drawn at random",
}


def gallery(facts: Facts, examination: Examination) -> dict[str, Any]:
    """The worst, the best and some random images, as the macro `gallery` of gallery.html takes them."""
    groups = {title: examination.chosen[group] for group, title in GROUPS.items()}
    return _gallery(facts, examination, groups, is_suspect=False)


def suspects(facts: Facts, examination: Examination) -> dict[str, Any]:
    """Images whose masks the model contradicts while it is sure, as `gallery` gives the others."""
    return _gallery(facts, examination, {"": examination.chosen["suspects"]}, is_suspect=True)


def _gallery(facts: Facts, examination: Examination, groups: dict[str, list[str]], is_suspect: bool) -> dict[str, Any]:
    """Pictures with their captions by the title of their group, and the (name, colour) of the classes in them."""
    shown = {title: [examination.pictures[image] for image in ids] for title, ids in groups.items() if ids}
    present = sorted({index for pictures in shown.values() for picture in pictures for index in picture.layers.classes})
    return {
        "groups": {
            title: [(picture, _caption(facts.label_map.names, picture, is_suspect)) for picture in pictures]
            for title, pictures in shown.items()
        },
        "classes": [(facts.label_map.names[index], facts.label_map.colors[index]) for index in present],
        "has_ignored": any(picture.layers.has_ignored for pictures in shown.values() for picture in pictures),
    }


def _caption(names: tuple[str, ...], picture: Picture, is_suspect: bool) -> str:
    if is_suspect and picture.doubt.pair:
        said, sure_of = (names[index] for index in picture.doubt.pair)
        return f"{percent(picture.doubt.share)} doubted, mostly {said} that may be {sure_of}"
    text = f"mIoU {number(picture.iou)}, {percent(picture.wrong)} wrong"
    if picture.mistake is None:
        return text
    truth, predicted, share = picture.mistake
    return f"{text}, mostly {names[truth]} taken for {names[predicted]} ({percent(share)})"
