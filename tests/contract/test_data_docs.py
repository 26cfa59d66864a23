"""docs/data.md: its examples are recipes, and it names every format and option."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
import yaml

from segtune.data.class_names import LABEL_FILES
from segtune.data.config import DatasetConfig, Format, TransformConfig
from segtune.labels.label_map import LabelMap
from segtune.training.config import ModelConfig

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
SECTIONS = {"dataset": DatasetConfig, "transforms": TransformConfig, "model": ModelConfig}
FORMS = re.findall(r"^\| [^|]+ \| `([\[{].*?)`(?: or `(.*?)`)? \|$", TEXT, re.MULTILINE)


def test_examples_were_found() -> None:
    assert len(BLOCKS) >= 11
    assert len(FORMS) >= 6


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_are_recipes(block: dict[str, dict[str, object]]) -> None:
    for name, values in block.items():
        SECTIONS[name].model_validate(values)


def test_every_format_and_option_is_named() -> None:
    formats = set(typing.get_args(Format)) - {"auto"}
    assert formats <= set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    usual = {"path", "format", "ignore_index"}
    assert [name for name in DatasetConfig.model_fields if name not in usual and name not in TEXT] == []
    assert [name for name in LABEL_FILES if name not in TEXT] == []


@pytest.mark.parametrize("form", [text for pair in FORMS for text in pair if text])
def test_forms_of_labels(form: str) -> None:
    labels = yaml.safe_load(form)
    if isinstance(labels, dict) and all(str(key).isalpha() and not isinstance(labels[key], list) for key in labels):
        labels = [name for name in labels.values() if name]  # the classes of a file: see test_classes
    assert LabelMap.from_dict(list(dict.fromkeys(labels)) if isinstance(labels, list) else labels).num_labels >= 1
