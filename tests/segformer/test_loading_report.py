from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerModel
from support import networks


def their_config(num_labels: int) -> transformers.SegformerConfig:
    return transformers.SegformerConfig(num_labels=num_labels, **networks.TINY)


@pytest.mark.parametrize("with_classifier", [True, False])
def test_encoder_checkpoint_says_in_one_line_what_it_gave(
    with_classifier: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = transformers.SegformerForImageClassification if with_classifier else transformers.SegformerModel
    kind(their_config(1000)).save_pretrained(tmp_path)
    names = {"id2label": {0: "sky", 1: "road"}, "label2id": {"sky": 0, "road": 1}}
    with caplog.at_level(logging.WARNING):
        model = SegformerForSemanticSegmentation.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **names)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "\n" not in lines[0]
    assert "loaded encoder (" in lines[0] and "starts fresh: decode_head (16 tensors)" in lines[0]
    assert ("not used: classifier (2 tensors)" in lines[0]) is with_classifier
    assert model.config.num_labels == 2 and model.config.id2label == names["id2label"]
    encoder = SegformerModel.from_pretrained(tmp_path).encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in model.segformer.encoder.state_dict().items())


def test_another_number_of_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    transformers.SegformerForSemanticSegmentation(their_config(150)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"pass ignore_mismatched_sizes=True(.|\n)*(classifier|Conv2d)"):
        SegformerForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3)
    with caplog.at_level(logging.WARNING):
        model = SegformerForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "starts fresh: decode_head.classifier (2 tensors)" in lines[0]
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 3, 8, 8)


def test_exact_fit_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, **networks.TINY)).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    assert not caplog.records
