from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from segtune.data.config import TransformConfig
from segtune.errors import DataError, UsageError
from segtune.inference.processor import processor_from_transforms
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.teachers.logit_cache import LogitCache
from segtune.training.teachers.teacher import SharedClasses, Teacher, load_teacher
from support.networks import TINY

CLASSES = LabelMap.from_names(["sky", "road", "car"])
PROCESSOR = processor_from_transforms(TransformConfig())
CPU = torch.device("cpu")


def test_classes_are_matched_by_name() -> None:
    shared = SharedClasses.by_name(["Sky", "traffic sign", "car"], ["car", "sky", "traffic_sign", "bus"], "t")
    assert (shared.student, shared.teacher, shared.is_all) == ((0, 1, 2), (1, 2, 0), True)
    some = SharedClasses.by_name(["hill", "car", "sky"], ["car", "sky"], "t")
    assert (some.student, some.teacher, some.is_all) == ((1, 2), (0, 1), False)
    with pytest.raises(UsageError, match=r"teacher=t shares 1 classes .* it knows car, bus; the data set has sky, car"):
        SharedClasses.by_name(["sky", "car"], ["car", "bus"], "t")


def test_a_model_of_transformers_is_a_teacher_and_gets_its_own_normalisation(tmp_path: Path) -> None:
    """Another architecture, whose processor has another mean: the logits are those that transformers computes."""
    backbone = transformers.ResNetConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], embedding_size=8, layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    names = {0: "bus", 1: "Car", 2: "road", 3: "sky"}
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        num_labels=4,
        id2label=names,
        use_auxiliary_head=False,
        pool_scales=[1],
    )
    torch.manual_seed(0)
    theirs = transformers.UperNetForSemanticSegmentation(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "SegformerImageProcessor", "image_mean": [0.5, 0.5, 0.5], '
        '"image_std": [0.5, 0.25, 0.5]}'
    )
    teacher = load_teacher(str(tmp_path), CLASSES, PROCESSOR, (64, 64), CPU)
    values = torch.rand(2, 3, 64, 64)  # from 0 to 1
    mean, std = (torch.tensor(each)[:, None, None] for each in (PROCESSOR.image_mean, PROCESSOR.image_std))
    found = teacher((values - mean) / std)
    with torch.no_grad():
        expected = theirs((values - 0.5) / torch.tensor([0.5, 0.25, 0.5])[:, None, None]).logits
    torch.testing.assert_close(found, expected[:, [3, 2, 1]], rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher.train()
    assert not any(module.training for module in teacher.modules())


def test_checkpoints_that_are_no_teachers_are_refused(tmp_path: Path) -> None:
    transformers.ViTConfig(hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_teacher(str(tmp_path), CLASSES, PROCESSOR, (64, 64), CPU)
    config = transformers.SegformerConfig(architectures=["SegformerForImageClassification"])
    config.save_pretrained(tmp_path)
    for name, message in (
        (tmp_path, "is a SegformerForImageClassification, without a head"),
        (tmp_path / "none", "cannot be loaded|no such"),
    ):
        with pytest.raises(UsageError, match=message):
            load_teacher(str(name), CLASSES, PROCESSOR, (64, 64), CPU)


class Counting(torch.nn.Module):
    """A network that counts its calls: its logits are the first three channels, shrunk."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.calls = torch.nn.Parameter(torch.tensor([factor])), 0

    def forward(self, pixel_values: torch.Tensor) -> object:
        self.calls += 1
        return transformers.modeling_outputs.SemanticSegmenterOutput(
            logits=self.factor * torch.nn.functional.avg_pool2d(pixel_values, 4)
        )


def counting(factor: float = 1.0) -> tuple[Counting, Teacher]:
    network = Counting(factor)
    shared = SharedClasses((0, 1, 2), (0, 1, 2), 3)
    return network, Teacher(network, shared, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])


def test_a_crop_that_comes_again_is_read_and_equals_what_was_said_first(tmp_path: Path) -> None:
    network, teacher = counting()
    crops = torch.rand(2, 3, 16, 16)
    first = LogitCache(tmp_path, teacher)(crops)
    assert (network.calls, first.shape, first.dtype) == (1, (2, 3, 4, 4), torch.float32)
    again = LogitCache(tmp_path, teacher)
    assert torch.equal(again(crops.flip(0)), first.flip(0)) and network.calls == 1
    assert torch.equal(again(crops[:1]), first[:1]) and (again.found, again.made) == (3, 0)
    again(crops + 1e-3)
    assert network.calls == 2


def test_another_teacher_is_noticed_and_damage_is_computed_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crops = torch.rand(1, 3, 16, 16)
    first = LogitCache(tmp_path, counting()[1])(crops)
    network, teacher = counting(2.0)
    other = LogitCache(tmp_path, teacher)
    assert "holds logits of other teachers" in caplog.text
    torch.testing.assert_close(other(crops), 2 * first, rtol=1e-2, atol=0)
    (file,) = other.folder.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    torch.testing.assert_close(other(crops), 2 * first, rtol=1e-2, atol=0)
    assert network.calls == 2 and np.load(file)["logits"].shape == (3, 4, 4)


@pytest.fixture
def segformer(tmp_path: Path) -> Path:
    """A checkpoint of transformers' own class, of the data's classes."""
    torch.manual_seed(0)
    names = {0: "sky", 1: "road", 2: "car"}
    config = SegformerConfig(**TINY, id2label=names, label2id={name: i for i, name in names.items()})
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize(
    ("saved", "prepared"),
    [
        ({"do_normalize": False}, lambda v: v),
        ({"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}, lambda v: (255 * v - 100) / 50),
        ({"rescale_factor": 2 / 255, "image_mean": 1.0, "image_std": [0.5]}, lambda v: (2 * v - 1) / 0.5),
    ],
)
def test_a_teacher_gets_what_its_processor_makes(segformer: Path, saved: dict[str, Any], prepared: Any) -> None:
    (segformer / "preprocessor_config.json").write_text(json.dumps(saved))
    teacher = load_teacher(str(segformer), CLASSES, PROCESSOR, (64, 64), CPU)
    values = torch.rand(1, 3, 64, 64)  # from 0 to 1
    mean, std = (torch.tensor(each)[:, None, None] for each in (PROCESSOR.image_mean, PROCESSOR.image_std))
    found = (values - mean) / std * teacher.scale + teacher.shift
    torch.testing.assert_close(found, prepared(values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ('{"image_std": [0.2, 0.0, 0.2]}', "image_std of its preprocessor_config.json is 0 in a channel"),
        ('{"image_mean": ["a", 1, 2]}', "image_mean of its preprocessor_config.json is .* no number for each channel"),
        ('{"image_mean": [NaN, 1, 2]}', "no number for each channel"),
        ('{"image_mean": {"a": 1}}', "no number for each channel"),
        ('{"image_mean": [0.5, 0.5]}', "reads 2 channels, the data set has 3"),
        ('{"value_range": [0, 1000]}', "was trained on values from 0 to 1000"),
        ('{"do_flip_channel_order": true}', "reads blue, green and red"),
        ('{"image_mean"', "preprocessor_config.json is damaged"),
    ],
)
def test_a_processor_that_makes_no_sense_is_named(segformer: Path, saved: str, message: str) -> None:
    (segformer / "preprocessor_config.json").write_text(saved)
    with pytest.raises((DataError, UsageError), match=message):
        load_teacher(str(segformer), CLASSES, PROCESSOR, (64, 64), CPU)


def test_weights_that_are_missing_would_answer_at_random(segformer: Path) -> None:
    weights = load_file(segformer / "model.safetensors")
    without = {name: value for name, value in weights.items() if not name.startswith("decode_head.classifier")}
    save_file(without, segformer / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"does not hold all weights .* decode_head.classifier.bias"):
        load_teacher(str(segformer), CLASSES, PROCESSOR, (64, 64), CPU)


def test_code_of_a_teacher_is_neither_run_nor_asked_for(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot be loaded: "):
        load_teacher(str(tmp_path), CLASSES, PROCESSOR, (64, 64), CPU)


@pytest.mark.parametrize("change", [{"id2label": 5}, {"id2label": {"a": "b"}}, {"hidden_sizes": "x"}, {"depths": {}}])
def test_a_config_of_odd_values_is_one_message(segformer: Path, change: dict[str, Any]) -> None:
    path = segformer / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((DataError, UsageError)) as error:
        load_teacher(str(segformer), CLASSES, PROCESSOR, (64, 64), CPU)
    assert str(segformer) in str(error.value) and "\n" not in str(error.value)


def test_one_bit_of_kept_logits_is_noticed(tmp_path: Path) -> None:
    network, teacher = counting()
    crops = torch.rand(2, 3, 16, 16)
    first = LogitCache(tmp_path, teacher)(crops)
    for at in (0.3, 0.5, 0.7):
        file = min(tmp_path.rglob("*.npz"))
        content = bytearray(file.read_bytes())
        content[int(at * len(content))] ^= 4
        file.write_bytes(content)
        assert torch.equal(LogitCache(tmp_path, teacher)(crops), first)
    np.savez(file, logits=np.zeros((3, 9, 9), np.float16))  # of another crop
    assert torch.equal(LogitCache(tmp_path, teacher)(crops), first)
    assert network.calls > 1


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "logits").write_text("a file")
    with pytest.raises(UsageError, match=rf"training.distill.cache={tmp_path}/logits cannot be a folder of logits"):
        LogitCache(tmp_path / "logits", counting()[1])
