"""What public notebooks and tutorials do with SegFormer, on transformers' classes and on ours: the same losses.

Written anew after the steps that they take: a data set that calls the processor and squeezes, a hand-written loop, the
Trainer with metrics on enlarged logits, adapters of PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerFeatureExtractor, SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks
from support.libraries import OURS, STOCK, Library

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated",  # peft asks transformers by the old name
)
ID2LABEL = {0: "wall", 1: "floor", 2: "door"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A published checkpoint in small, of another number of labels."""
    torch.manual_seed(0)
    config = SegformerConfig(**networks.TINY, num_labels=7, classifier_dropout_prob=0.0, drop_path_rate=0.0)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "published")
    SegformerImageProcessor(size=64).save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def load(library: Library, checkpoint: Path) -> Any:
    """As everybody does: labels by name, and a new classifier; here with weights that both libraries share."""
    model = library.model.from_pretrained(
        checkpoint,
        num_labels=len(ID2LABEL),
        id2label=ID2LABEL,
        label2id={name: i for i, name in ID2LABEL.items()},
        ignore_mismatched_sizes=True,
    )
    generator = torch.Generator().manual_seed(1)
    nn.init.normal_(model.decode_head.classifier.weight, std=0.1, generator=generator)
    nn.init.zeros_(model.decode_head.classifier.bias)
    return model


def pictures(count: int = 4) -> list[tuple[Image.Image, Image.Image]]:
    """Photos and masks of ids 1 to 3, where 0 is no class."""
    draw = np.random.default_rng(0)
    photos = draw.integers(0, 256, (count, 50, 70, 3), dtype=np.uint8)
    masks = draw.integers(0, 4, (count, 5, 7), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
    return [(Image.fromarray(photo), Image.fromarray(mask)) for photo, mask in zip(photos, masks, strict=True)]


class SemanticSegmentationDataset(Dataset):
    """Calls the processor for each pair, and takes the axis of the batch away."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.pairs = processor, pictures()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        encoded = self.processor(*self.pairs[index], return_tensors="pt")
        for name in encoded:
            encoded[name].squeeze_()
        return dict(encoded)


def hand_written_loop(model: Any, processor: Any) -> list[float]:
    """Losses, and the pixel accuracies of enlarged logits."""
    optimizer, numbers = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    model.train()
    for _ in range(2):
        for batch in DataLoader(SemanticSegmentationDataset(processor), batch_size=2):
            optimizer.zero_grad()
            outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
            outputs.loss.backward()
            optimizer.step()
            numbers.append(outputs.loss.item())
            with torch.no_grad():
                size = batch["labels"].shape[-2:]
                enlarged = nn.functional.interpolate(outputs.logits, size, mode="bilinear", align_corners=False)
                valid = batch["labels"] != 255
                numbers.append((enlarged.argmax(1) == batch["labels"])[valid].float().mean().item())
    return numbers


def test_a_hand_written_loop_over_reduced_labels(checkpoint: Path) -> None:
    ours = hand_written_loop(load(OURS, checkpoint), SegformerFeatureExtractor(reduce_labels=True, size=64))
    theirs = hand_written_loop(load(STOCK, checkpoint), STOCK.processor(do_reduce_labels=True, size=64))
    assert len(ours) == 8 and ours[0] > 0.5
    np.testing.assert_allclose(ours[::2], theirs[::2], rtol=1e-3)
    np.testing.assert_allclose(ours[1::2], theirs[1::2], atol=0.02)  # pixels near a tie go either way


def trainer_recipe(library: Library, checkpoint: Path, folder: Path, model: Any = None) -> tuple[Any, list[float]]:
    """The tutorial's Trainer: transforms on lists, metrics of enlarged logits, the best weights at the end."""
    processor = library.processor.from_pretrained(checkpoint, do_reduce_labels=True)

    def collate(rows: list[tuple[Image.Image, Image.Image]]) -> Any:
        return processor([row[0] for row in rows], [row[1] for row in rows], return_tensors="pt")

    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits, labels = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
        found = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
        return {"accuracy": (found == labels)[labels != 255].float().mean().item()}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        learning_rate=1e-3,
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model if model is not None else load(library, checkpoint),
        args=arguments,
        train_dataset=pictures(),
        eval_dataset=pictures(),
        data_collator=collate,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    numbers = [float(line[key]) for line in trainer.state.log_history for key in ("loss", "eval_loss") if key in line]
    return trainer, [*numbers, trainer.evaluate()["eval_accuracy"]]


def test_the_trainer_of_the_tutorial(checkpoint: Path, tmp_path: Path) -> None:
    _, ours = trainer_recipe(OURS, checkpoint, tmp_path / "ours")
    _, theirs = trainer_recipe(STOCK, checkpoint, tmp_path / "theirs")
    assert len(ours) == 4 + 2 + 1
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=1e-3)
    assert ours[-1] == pytest.approx(theirs[-1], abs=0.02)  # pixels near a tie go either way


def test_adapters_in_the_trainer_and_from_their_folder(checkpoint: Path, tmp_path: Path) -> None:
    """LoRA on query and value, the head trained whole; the adapter's folder on fresh weights gives the same."""
    settings = peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.0, modules_to_save=["decode_head"]
    )
    model = peft.get_peft_model(load(OURS, checkpoint), settings)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < trainable < sum(p.numel() for p in model.parameters())
    trainer, numbers = trainer_recipe(OURS, checkpoint, tmp_path / "run", model)
    assert numbers[0] > 0.5
    trainer.model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(OURS, checkpoint), str(tmp_path / "adapter")).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trainer.model.eval()(x).logits
        torch.testing.assert_close(again(x).logits, expected)
        torch.testing.assert_close(again.merge_and_unload()(x).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(load(OURS, checkpoint).eval()(x).logits, expected, atol=1e-4)  # it has learnt
