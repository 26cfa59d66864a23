from __future__ import annotations

from dataclasses import replace

from segtune.report.gather import Facts
from segtune.report.page import page
from support.html_reading import Page, part


def test_gallery_has_all_groups_with_all_layers(facts: Facts) -> None:
    text = part(page(facts), "images")
    read = Page(text)
    assert read.open == [] and len(read.sources) == 12 * 4
    assert [title for title in ("Worst", "Best", "Drawn at random") if title in read.text] == [
        "Worst",
        "Best",
        "Drawn at random",
    ]
    assert text.count('type="range" min="0" max="100" value="50" aria-label="Line between the layers of') == 12
    assert 'data-left="truth" data-right="prediction"' in text
    assert "aspect-ratio:48/32" in text and 'alt="doubted"' in text
    assert "doubted mIoU 0.333, 50 % wrong, mostly car taken for sky (50 %)" in read.text
    assert "unsure mIoU 1.000" in read.text
    assert "ghost" not in read.text  # the legend holds what occurs


def test_ignored_pixels_are_named_where_there_are_any(facts: Facts) -> None:
    assert "ignored" not in Page(part(page(facts), "images")).text
    assert facts.examination is not None
    pictures = dict(facts.examination.pictures)
    name = facts.examination.chosen["worst"][0]
    pictures[name] = pictures[name]._replace(layers=pictures[name].layers._replace(has_ignored=True))
    text = part(page(replace(facts, examination=replace(facts.examination, pictures=pictures))), "images")
    assert '<i class="swatch ignored"></i>ignored</span>' in text


def test_suspects_say_what_is_doubted(facts: Facts) -> None:
    said = Page(part(page(facts), "suspects")).text
    assert "1 of 12 images stands out" in said
    assert "doubted 50 % doubted, mostly car that may be sky" in said
    assert facts.examination is not None
    calm = replace(facts, examination=replace(facts.examination, standing_out=0))
    assert "None of 12 images stands out; these come first" in Page(part(page(calm), "suspects")).text
