"""Predictions at the original size, evaluation of a data set, and the pictures of both."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from segtune.data.config import TransformConfig
from segtune.data.dataset import load_segmentation_dataset
from segtune.errors import DataError, UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.finetune import train
from segtune.imageio.raster import ArrayRaster
from segtune.imageio.read import read_image, read_mask
from segtune.inference.config import EvaluationConfig
from segtune.inference.evaluate import evaluate_model, evaluated_images
from segtune.inference.predict import predict
from segtune.inference.processor import processor_from_transforms
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.recipe.recipe import load_recipe
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.viz.overlay import comparison

TINY = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 4, 8)}


def _tiny(num_labels: int = 4, **fields: object) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = SegformerConfig(**TINY, decoder_hidden_size=16, num_labels=num_labels, **fields)
    model = SegformerForSemanticSegmentation(config)
    nn.init.normal_(model.decode_head.classifier.weight, std=5.0)  # so that all classes occur
    return model.eval()


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour patches, so that classes form regions."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _expected(model: nn.Module, photo: np.ndarray, processor: SegformerImageProcessor) -> np.ndarray:
    with torch.no_grad():
        logits = model(processor(photo, return_tensors="pt")["pixel_values"]).logits
    upsampled = F.interpolate(logits, size=photo.shape[:2], mode="bilinear", align_corners=False)
    return upsampled[0].argmax(0).numpy()


class _RedChannel(nn.Module):
    """A model that answers, at a quarter of the size, with the class that the red value names."""

    def __init__(self, num_labels: int, stride: int = 4) -> None:
        super().__init__()
        self.num_labels, self.stride = num_labels, stride
        self.unused = nn.Parameter(torch.zeros(1))
        self.batch_sizes: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.batch_sizes.append(len(pixel_values))
        red = pixel_values[:, 0, :: self.stride, :: self.stride].round().long()
        return SimpleNamespace(logits=F.one_hot(red, self.num_labels).movedim(-1, 1).float())


def _as_is() -> SegformerImageProcessor:
    return SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def _dataset(images: list[np.ndarray], masks: list[np.ndarray]) -> datasets.Dataset:
    features = datasets.Features(id=datasets.Value("string"), image=datasets.Image(), mask=datasets.Image())
    rows = {
        "id": [f"tile_{i}" for i in range(len(images))],
        "image": [Image.fromarray(image) for image in images],
        "mask": [Image.fromarray(mask) for mask in masks],
    }
    return datasets.Dataset.from_dict(rows, features=features)


# ---- predict ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (31, 20)])
def test_predictions_have_the_size_of_the_image(height, width):
    model, photo = _tiny(), _photo(height, width)
    labels = predict(model, photo)
    assert labels.dtype == np.uint8
    assert labels.shape == (height, width)
    np.testing.assert_array_equal(labels, _expected(model, photo, SegformerImageProcessor(do_resize=False)))
    assert len(np.unique(labels)) > 1


def test_every_kind_of_image_is_read_alike(tmp_path):
    model, photo = _tiny(), _photo(40, 56)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    wanted = predict(model, photo)
    path = tmp_path / "photo.png"
    for image in (path, str(path), Image.fromarray(photo), photo.transpose(2, 0, 1), torch.from_numpy(photo.copy())):
        labels = predict(model, image)
        assert isinstance(labels, np.ndarray)
        np.testing.assert_array_equal(labels, wanted)
    for several in ([path], (photo,), iter([path]), photo[None], tmp_path.glob("*.png")):
        labels = predict(model, several)
        assert isinstance(labels, list)
        assert len(labels) == 1
        np.testing.assert_array_equal(labels[0], wanted)
    assert predict(model, []) == []
    grey = Image.fromarray(photo).convert("L")
    np.testing.assert_array_equal(predict(model, grey), predict(model, np.asarray(grey)))


def test_orientation_noted_by_a_camera_is_applied(tmp_path):
    photo = _photo(48, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    model = _tiny()
    labels = predict(model, tmp_path / "turned.png")
    assert labels.shape == (80, 48)
    np.testing.assert_array_equal(labels, predict(model, np.rot90(photo, -1).copy()))


def test_batches_join_images_of_one_size_and_keep_the_order():
    photos = [_photo(*size, seed=i) for i, size in enumerate([(32, 40), (40, 32), (32, 40), (40, 32), (24, 24)])]
    model = _RedChannel(256)
    one_by_one = [predict(model, photo, processor=_as_is()) for photo in photos]
    model.batch_sizes.clear()
    together = predict(model, photos, processor=_as_is(), batch_size=2)
    assert model.batch_sizes == [2, 2, 1]
    for alone, joined in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(alone, joined)
    model.batch_sizes.clear()
    sizes = [(8 + i, 8) for i in range(12)]  # no two alike: not all of them may wait for a partner
    labels = predict(model, [_photo(*size) for size in sizes], processor=_as_is(), batch_size=2)
    assert [ids.shape for ids in labels] == sizes
    assert model.batch_sizes == [1] * 12


def test_a_batch_is_computed_like_its_images_alone():
    model, photos = _tiny(), [_photo(40, 56, seed=i) for i in range(3)]
    together = predict(model, photos, batch_size=3)
    same = [np.mean(predict(model, photo) == labels) for photo, labels in zip(photos, together, strict=True)]
    assert min(same) > 0.999  # one batch may sum in another order


def test_one_logit_is_a_threshold():
    model, photo = _tiny(num_labels=1), _photo(33, 45)
    processor = SegformerImageProcessor(do_resize=False)
    labels = predict(model, photo)
    with torch.no_grad():
        logits = model(processor(photo, return_tensors="pt")["pixel_values"]).logits
    probability = torch.sigmoid(F.interpolate(logits, size=(33, 45), mode="bilinear", align_corners=False))[0, 0]
    np.testing.assert_array_equal(labels, (probability > 0.5).numpy())
    assert set(np.unique(labels)) == {0, 1}


@pytest.mark.parametrize(("num_labels", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_many_labels_take_wider_integers(num_labels, dtype):
    image = np.zeros((8, 8, 3), dtype=np.float32)
    image[:, 4:, 0] = num_labels - 1
    labels = predict(_RedChannel(num_labels), image, processor=_as_is())
    assert labels.dtype == dtype
    assert labels[0, 0] == 0
    assert labels[7, 7] == num_labels - 1


def test_a_checkpoint_is_loaded_with_its_processor(tmp_path):
    model, photo = _tiny(), _photo(50, 70)
    processor = SegformerImageProcessor(size={"shortest_edge": 96}, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    model.save_pretrained(tmp_path)
    without = _expected(model, photo, SegformerImageProcessor(do_resize=False))
    np.testing.assert_array_equal(predict(tmp_path, photo), without)
    processor.save_pretrained(tmp_path)
    wanted = _expected(model, photo, processor)
    assert (wanted != without).any()
    for reference in (tmp_path, str(tmp_path), SegformerForSemanticSegmentation.from_pretrained(tmp_path)):
        np.testing.assert_array_equal(predict(reference, photo, device="cpu"), wanted)
    np.testing.assert_array_equal(predict(model, photo, processor=processor), wanted)


def test_a_hub_name_without_a_processor_is_told(caplog):
    model = _tiny()
    model.name_or_path = "someone/encoder"
    labels = predict(model, _photo(32, 32))
    assert labels.shape == (32, 32)
    assert "someone/encoder: no preprocessor_config.json, so images keep their size" in caplog.text


def test_four_channels():
    model = _tiny(num_channels=4)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    with pytest.raises(UsageError, match=r"4 channels .* one value per channel"):
        predict(model, image)
    processor = SegformerImageProcessor(do_resize=False, image_mean=[0.5] * 4, image_std=[0.25] * 4)
    labels = predict(model, [image, image.transpose(2, 0, 1), Image.fromarray(image)], processor=processor)
    assert [ids.shape for ids in labels] == [(20, 30)] * 3
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[0], labels[2])


def test_every_module_is_left_in_its_mode():
    model = _tiny().train()
    model.decode_head.batch_norm.eval()
    running_mean = model.decode_head.batch_norm.running_mean.clone()
    photo = _photo(32, 32)
    np.testing.assert_array_equal(
        predict(model, photo), predict(model.eval(), photo)
    )  # no dropout, no batch statistics
    model.train()
    model.decode_head.batch_norm.eval()
    predict(model, photo)
    assert model.training
    assert model.decode_head.classifier.training
    assert not model.decode_head.batch_norm.training
    with pytest.raises(DataError):
        predict(model, "nowhere.png")
    assert model.training
    assert torch.equal(model.decode_head.batch_norm.running_mean, running_mean)


def test_half_precision_weights():
    model, photo = _tiny(), _photo(32, 48)
    exact = predict(model, photo)
    assert np.mean(predict(model.bfloat16(), photo) == exact) > 0.9


def test_files_that_are_no_images_are_named(tmp_path):
    model = _tiny()
    (tmp_path / "notes.png").write_text("no image")
    Image.fromarray(_photo(64, 64)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    for name, reason in [
        ("nowhere.png", "No such file"),
        ("notes.png", "it is no"),
        ("cut.png", ".*truncated"),
    ]:
        with pytest.raises(DataError, match=rf"{name}: cannot be read \({reason}"):
            predict(model, [_photo(8, 8), tmp_path / name])
    with pytest.raises(UsageError, match="absent"):
        predict(tmp_path / "absent", _photo(8, 8))


def test_the_bar_goes_to_stderr_on_request_only(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model = _RedChannel(256)
    predict(model, [_photo(8, 8)] * 2, processor=_as_is())
    assert capsys.readouterr() == ("", "")
    predict(model, [_photo(8, 8)] * 2, processor=_as_is(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "predict" in err
    assert "2/2" in err


# ---- windows and test-time augmentation ----


class _Recorded(nn.Module):
    """A model that notes the shapes it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.shapes.append(tuple(pixel_values.shape))
        return self.network(pixel_values)


def _slide_reference(model, photo, processor, window: int, stride: int) -> torch.Tensor:
    """mmseg's slide_inference with weights: every window's logits at the image's size, weighted mean, all in memory."""
    values = processor(photo, return_tensors="pt")["pixel_values"]
    height, width = values.shape[2:]
    total, weights = 0, torch.zeros(height, width)
    for top in [*range(0, max(height - window, 0), stride), max(height - window, 0)]:
        for left in [*range(0, max(width - window, 0), stride), max(width - window, 0)]:
            part = values[..., top : top + window, left : left + window]
            full = F.interpolate(model(part).logits, size=part.shape[2:], mode="bilinear", align_corners=False)
            ramps = []
            for start, length, side in ((top, height, part.shape[2]), (left, width, part.shape[3])):
                ramp = torch.ones(side)
                steps = torch.arange(1, side + 1)
                if start > 0:
                    ramp = torch.minimum(ramp, steps / (window - stride))
                if start + window < length:
                    ramp = torch.minimum(ramp, steps.flip(0) / (window - stride))
                ramps.append((ramp * torch.pi / 2).sin().square())
            weight = ramps[0][:, None] * ramps[1] + 1e-9
            weights[top : top + window, left : left + window] += weight
            total = total + F.pad(
                full * weight, (left, width - left - part.shape[3], top, height - top - part.shape[2])
            )
    return total / weights


def test_one_window_is_the_whole_image():
    model, photo = _tiny(), _photo(90, 61)
    whole = predict(model, photo)
    np.testing.assert_array_equal(predict(model, photo, window=96), whole)
    np.testing.assert_array_equal(Segmenter(model, SegformerImageProcessor(do_resize=False))(photo).labels, whole)


@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_windows_are_blended(batch_size):
    model, photo = _Recorded(_tiny()), _photo(160, 212)
    processor = SegformerImageProcessor(do_resize=False)
    labels = predict(model, photo, processor=processor, window=64, stride=48, batch_size=batch_size)
    assert {shape[2:] for shape in model.shapes} == {(64, 64)}
    assert sum(shape[0] for shape in model.shapes) == 3 * 5
    assert max(shape[0] for shape in model.shapes) == batch_size
    reference = _slide_reference(model, photo, processor, 64, 48)
    wanted = reference[0].argmax(0).numpy()
    assert len(np.unique(wanted)) > 2
    assert np.mean(labels == wanted) > 0.98  # blended at a quarter of the size, not at full size
    assert np.mean(labels == predict(model, photo, processor=processor)) < 0.98  # the test can tell


def test_constant_logits_give_the_constant_everywhere():
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            b, _, h, w = pixel_values.shape
            logits = torch.tensor([0.1, 0.1 + 1e-6, -3.0])[:, None, None]
            return SimpleNamespace(logits=logits.expand(b, 3, -(-h // 4), -(-w // 4)))

    photo = _photo(301, 214)
    for protocol in (InferenceProtocol(64, 40), InferenceProtocol(96, 96), InferenceProtocol(64, 40, flip=True)):
        found = Segmenter(Constant(), _as_is(), protocol)(photo, confidence=True)
        assert (found.labels == 1).all()
        np.testing.assert_allclose(found.confidence, found.confidence[0, 0], rtol=1e-6)
        assert found.confidence[0, 0] == pytest.approx(1 / (1 + np.exp(-1e-6) + np.exp(-3.1)), abs=1e-6)


@pytest.mark.parametrize("size", [(150, 190), (33, 300)])
def test_windows_of_a_resized_image(size):
    """The protocol of the paper's ADE20K (short side, multiple of 32), in windows: the same picture as in memory."""
    model, photo = _tiny(), _photo(*size)
    processor = SegformerImageProcessor(size={"shortest_edge": 96}, size_divisor=32, window=64, stride=48)
    found = predict(model, photo, processor=processor)
    assert found.shape == size
    pixels = (processor(photo, do_normalize=False, do_rescale=False)["pixel_values"][0]).astype(np.uint8)
    resized = Segmenter(model, SegformerImageProcessor(do_resize=False), InferenceProtocol(64, 48))
    with torch.no_grad():
        logits = torch.cat(list(resized._view(ArrayRaster(pixels.transpose(1, 2, 0)), 1.0).chunks), dim=-2)
        wanted = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    assert np.mean(found == wanted) > 0.999


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize(("window", "scales"), [(None, (0.5, 1.0, 1.5)), (64, (0.75, 1.25))])
@torch.no_grad()
def test_augmentation_averages_probabilities(num_labels, window, scales):
    """mmseg's SegTTAModel: softmax (sigmoid) of every scale's and flip's logits at the image's size, then the mean."""
    model, photo = _tiny(num_labels), _photo(90, 130)
    processor = SegformerImageProcessor(do_resize=False, size_divisor=32)
    found = Segmenter(model, processor, InferenceProtocol(window, None, scales, flip=True))(photo, confidence=True)
    total = 0
    for scale in scales:
        height, width = (-(-round(scale * side) // 32) * 32 for side in (96, 160))
        scaled = Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)
        for mirrored in (False, True):
            seen = np.asarray(scaled)
            if window is None:
                logits = model(
                    processor(seen[:, ::-1] if mirrored else seen, return_tensors="pt")["pixel_values"]
                ).logits
                logits = logits.flip(-1) if mirrored else logits
            else:
                segmenter = Segmenter(model, processor, InferenceProtocol(window, flip=True))
                strips = segmenter._view(ArrayRaster(seen), 1.0).chunks
                logits = torch.cat([rows[int(mirrored)] for rows in strips], dim=-2)[None]
            full = F.interpolate(logits, size=(90, 130), mode="bilinear", align_corners=False)[0]
            total = total + (full.softmax(0) if num_labels > 1 else torch.cat([1 - full.sigmoid(), full.sigmoid()]))
    mean = total / (2 * len(scales))
    assert np.mean(found.labels == mean.argmax(0).numpy()) > 0.999
    np.testing.assert_allclose(found.confidence, mean.amax(0).numpy(), atol=1e-5)
    assert len(np.unique(found.labels)) > 1


def test_augmentation_by_name():
    model = _RedChannel(256)
    labels = predict(model, np.full((32, 32, 3), 7, np.uint8), processor=_as_is(), tta=True)
    assert (labels == 7).all()
    assert len(model.batch_sizes) == 12


@pytest.mark.parametrize("protocol", [InferenceProtocol(), InferenceProtocol(64, 48)])
def test_confidence_is_the_probability_of_the_answer(protocol):
    model, photo = _tiny(), _photo(80, 100)
    processor = SegformerImageProcessor(do_resize=False)
    with torch.no_grad():
        rows = list(Segmenter(model, processor, protocol)._view(ArrayRaster(photo), 1.0).chunks)
        full = F.interpolate(torch.cat(rows, dim=-2), size=(80, 100), mode="bilinear", align_corners=False)[0]
    found = Segmenter(model, processor, protocol)(photo, confidence=True)
    np.testing.assert_allclose(found.confidence, full.softmax(0).amax(0).numpy(), atol=1e-5)
    assert found.confidence.dtype == np.float32
    assert Segmenter(model, processor, protocol)(photo).confidence is None


@pytest.mark.parametrize("protocol", [InferenceProtocol(), InferenceProtocol(64, 48), InferenceProtocol(flip=True)])
@torch.no_grad()
def test_a_temperature_changes_confidences_only(protocol):
    model, photo = _tiny(), _photo(80, 100)
    processor = SegformerImageProcessor(do_resize=False)
    plain = Segmenter(model, processor, protocol)(photo, confidence=True)
    views = torch.cat(list(Segmenter(model, processor, protocol)._view(ArrayRaster(photo), 1.0).chunks), dim=-2)
    model.config.calibration_temperature = 3.0
    found = Segmenter(model, processor, protocol)(photo, confidence=True)
    np.testing.assert_array_equal(found.labels, plain.labels)
    full = F.interpolate(views / 3, size=(80, 100), mode="bilinear", align_corners=False)
    wanted = full.softmax(1).mean(0).gather(0, torch.from_numpy(found.labels.astype(np.int64))[None])[0]
    np.testing.assert_allclose(found.confidence, wanted.numpy(), atol=1e-5)
    assert found.confidence.mean() < plain.confidence.mean()


def test_strips_are_the_prediction():
    model, photo = _tiny(), _photo(600, 70)
    segmenter = Segmenter(model, SegformerImageProcessor(do_resize=False), InferenceProtocol(64))
    strips = list(segmenter.strips(ArrayRaster(photo)))
    assert [len(strip.labels) for strip in strips] == [256, 256, 88]
    np.testing.assert_array_equal(np.concatenate([strip.labels for strip in strips]), segmenter(photo).labels)


@pytest.mark.parametrize("protocol", [None, InferenceProtocol(64, 48), InferenceProtocol(scales=(0.5, 1.0), flip=True)])
def test_evaluated_images_are_predictions_beside_the_truth(earth, protocol):
    dataset = load_segmentation_dataset(earth)["test"].select(range(4))
    label_map, model = LabelMap.from_file(next(earth.glob("*.json"))), _tiny().train()
    processor = processor_from_transforms(TransformConfig())
    found = list(
        evaluated_images(model, dataset, label_map, processor, protocol=protocol, confidence=True, indices=[3, 1])
    )
    assert [image.id for image in found] == [dataset[3]["id"], dataset[1]["id"]]
    assert model.training
    model.eval()
    for image in found:
        alone = Segmenter(model, processor, protocol)(image.image, confidence=True)
        np.testing.assert_array_equal(image.prediction, alone.labels)
        np.testing.assert_allclose(image.confidence, alone.confidence, atol=1e-6)
    evaluation = evaluate_model(model, dataset, label_map, processor, protocol=protocol, indices=[3, 1])
    expected = Evaluation(label_map.names)
    for image in found:
        expected.add(image.id, image.labels, image.prediction)
    assert evaluation.scores() == expected.scores()


@pytest.mark.slow
def test_windows_leave_no_seams(earth, tmp_path):
    """What a trained network says at the borders of blended windows differs from what it says of the whole image as
    rarely as elsewhere: a window has less context, but no border shows. Side by side, borders do show.
    """
    settings = ["training.max_steps=60", "training.report=false", "training.device=cpu"]
    train(load_recipe("demo", [*settings, f"training.output_dir={tmp_path / 'run'}"]))
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "run" / "best")
    tiles = [read_image(Image.open(path)) for path in sorted((earth / "images").rglob("*.jpg"))]
    rows = np.random.default_rng(0).integers(0, len(tiles), (12, 12))
    mosaic = np.concatenate([np.concatenate([tiles[i] for i in row], axis=1) for row in rows])[:2048, :2048]
    whole = predict(model, mosaic)

    def excess(stride: int) -> float:
        wrong = predict(model, mosaic, window=512, stride=stride) != whole
        near = np.zeros(2048, dtype=bool)
        for start in range(0, 2048 - 512 + 1, stride):
            for border in {start, start + 512} - {0, 2048}:
                near[border - 8 : border + 8] = True
        near = near[:, None] | near
        return wrong[near].mean() - wrong[~near].mean()

    assert excess(384) < 0.005 < excess(512)


# ---- evaluate_model ----


def test_evaluation_by_hand():
    """Three tiles whose red value is what the model will say; masks of many-to-one ids."""
    label_map = LabelMap.from_ids({10: "water", 11: "water", 20: "land", 30: "ice", 0: None})
    images = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 12, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)]
    images[0][:, 4:, 0] = 1  # water | land
    images[1][:, :, 0] = 2  # ice everywhere
    masks = [np.full((8, 8), 10, np.uint8), np.full((8, 12), 30, np.uint8), np.full((4, 4), 0, np.uint8)]
    masks[0][:4] = 11
    masks[0][:, 7] = 20
    masks[1][0] = 0
    model = _RedChannel(3, stride=1).train()
    seen = []
    evaluation = evaluate_model(
        model,
        _dataset(images, masks),
        label_map,
        _as_is(),
        batch_size=2,
        progress=False,
        on_image=lambda *found: seen.append(found),
    )
    assert evaluation.names == label_map.names and not evaluation.detailed
    #                                       water  land  ice
    assert evaluation.confusion.tolist() == [[32, 24, 0], [0, 8, 0], [0, 0, 84]]
    assert sorted(evaluation.counts.ids) == ["tile_0", "tile_1", "tile_2"]
    assert model.training
    assert sorted(name for name, *_ in seen) == ["tile_0", "tile_1", "tile_2"]
    for name, image, labels, prediction in seen:
        number = int(name[-1])
        np.testing.assert_array_equal(image, images[number])
        np.testing.assert_array_equal(labels, label_map.encode(masks[number]))
        np.testing.assert_array_equal(prediction, images[number][:, :, 0])


def test_parts_of_a_dataset_add_up_and_evaluation_equals_prediction(earth):
    dataset = load_segmentation_dataset(earth)["test"].select(range(4))
    label_map, model = LabelMap.from_file(next(earth.glob("*.json"))), _tiny()
    processor = processor_from_transforms(TransformConfig(), EvaluationConfig(short_side=96, size_divisor=32))
    whole = evaluate_model(model, dataset, label_map, processor, progress=False)
    parts = [evaluate_model(model, dataset, label_map, processor, indices=i, progress=False) for i in ([0, 2], [1, 3])]
    assert parts[0].merge(parts[1]).scores() == whole.scores()
    expected = Evaluation(label_map.names)
    for row in dataset:
        labels = label_map.encode(read_mask(row["mask"]))
        expected.add(row["id"], labels, predict(model, row["image"], processor=processor))
    np.testing.assert_array_equal(whole.confusion, expected.confusion)
    pixels = sum(int((label_map.encode(read_mask(row["mask"])) != 255).sum()) for row in dataset)
    assert whole.confusion.sum() == pixels


@pytest.mark.parametrize("num_labels", [3, 1])
def test_confidences_of_a_detailed_evaluation_follow_the_temperature(num_labels):
    """What is counted equals softmax(logits / T) of the upsampled logits; the predictions stay."""
    label_map = LabelMap.from_names(["a", "b", "c"][: max(num_labels, 2)], ignore_index=-100)
    photo, model, processor = _photo(24, 36), _tiny(num_labels), SegformerImageProcessor(do_resize=False)
    dataset = _dataset([photo], [np.zeros((24, 36), np.uint8)])
    found = {}
    for temperature in (1.0, 2.5):
        model.config.calibration_temperature = temperature
        evaluation = Evaluation(label_map.names, -100, detailed=True)
        assert evaluate_model(model, dataset, label_map, processor, evaluation=evaluation, progress=False) is evaluation
        found[temperature] = evaluation.scores()
        with torch.no_grad():
            logits = model(processor(photo, return_tensors="pt")["pixel_values"]).logits / temperature
        logits = F.interpolate(logits, size=(24, 36), mode="bilinear", align_corners=False)
        probabilities = logits.softmax(1) if num_labels > 1 else torch.cat([-logits, logits], 1).sigmoid()
        expected = probabilities.amax(1).mean().item()
        assert found[temperature]["calibration"]["all"]["confidence"] == pytest.approx(expected, abs=1e-5)
    assert found[1.0]["mean_iou"] == found[2.5]["mean_iou"]


def test_evaluation_of_one_logit():
    label_map = LabelMap.from_ids({0: "background", 255: "foreground"}, ignore_index=-100)
    photo = _photo(16, 16)
    model = _tiny(num_labels=1)
    mask = (predict(model, photo) * 255).astype(np.uint8)
    evaluation = evaluate_model(
        model, _dataset([photo], [mask]), label_map, SegformerImageProcessor(do_resize=False), progress=False
    )
    assert evaluation.scores()["mean_iou"] == 1.0


def test_evaluation_names_what_is_wrong():
    label_map = LabelMap.from_names(["a", "b", "c"])
    image = np.zeros((8, 8, 3), np.uint8)
    good, bad = np.zeros((8, 8), np.uint8), np.full((8, 8), 42, np.uint8)
    with pytest.raises(DataError, match=r"sample 'tile_1': .*id 42 \(64 pixels\)"):
        evaluate_model(_RedChannel(3), _dataset([image] * 2, [good, bad]), label_map, _as_is(), progress=False)
    with pytest.raises(DataError, match=r"sample 'tile_0': the image is \(8, 8\).* its mask \(4, 8\)"):
        evaluate_model(_RedChannel(3), _dataset([image], [good[:4]]), label_map, _as_is(), progress=False)
    with pytest.raises(UsageError, match="tells 5 classes apart, the label map has 3"):
        evaluate_model(_RedChannel(5), _dataset([image], [good]), label_map, _as_is(), progress=False)


# ---- real photographs ----


def test_street_scenes_from_file_to_picture(camvid, tmp_path):
    dataset = load_segmentation_dataset(camvid)["test"].select(range(2))
    label_map = LabelMap.from_file(camvid / "classes.json")
    model = _tiny(num_labels=11)
    pictures = []
    evaluation = evaluate_model(
        model,
        dataset,
        label_map,
        processor_from_transforms(TransformConfig()),
        batch_size=2,
        progress=False,
        on_image=lambda name, image, labels, ids: pictures.append(comparison(image, labels, ids, label_map)),
    )
    assert evaluation.confusion.sum() == sum(int((np.asarray(row["mask"]) != 11).sum()) for row in dataset)
    assert [picture.width for picture in pictures] == [pictures[0].width] * 2
    assert pictures[0].width >= 3 * 480
    for row in dataset:
        image = read_image(row["image"])
        assert predict(model, image).shape == image.shape[:2] == (360, 480)
    assert os.listdir(tmp_path) == []


# ---- processor_for ----


def test_the_processor_follows_the_recipe():
    plain = processor_from_transforms(TransformConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert (plain.do_resize, plain.size_divisor) == (False, 1)
    assert (plain.image_mean, plain.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    sized = processor_from_transforms(TransformConfig(), EvaluationConfig(short_side=64, size_divisor=32))
    assert sized(_photo(100, 151))["pixel_values"][0].shape == (3, 64, 96)
    assert sized.do_resize
