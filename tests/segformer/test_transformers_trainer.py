"""Our model in transformers' own Trainer: the gradient does not depend on how a batch is accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import SequentialSampler

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks

TINY = {**networks.TINY, "num_labels": 5, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}


class InOrder(transformers.Trainer):
    """Takes the samples one after the other."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Gradients(transformers.TrainerCallback):
    """Keeps what the optimiser gets."""

    def __init__(self) -> None:
        self.kept: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept.append({name: value.grad.clone() for name, value in model.named_parameters()})


def samples(ignore_index: int, rows: Any) -> list[dict[str, torch.Tensor]]:
    """24 images; of the i-th one rows(i) rows are ignored."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(24):
        labels = torch.randint(0, 5, (32, 32), generator=generator)
        labels[: rows(i)] = ignore_index
        found.append({"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": labels})
    return found


def train(folder: Path, dataset: Any, ignore_index: int, size: int, accumulation: int) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, semantic_loss_ignore_index=ignore_index))
    norm = model.decode_head.batch_norm.eval()
    norm.train = lambda mode=True: norm  # frozen statistics, whatever the Trainer asks for
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = Gradients()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        max_grad_norm=0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(model, arguments, train_dataset=dataset, optimizers=(optimizer, schedule), callbacks=[gradients])
    assert trainer.model_accepts_loss_kwargs == (ignore_index == -100)
    trainer.train()
    assert len(gradients.kept) == 3
    return gradients.kept[0], {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    largest = max(value.abs().max() for value in one.values())
    assert largest > 0 and len(one) > 50
    for name, value in one.items():
        assert (value - other[name]).abs().max() <= 1e-5 * max(value.abs().max(), 1e-3 * largest), name


@pytest.mark.parametrize(("size", "accumulation"), [(1, 8), (2, 4)])
@pytest.mark.parametrize(
    ("ignore_index", "rows"),
    [
        (-100, lambda i: 32 if i == 0 else 3 * (i % 8)),  # unequal, and one micro-batch wholly ignored
        (255, lambda i: 10),  # Trainer averages the micro-batches: the same where they have as many valid pixels
    ],
)
def test_accumulation_changes_nothing(
    tmp_path: Path, ignore_index: int, rows: Any, size: int, accumulation: int
) -> None:
    dataset = samples(ignore_index, rows)
    whole = train(tmp_path, dataset, ignore_index, 8, 1)
    divided = train(tmp_path, dataset, ignore_index, size, accumulation)
    for one, other in zip(whole, divided, strict=True):
        assert_same(one, other)


def test_summed_loss_is_divided_by_the_items_of_the_step() -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, semantic_loss_ignore_index=-100)).eval()
    sample = samples(-100, lambda i: 16)[0]
    inputs = {key: value[None] for key, value in sample.items()}
    mean = model(**inputs).loss
    valid = 16 * 32
    torch.testing.assert_close(model(**inputs, num_items_in_batch=torch.tensor(2 * valid)).loss, mean / 2)
    inputs["labels"].fill_(-100)
    assert model(**inputs, num_items_in_batch=0).loss == 0
