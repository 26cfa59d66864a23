"""transformers' two example scripts for semantic segmentation, step by step, with one class exchanged for ours.

Written anew after what the scripts do, from the data set with masks to a saved model that transformers opens again: the
one with the Trainer (config from AutoConfig, labels reduced by the transforms, resumed from its last checkpoint), and
the one with Accelerate (its own loop and schedule, states saved and loaded). Each is run with transformers' class too:
losses must agree.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import datasets
import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint

from segtune.evaluation.metrics import MeanIoU
from support import networks
from support.libraries import OURS, STOCK, Library

pytestmark = pytest.mark.slow

NAMES = ["wall", "floor", "door"]  # ids 1 to 3 of the masks; 0 is no class


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """What the scripts start from: an image classifier (as nvidia/mit-b0), so the head is new."""
    torch.manual_seed(0)
    settings = {**networks.TINY, "classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
    config = transformers.SegformerConfig(**settings, num_labels=7)
    transformers.SegformerForImageClassification(config).save_pretrained(tmp_path / "mit")
    STOCK.processor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "mit")
    return tmp_path / "mit"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set as on the Hub: parquet files with pictures, and the names in id2label.json."""
    draw = np.random.default_rng(0)
    for split, count in {"train": 6, "validation": 3}.items():
        photos = draw.integers(0, 256, (count, 70, 80, 3), dtype=np.uint8)
        masks = draw.integers(0, 4, (count, 7, 8), dtype=np.uint8).repeat(10, 1).repeat(10, 2)
        columns = {
            "pixel_values": [Image.fromarray(photo) for photo in photos],
            "label": [Image.fromarray(mask) for mask in masks],
        }
        features = datasets.Features({"pixel_values": datasets.Image(), "label": datasets.Image()})
        path = tmp_path / "rooms" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))
    (tmp_path / "rooms" / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return tmp_path / "rooms"


def reduce_labels(labels: np.ndarray, **_: Any) -> np.ndarray:
    labels = np.where(labels == 0, 255, labels - 1).astype(np.uint8)
    return np.where(labels == 254, 255, labels).astype(np.uint8)


def transform(rows: dict[str, Any], transforms: A.Compose) -> dict[str, torch.Tensor]:
    done = [
        transforms(image=np.array(image.convert("RGB")), mask=np.array(mask))
        for image, mask in zip(rows["image"], rows["label"], strict=True)
    ]
    return {
        "pixel_values": torch.stack([one["image"] for one in done]).float(),
        "labels": torch.stack([one["mask"] for one in done]).long(),
    }


def opened(library: Library, data: Path, encoder: Path) -> tuple[Any, Any, Any]:
    """The steps that both scripts begin with: data, labels, config, model, processor, transforms."""
    dataset = datasets.load_dataset(str(data)).rename_columns({"pixel_values": "image"})
    id2label = {int(key): name for key, name in json.loads((data / "id2label.json").read_text()).items()}
    label2id = {name: str(key) for key, name in id2label.items()}
    config = transformers.AutoConfig.from_pretrained(encoder, id2label=id2label, label2id=label2id)
    model = library.model.from_pretrained(encoder, config=config)
    processor = library.processor.from_pretrained(encoder, do_reduce_labels=True)
    assert "shortest_edge" not in processor.size
    height, width = processor.size["height"], processor.size["width"]
    normalize = A.Normalize(mean=processor.image_mean, std=processor.image_std, max_pixel_value=255.0, p=1.0)
    reduced = A.Lambda(name="reduce_labels", mask=reduce_labels, p=1.0)
    for_training = A.Compose([reduced, A.CenterCrop(height, width), normalize, ToTensorV2()])  # random in the scripts
    for_validation = A.Compose([reduced, A.Resize(height, width), normalize, ToTensorV2()])
    dataset["train"].set_transform(partial(transform, transforms=for_training))
    dataset["validation"].set_transform(partial(transform, transforms=for_validation))
    with torch.no_grad():  # the same head for both libraries
        for name, value in model.decode_head.named_parameters():
            if value.dim() > 1:
                value.copy_(torch.linspace(-0.2, 0.2, value.numel()).view_as(value))
            elif name.endswith("bias"):
                value.zero_()
    return dataset, model, processor


def trainer_script(library: Library, data: Path, encoder: Path, folder: Path) -> list[float]:
    """Losses and scores of the script with the Trainer; called again, it goes on from its last checkpoint."""
    dataset, model, processor = opened(library, data, encoder)
    metric = MeanIoU(num_labels=len(NAMES), ignore_index=255)

    @torch.no_grad()
    def compute_metrics(prediction: Any) -> dict[str, float]:
        logits, labels = prediction
        found = nn.functional.interpolate(
            torch.from_numpy(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
        scores = metric.compute(predictions=found.argmax(1).numpy(), references=labels)
        return {"mean_iou": float(scores["mean_iou"])}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        do_train=True,
        do_eval=True,
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        learning_rate=1e-3,
        lr_scheduler_type="polynomial",
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        logging_steps=1,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        compute_metrics=compute_metrics,
        processing_class=processor,
        data_collator=transformers.default_data_collator,
    )
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card(finetuned_from=str(encoder), tags=["image-segmentation", "vision"])
    scores = trainer.evaluate()
    numbers = [float(line[key]) for line in trainer.state.log_history for key in ("loss", "eval_loss") if key in line]
    return [*numbers, scores["eval_mean_iou"]]


def test_the_script_with_the_trainer(data: Path, encoder: Path, tmp_path: Path) -> None:
    ours = trainer_script(OURS, data, encoder, tmp_path / "ours")
    theirs = trainer_script(STOCK, data, encoder, tmp_path / "theirs")
    assert len(ours) == len(theirs) == 4 + 2 + 1 + 1
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=1e-3)
    assert ours[-1] == pytest.approx(theirs[-1], abs=0.02)  # pixels near a tie go either way
    again = trainer_script(OURS, data, encoder, tmp_path / "ours")  # from the last checkpoint: nothing left to do
    assert again[-1] == pytest.approx(ours[-1], abs=0.005)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    assert model.config.id2label == dict(enumerate(NAMES))
    assert (tmp_path / "ours" / "README.md").is_file()
    processor = OURS.processor.from_pretrained(tmp_path / "ours")
    assert processor.do_reduce_labels


def accelerate_script(library: Library, data: Path, encoder: Path, folder: Path) -> list[float]:
    """Losses and the score of the script with Accelerate; its state is saved after two steps and loaded again."""
    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    dataset, model, processor = opened(library, data, encoder)
    loaders = [
        DataLoader(dataset[split], collate_fn=transformers.default_data_collator, batch_size=2)
        for split in ("train", "validation")
    ]
    optimizer = torch.optim.AdamW(list(model.parameters()), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    schedule = transformers.get_scheduler("polynomial", optimizer, num_warmup_steps=0, num_training_steps=6)
    model, optimizer, training, validation, schedule = accelerator.prepare(model, optimizer, *loaders, schedule)
    metric, numbers = MeanIoU(num_labels=len(NAMES), ignore_index=255), []
    for epoch in range(2):
        model.train()
        for batch in training:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            numbers.append(float(loss.detach()))
        accelerator.save_state(str(folder / f"epoch_{epoch}"))
        model.eval()
        for batch in validation:
            with torch.no_grad():
                logits = model(**batch).logits
            found = nn.functional.interpolate(
                logits, size=batch["labels"].shape[-2:], mode="bilinear", align_corners=False
            ).argmax(1)
            found, labels = accelerator.gather_for_metrics((found, batch["labels"]))
            metric.add_batch(predictions=found.numpy(), references=labels.numpy())
        numbers.append(float(metric.compute()["mean_iou"]))
    accelerator.load_state(str(folder / "epoch_1"))
    unwrapped = accelerator.unwrap_model(model)
    unwrapped.save_pretrained(folder, is_main_process=accelerator.is_main_process, save_function=accelerator.save)
    processor.save_pretrained(folder)
    return numbers


def test_the_script_with_accelerate(data: Path, encoder: Path, tmp_path: Path) -> None:
    ours = accelerate_script(OURS, data, encoder, tmp_path / "ours")
    theirs = accelerate_script(STOCK, data, encoder, tmp_path / "theirs")
    assert len(ours) == 2 * (3 + 1)
    losses = [0, 1, 2, 4, 5, 6]
    np.testing.assert_allclose(np.take(ours, losses), np.take(theirs, losses), rtol=1e-3)
    assert ours[-1] == pytest.approx(theirs[-1], abs=0.02)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = OURS.model.from_pretrained(tmp_path / "ours").eval()(x).logits
        torch.testing.assert_close(model.eval()(x).logits, expected, rtol=1e-4, atol=1e-5)
