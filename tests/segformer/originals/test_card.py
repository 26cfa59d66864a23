from __future__ import annotations

import pytest

from segtune.errors import UsageError
from segtune.hub.licenses import Ancestor, inherit, is_non_commercial
from segtune.hub.model_card import read_front_matter
from segtune.segformer.originals import LAYOUTS
from segtune.segformer.originals.card import card, terms


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "auto"])
def test_without_a_word_of_the_owner_a_card_forbids_commercial_use(layout: str) -> None:
    """Which pushing a model that started from it then tells; what is doubtful is no permission."""
    text = card("a.pth", terms(layout))
    metadata = read_front_matter(text)
    assert is_non_commercial(metadata) and metadata["license"] == "other"
    assert metadata["library_name"] == "transformers" and metadata["tags"] == ["segformer"]
    assert "Converted from `a.pth` by segtune." in text and "NVIDIA" in text and "--license" in text


def test_what_is_not_settled_is_called_so() -> None:
    found = terms("keras", stated="MIT License")
    assert str(found) == "unsettled-mit-or-nvidia-source-code-license"
    assert "not settled" in found.text and "The checkpoint itself states: 'MIT License'." in found.text


@pytest.mark.parametrize("license", ["apache-2.0", "cc-by-4.0", "no", "null"])
def test_licence_of_the_owner(license: str) -> None:
    found = terms("keras", license=license)
    metadata = read_front_matter(card("mine.keras", found))
    assert metadata["license"] == license and "license_name" not in metadata
    assert not is_non_commercial(metadata) and f"`--license {license}`" in found.text
    assert "if these weights did not start from published ones" in found.text


@pytest.mark.parametrize("license", ["", "Apache 2.0", "mit\nlicense_name: x", "x" * 61])
def test_what_is_no_licence_is_refused(license: str) -> None:
    with pytest.raises(UsageError, match=r"an identifier such as apache-2\.0"):
        terms("mmseg", license=license)


def test_model_that_starts_from_a_conversion_inherits_its_licence() -> None:
    line = [Ancestor("checkpoints/keras", read_front_matter(card("a.keras", terms("keras"))))]
    with pytest.raises(UsageError, match=r"started from checkpoints/keras, which is under .*unsettled-mit-or-nvidia"):
        inherit(line, "mit")
    assert inherit(line, None).is_non_commercial
    own = [Ancestor("checkpoints/mine", read_front_matter(card("a.keras", terms("keras", license="mit"))))]
    assert inherit(own, "mit").metadata == {"license": "mit"}
