"""Which licence a model inherits, through the cards of what it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segtune.errors import UsageError
from segtune.hub.licenses import Ancestor, License, describe, hub_id, inherit, is_non_commercial, trace

NVIDIA = {
    "license": "other",
    "license_name": "nvidia-source-code-license",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, False),
        ({"license": "apache-2.0"}, False),
        ({"license": "cc-by-nc-4.0"}, True),
        ({"license": "CC BY-NC-SA 4.0"}, True),
        ({"license": "cc-by-4.0"}, False),
        ({"license": "encyclopedia"}, False),
        ({"license": "other", "license_name": "research only"}, True),
        ({"license": "other", "license_name": "Non-Commercial use"}, True),
        ({"license": "other", "license_name": "nvidia-open-model-license"}, False),
        (NVIDIA, True),
    ],
)
def test_names_of_licenses_that_forbid_commercial_use(metadata: dict[str, str], expected: bool) -> None:
    assert is_non_commercial(metadata) == expected


def test_line_is_followed_through_cards_and_ends_at_a_circle() -> None:
    cards: dict[str, dict[str, Any]] = {
        "me/fine": {"base_model": ["you/tuned", "you/other"], "license": "mit"},
        "you/tuned": {"base_model": "nvidia/mit-b0", "license": "apache-2.0"},
        "nvidia/mit-b0": {"license": "other", "base_model": "me/fine"},
    }
    line = trace("me/fine", cards.__getitem__)
    assert [ancestor.name for ancestor in line] == ["me/fine", "you/tuned", "nvidia/mit-b0"]
    assert trace(None, cards.__getitem__) == []


def test_forbidden_commercial_use_is_inherited_from_however_far() -> None:
    line = [
        Ancestor("me/fine", {"license": "mit"}),
        Ancestor("you/tuned", {}),
        Ancestor("nvidia/segformer-b0-finetuned-ade-512-512", {"license": "other"}),
    ]
    license = inherit(line, None)
    assert license == License(NVIDIA, "nvidia/segformer-b0-finetuned-ade-512-512")
    assert license.is_non_commercial
    assert str(license) == f"[other (nvidia-source-code-license)]({NVIDIA['license_link']})"


def test_weights_of_nvidia_are_known_without_their_card() -> None:
    assert inherit([Ancestor("nvidia/mit-b5@main", {})], None).is_non_commercial
    assert not inherit([Ancestor("nvidia/something-else", {"license": "mit"})], None).is_non_commercial


def test_nearest_stated_license_is_inherited() -> None:
    line = [Ancestor("a/b", {}), Ancestor("c/d", {"license": "bsd-3-clause"}), Ancestor("e/f", {"license": "mit"})]
    assert inherit(line, None) == License({"license": "bsd-3-clause"}, "c/d")


def test_owner_chooses_where_nothing_is_inherited() -> None:
    assert inherit([], "apache-2.0") == License({"license": "apache-2.0"}, None)
    assert inherit([Ancestor("a/b", {})], "mit") == License({"license": "mit"}, None)
    assert inherit([], None) == License({}, None)
    assert str(inherit([], None)) == "not stated"


def test_owner_cannot_choose_against_what_is_inherited() -> None:
    base = Ancestor("nvidia/mit-b0", {"license": "other"})
    with pytest.raises(
        UsageError, match=r"license apache-2\.0: the weights started from nvidia/mit-b0, which is under"
    ):
        inherit([base], "apache-2.0")
    assert inherit([base], "other").is_non_commercial


def test_links_into_a_repository_are_not_links_elsewhere() -> None:
    assert describe({"license": "other", "license_name": "mixed", "license_link": "LICENSE.md"}) == "other (mixed)"


def test_hub_ids_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("nvidia/mit-b0") == hub_id("nvidia/mit-b0@v1.0") == "nvidia/mit-b0"
    assert hub_id("runs/demo/best") is hub_id("/runs/demo") is hub_id("demo") is None
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert hub_id("runs/demo") is None
