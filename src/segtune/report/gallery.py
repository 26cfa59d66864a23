"""The pictures of a report: layers upon each other, two of which are shown on the sides of a line that can be moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from segtune.evaluation.label_issues import SURE
from segtune.report.examples import Picture
from segtune.report.gather import Facts
from segtune.viz.html import swatch
from segtune.viz.layers import SURELY_WRONG, WRONG
from segtune.viz.numbers import number, percent

LAYERS = {"photo": "image", "truth": "truth", "prediction": "prediction", "errors": "errors"}
GROUPS = {
    "worst": "Worst, by the mean IoU of the classes in an image",
    "best": "Best",
    "random": "Drawn at random",
}


def gallery(facts: Facts) -> str:
    """The worst, the best and some random images."""
    assert facts.examination is not None
    chosen = {title: facts.examination.chosen[group] for group, title in GROUPS.items()}
    return _gallery(facts, {title: ids for title, ids in chosen.items() if ids}, "shown", ("truth", "prediction"))


def suspects(facts: Facts) -> str:
    """Images whose masks the model contradicts while it is sure."""
    found = facts.examination
    assert found is not None
    ids, count = found.chosen["suspects"], found.standing_out
    looked = f"{len(found.evaluation)} images"
    if not ids:
        return f"<p>In none of {looked} does the model contradict the mask with a confidence of {SURE:g} or more.</p>"
    told = (
        f"{count} of {looked} {'stands' if count == 1 else 'stand'} out"
        if count
        else f"None of {looked} stands out; these come first"
    )
    return (
        f"<p>Where the model is sure (confidence {SURE:g} or more) of another class than the mask says, most often the "
        f"model is wrong, sometimes the mask. {told}, by the share of such pixels, "
        f"{swatch(SURELY_WRONG)}in the layer of errors.</p>{_gallery(facts, {'': ids}, 'doubted', ('photo', 'truth'))}"
    )


def _gallery(facts: Facts, groups: Mapping[str, Sequence[str]], name: str, sides: tuple[str, str]) -> str:
    """Figures under the titles of their groups; `sides` are the layers that are shown first."""
    assert facts.examination is not None
    pictures, label_map = facts.examination.pictures, facts.label_map
    present = sorted({index for ids in groups.values() for image in ids for index in pictures[image].layers.classes})
    classes = "".join(f"<span>{swatch(label_map.colors[i])}{escape(label_map.names[i])}</span>" for i in present)
    wrong = f"<span>{swatch(WRONG)}wrong</span><span>{swatch(SURELY_WRONG)}wrong and sure</span>"
    figures = "".join(
        f"{f'<h3>{title}</h3>' if title else ''}"
        f'<div class="figures">{"".join(_figure(facts, pictures[image], not title) for image in ids)}</div>'
        for title, ids in groups.items()
    )
    choices = "".join(_side(name, *side) for side in zip(("left", "right"), sides, strict=True))
    return (
        f'<div class="gallery" data-left="{sides[0]}" data-right="{sides[1]}"><div class="controls">{choices}'
        '<label>Colours <input type="range" class="strength" min="20" max="100" value="65" '
        'aria-label="Strength of the colours over the image"></label></div>'
        f'<div class="legend">{classes}{wrong}</div>{figures}</div>'
    )


def _side(name: str, side: str, chosen: str) -> str:
    """The choice of the layer on one side of the line."""
    options = "".join(
        f'<label><input type="radio" name="{name}-{side}" value="{layer}"{" checked" if layer == chosen else ""}>'
        f"<span>{text}</span></label>"
        for layer, text in LAYERS.items()
    )
    legend = f"<legend>{side.capitalize()} of the line</legend>"
    return f'<fieldset class="choice" data-side="{side}">{legend}{options}</fieldset>'


def _figure(facts: Facts, picture: Picture, is_suspect: bool) -> str:
    layers, name = picture.layers, escape(picture.id)
    height, width = layers.size
    images = "".join(
        f'<img class="layer {layer}" src="{getattr(layers, layer)}" alt="" draggable="false">'
        for layer in ("truth", "prediction", "errors")
    )
    return (
        f'<figure><div class="stage" style="aspect-ratio:{width}/{height}"><img class="photo" src="{layers.photo}" '
        f'alt="{name}" draggable="false">{images}<span class="line" aria-hidden="true"></span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="Line between the layers of {name}">'
        f'<button type="button" class="larger" aria-pressed="false" title="larger" aria-label="Show {name} larger">⤢'
        f"</button></div><figcaption><b>{name}</b> {_caption(facts, picture, is_suspect)}</figcaption></figure>"
    )


def _caption(facts: Facts, picture: Picture, is_suspect: bool) -> str:
    names = facts.label_map.names
    if is_suspect and picture.doubt.pair:
        said, sure_of = (escape(names[index]) for index in picture.doubt.pair)
        return f"{percent(picture.doubt.share)} doubted, mostly {said} that may be {sure_of}"
    text = f"mIoU {number(picture.iou)}, {percent(picture.wrong)} wrong"
    if picture.mistake is None:
        return text
    truth, predicted, share = picture.mistake
    return f"{text}, mostly {escape(names[truth])} taken for {escape(names[predicted])} ({percent(share)})"
