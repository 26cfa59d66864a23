"""The protocols by name: what is chosen, what is refused, what is saved."""

from __future__ import annotations

import pytest

from segtune.data.config import TransformConfig
from segtune.errors import UsageError
from segtune.inference.config import EvaluationConfig
from segtune.inference.processor import processor_from_transforms
from segtune.inference.protocol import TTA_SCALES, InferenceProtocol
from segtune.segformer.image_processing_segformer import SegformerImageProcessor


@pytest.mark.parametrize(
    ("protocol", "text", "plain"),
    [
        (InferenceProtocol(), "whole", True),
        (InferenceProtocol(1024, 768), "slide 1024 stride 768", False),
        (InferenceProtocol(512), "slide 512 stride 384", False),
        (InferenceProtocol(flip=True), "whole tta 1 flip", False),
        (InferenceProtocol(scales=(0.5, 1.0)), "whole tta 0.5,1", False),
        (
            InferenceProtocol(96, 96, TTA_SCALES, flip=True),
            "slide 96 stride 96 tta 0.5,0.75,1,1.25,1.5,1.75 flip",
            False,
        ),
    ],
)
def test_protocols_have_names(protocol: InferenceProtocol, text: str, plain: bool) -> None:
    assert (str(protocol), protocol.is_plain) == (text, plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 500}, "window 500: use a multiple of 32"),
        ({"window": 0}, "window 0"),
        ({"stride": 12}, "stride 12 without a window"),
        ({"window": 512, "stride": 341}, "stride 341 of windows of 512: use a multiple of 4 up to 512, such as 340"),
        ({"window": 512, "stride": 516}, "such as 512"),
        ({"window": 512, "stride": 0}, "such as 4"),
        ({"scales": ()}, "give one or more numbers"),
        ({"scales": (1.0, 0.0)}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InferenceProtocol(**fields)  # type: ignore[arg-type]


def test_the_processor_decides_unless_something_is_given() -> None:
    slide, whole = SegformerImageProcessor(window=1024, stride=768), SegformerImageProcessor()
    assert InferenceProtocol.choose(whole) == InferenceProtocol()
    assert InferenceProtocol.choose(slide) == InferenceProtocol(1024, 768)
    assert InferenceProtocol.choose(slide, window=0) == InferenceProtocol()
    assert InferenceProtocol.choose(slide, window=1024) == InferenceProtocol(1024, 768)
    assert InferenceProtocol.choose(slide, window=512) == InferenceProtocol(512, 384)  # not the stride of other windows
    assert InferenceProtocol.choose(slide, stride=512) == InferenceProtocol(1024, 512)
    assert InferenceProtocol.choose(whole, window=64, stride=32) == InferenceProtocol(64, 32)
    assert InferenceProtocol.choose(slide, tta=True) == InferenceProtocol(1024, 768, TTA_SCALES, flip=True)
    assert InferenceProtocol.choose(object()) == InferenceProtocol()  # a processor of others
    with pytest.raises(UsageError, match="without a window"):
        InferenceProtocol.choose(whole, stride=512)


def test_recipe_checkpoint_and_deployment_agree(tmp_path) -> None:
    slide = processor_from_transforms(TransformConfig(), EvaluationConfig(window=1024, stride=768))
    slide.save_pretrained(tmp_path / "slide")
    assert InferenceProtocol.choose(SegformerImageProcessor.from_pretrained(tmp_path / "slide")) == InferenceProtocol(
        1024, 768
    )
    processor_from_transforms(TransformConfig()).save_pretrained(tmp_path / "whole")
    stored = (tmp_path / "whole" / "preprocessor_config.json").read_text()
    assert "window" not in stored and "stride" not in stored  # transformers 4 would warn
    with pytest.raises(ValueError, match="window 500: use a multiple of 32"):
        EvaluationConfig(window=500)
