"""`import segtune` is nearly free, changes nothing outside itself, and every public name is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import segtune

HEAVY = {
    "PIL",
    "accelerate",
    "albumentations",
    "cv2",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "rich",
    "torch",
    "transformers",
    "typer",
    "yaml",
}


def run_fresh(code: str) -> dict:
    """Runs `code` in a new interpreter; it leaves its findings in the dict `found`."""
    script = f"import json\nfound = {{}}\n{code}\nprint(json.dumps(found))"
    return json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def test_import_loads_nothing_heavy() -> None:
    found = run_fresh(
        "import sys\nbefore = set(sys.modules)\nimport segtune\nfound['new'] = sorted(set(sys.modules) - before)"
    )
    assert "segtune" in found["new"]
    assert not HEAVY & {name.partition(".")[0] for name in found["new"]}
    assert len(found["new"]) <= 4, found["new"]  # segtune, __future__ and little else


def test_import_touches_neither_environment_nor_logging() -> None:
    found = run_fresh(
        "import logging, os, warnings\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    loggers = sorted(logging.root.manager.loggerDict)\n"
        "    return [dict(os.environ), root.level, len(root.handlers), loggers, len(warnings.filters)]\n"
        "before = state()\nimport segtune\nfound['same'] = state() == before"
    )
    assert found["same"]


def test_names_are_few_and_each_has_a_home() -> None:
    names = segtune.__all__
    assert 0 < len(names) <= 20
    assert len(names) == len(set(names))
    assert set(names) - {"__version__"} == set(segtune._HOME)
    assert set(names) <= set(dir(segtune))


@pytest.mark.parametrize("name", segtune.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(segtune, name)
    if name == "__version__":
        assert value == "0.1.0"
    else:
        assert value.__name__ == name
        assert value.__module__ == segtune._HOME[name]
        assert value.__doc__


def test_names_of_transformers_are_there_as_well() -> None:
    from segtune import SegformerDecodeHead, SegformerFeatureExtractor, SegformerPreTrainedModel

    assert issubclass(segtune.SegformerModel, SegformerPreTrainedModel)
    assert SegformerFeatureExtractor is segtune.SegformerImageProcessor
    assert isinstance(
        segtune.SegformerForSemanticSegmentation(segtune.SegformerConfig()).decode_head, SegformerDecodeHead
    )
    assert not set(segtune._OF_TRANSFORMERS) & set(segtune.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'SegFormer'"):
        segtune.SegFormer  # noqa: B018


def test_version_is_that_of_the_installed_package() -> None:
    from importlib.metadata import version

    assert segtune.__version__ == version("segtune")
