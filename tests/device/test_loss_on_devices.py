"""Loss and prediction elsewhere than on a CPU: what they ask of a device, on meta tensors, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.nn import functional as F

from segtune.data.samples import DistanceMaps
from segtune.segformer import cross_entropy, upsampling
from segtune.segformer.cross_entropy import upsampled_cross_entropy
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.upsampling import chunks, upsample, upsample_backward, upsampled_confidence, upsampled_prediction
from segtune.training.config import LossConfig
from segtune.training.losses import chunk_terms
from segtune.training.losses.chunk_terms import ChunkTerms
from segtune.training.losses.segmentation_loss import SegmentationLoss
from support.kernels import counted
from support.ledger import Ledger
from support.upsampled import CASES, logits_and_labels

TERMS = ("cross_entropy", "focal", "ohem", "dice", "tversky", "lovasz", "boundary")
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0]
CONFIGS: list[dict[str, Any]] = [
    *({term: 1} for term in TERMS[1:]),
    {"focal": 1, "focal_gamma": 0.5, "class_weights": WEIGHTS},
    {"ohem": 1, "ohem_threshold": 0.3, "ohem_min_kept": 0.4, "class_weights": WEIGHTS},
    {"tversky": 1, "tversky_alpha": 0.0},
    {"dice": 0.5, "focal": 2, "lovasz": 0.1, "boundary": 0.01},
]


def on_meta(batch: int, num_labels: int, side: int = 32) -> tuple[Tensor, Tensor]:
    logits = torch.empty(batch, num_labels, side // 4, side // 4, device="meta", requires_grad=True)
    return logits, torch.empty(batch, side, side, dtype=torch.long, device="meta")


def loss_of(num_labels: int, **fields: Any) -> SegmentationLoss:
    classes = max(num_labels, 2)
    if "class_weights" in fields:
        fields = fields | {"class_weights": fields["class_weights"][:classes]}
    return SegmentationLoss(LossConfig(**fields), [f"class {i}" for i in range(classes)])


def maps_on_meta(labels: Tensor, per_image: int = 2) -> DistanceMaps:
    number = per_image * len(labels)
    of = torch.empty(number, 2, dtype=torch.long, device="meta")
    return DistanceMaps(of, torch.empty(number, *labels.shape[1:], device="meta"), (per_image,) * len(labels))


def counted_step(config: dict[str, Any], batch: int, num_labels: int, **ledger: Any) -> Ledger:
    """Count, loss and backward pass of a batch."""
    loss = loss_of(num_labels, **config)
    logits, labels = on_meta(batch, num_labels)
    loss.count(labels)  # moves class weights to the device, once
    with Ledger(**ledger) as found:
        loss(logits, labels, loss.count(labels), maps_on_meta(labels)).backward()
    return found


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    full = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, labels, ignore_index=255)


# --- what a device is asked to do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*({term: 1} for term in TERMS), CONFIGS[-1]], ids="+".join)
def test_launches_depend_neither_on_the_images_nor_on_the_classes(config: dict[str, Any]) -> None:
    few, images, classes = (counted_step(config, *sizes) for sizes in ((2, 3), (16, 3), (2, 40)))
    assert few.kernels == images.kernels == classes.kernels
    for found in (few, images, classes):
        assert not (found.waits or found.uploads or found.doubles)


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", [{"cross_entropy": 1, "label_smoothing": 0.1}, *CONFIGS], ids=str)
def test_no_wait_no_float64_and_nothing_without_a_deterministic_kernel(
    config: dict[str, Any], num_labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    found = counted_step(config, 2, num_labels, float64=False, deterministic=True)
    assert found.launches and not (found.waits or found.uploads)
    assert not {name for name in found.kernels if name.startswith(("scatter_add", "index_add", "index_put"))}


def test_chunks_of_the_loss_bound_its_memory_and_what_it_moves() -> None:
    """ADE20K's 150 classes at 512x512: sixteen images do not fit at once, and cost no more than the plain formula."""
    launches, moved = [], []
    for batch in (2, 16):
        logits, labels = on_meta(batch, 150, 512)
        with Ledger() as ours:
            upsampled_cross_entropy(logits, labels).backward()
        with Ledger() as plain:
            plain_loss(logits, labels).backward()
        assert not (ours.waits or ours.uploads or ours.doubles)
        launches.append(ours.launches)
        moved.append(ours.bytes / plain.bytes)
    assert launches[0] <= 45 and launches[1] <= launches[0] + 5 * 20  # of six chunks
    assert max(moved) <= 0.85
    assert all(some.stop - some.start <= 3 for some in chunks((16, 150, 128, 128), (512, 512))[0])


def test_kernels_of_the_loss_move_little() -> None:
    """Two launches for sixteen images as for two, and the sums of what they leave."""
    found = []
    for batch in (2, 16):
        logits, labels = on_meta(batch, 150, 512)
        with counted(), Ledger() as ledger:
            upsampled_cross_entropy(logits, labels).backward()
        found.append(ledger)
        assert not (ledger.waits or ledger.uploads or ledger.doubles)
        assert (ledger.kernels["_loss_kernel"], ledger.kernels["_gradient_kernel"]) == (1, 1)
    assert found[0].kernels == found[1].kernels and found[0].launches <= 14
    assert found[1].bytes <= 2e9  # 25 GB by the plain formula


@pytest.mark.parametrize("num_labels", [1, 19, 150])
@pytest.mark.parametrize("predict", [upsampled_prediction, upsampled_confidence])
def test_prediction_is_a_few_launches(num_labels: int, predict: Callable[..., Tensor]) -> None:
    for batch in (1, 3):
        logits, _ = on_meta(batch, num_labels, 512)
        with Ledger(float64=False) as ours:
            predict(logits, (512, 512))
        with Ledger() as plain:
            F.interpolate(logits.detach(), size=(512, 512), mode="bilinear").argmax(1)
        assert ours.launches <= plain.launches + 8 and not (ours.waits or ours.uploads)


def test_a_processor_predicts_images_of_one_size_at_once() -> None:
    processor, sizes = SegformerImageProcessor(), [(64, 64)] * 4
    with Ledger() as ledger:
        maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=on_meta(4, 5)[0]), sizes)
    assert [tuple(each.shape) for each in maps] == sizes and ledger.launches == 2
    sizes[1] = (32, 64)
    maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=on_meta(4, 5)[0]), sizes)
    assert [tuple(each.shape) for each in maps] == sizes


def test_prediction_by_a_kernel_is_one_launch() -> None:
    logits, _ = on_meta(4, 150, 512)
    with counted(), Ledger() as ledger:
        upsampled_prediction(logits.contiguous(memory_format=torch.channels_last), (512, 512))
    assert ledger.kernels["_prediction_kernel"] == 1 and ledger.launches <= 2


@pytest.mark.slow
def test_apple_gpus_have_every_operator() -> None:
    """By the list that PyTorch is generated from, which says what runs on which device."""
    used = set(counted_step({"cross_entropy": 1, "label_smoothing": 0.1, "class_weights": WEIGHTS}, 2, 5).kernels)
    for config in CONFIGS:
        used |= set(counted_step(config, 2, 5).kernels)
    for predict in (upsampled_prediction, upsampled_confidence):
        with Ledger() as ledger:
            predict(on_meta(2, 5)[0], (32, 32))
        used |= set(ledger.kernels)
    listed = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    places: dict[str, set[str]] = {}
    for function in yaml.load(listed.read_text(), yaml.CSafeLoader):
        name = function["func"].partition("(")[0].partition(".")[0]
        places.setdefault(name.rstrip("_"), set()).update(", ".join(function.get("dispatch", [])).split(", "))
    everywhere = {"MPS", "CompositeExplicitAutograd", "CompositeImplicitAutograd"}
    assert len(used) > 50 and {name for name in used if not places[name.rstrip("_")] & everywhere} == set()
    assert not places["adaptive_max_pool3d"] & everywhere  # the list does tell


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[2**27, 3000, 50], ids="chunks of {}".format)
def in_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The way of other devices, on the CPU: the whole batch at once, image by image, and some classes at a time."""
    monkeypatch.setattr(upsampling, "_DEVICE_CHUNK", request.param)
    monkeypatch.setattr(cross_entropy, "_in_strips", cross_entropy._in_chunks)
    return


def double_precision(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x = logits.double().requires_grad_()
    options = {name: value.double() if torch.is_tensor(value) else value for name, value in options.items()}
    loss = F.cross_entropy(upsample(x, labels.shape[1:]), labels, ignore_index=255, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize(("num_labels", "small", "size"), [*CASES[:2], *CASES[3:], (1, (4, 4), (9, 9))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_in_chunks_equals_the_plain_formula(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], memory_format: torch.memory_format, weighted: bool
) -> None:
    logits, labels = logits_and_labels(num_labels, small, size)
    labels[0, 0, 0] = 0  # at least one valid pixel
    options = {"weight": torch.linspace(0.5, 2.0, num_labels), "label_smoothing": 0.1} if weighted else {}
    x = logits.contiguous(memory_format=memory_format).requires_grad_()
    loss = upsampled_cross_entropy(x, labels, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    expected, of_expected = double_precision(logits, labels, **options)
    assert abs(loss.item() - expected.item()) <= 1e-6 * abs(expected.item()) + 1e-7
    assert (gradient - of_expected).abs().max() <= 1e-6 * of_expected.abs().max() + 1e-8


@pytest.mark.usefixtures("in_chunks")
def test_chunks_of_the_loss_bear_what_strips_bear() -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    expected = upsampled_cross_entropy(logits, labels)
    assert torch.equal(upsampled_cross_entropy(logits, labels.to(torch.uint8)), expected)
    assert torch.equal(upsampled_cross_entropy(logits, labels.where(labels != 255, -100), ignore_index=-100), expected)
    loss = upsampled_cross_entropy(1e4 * logits, labels)
    assert loss.item() == pytest.approx(double_precision(1e4 * logits, labels)[0].item(), rel=1e-5)
    logits.requires_grad_()
    loss = upsampled_cross_entropy(logits, torch.full_like(labels, 255))
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].abs().max() == 0


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("wrong", [5, -1])
def test_a_label_outside_the_classes_makes_the_loss_nan(wrong: int) -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    labels[1, 3, 3] = wrong
    assert upsampled_cross_entropy(logits, labels).isnan()
    assert upsampled_cross_entropy(logits, labels, weight=torch.ones(5), reduction="sum").isnan()


def test_sums_of_float32_are_exact_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million pixels, of which a running sum would lose the last digits."""
    monkeypatch.setattr(cross_entropy, "_in_strips", cross_entropy._in_chunks)
    logits = torch.tensor([[[[0.3]], [[-0.4]]]]).expand(1, 2, 2, 2).contiguous()
    labels = torch.zeros(1, 1024, 1024, dtype=torch.uint8)
    total = upsampled_cross_entropy(logits, labels, reduction="sum")
    expected = labels.numel() * F.softplus(torch.tensor(-0.7, dtype=torch.float64))
    assert abs(total - expected) <= 2e-6 * expected
    assert upsampled_cross_entropy(logits, labels).item() == pytest.approx(expected.item() / labels.numel(), rel=2e-6)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize(("num_labels", "small", "size"), CASES)
def test_prediction_in_chunks(num_labels: int, small: tuple[int, int], size: tuple[int, int]) -> None:
    logits, _ = logits_and_labels(num_labels, small, size)
    full = upsample(logits, size)
    assert torch.equal(upsampling._by_images(upsampling._largest, logits, size), full.argmax(1))
    probability = upsampling._by_images(upsampling._largest_probability, logits, size)
    torch.testing.assert_close(probability, full.softmax(1).amax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [2**25, 1], ids="chunks of {}".format)
@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_terms_of_chunks_are_those_of_images(
    config: dict[str, Any], num_labels: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_terms, "_CHUNK", chunk)
    logits, labels = logits_and_labels(num_labels, (4, 5), (13, 17))
    labels = labels.repeat_interleave(2, 0)[:3] if num_labels > 1 else (labels == 0).long().where(labels < 255, 255)
    labels[0, labels[0] == 1] = 0  # not every image shows every class
    labels[-1] = 255  # nor anything at all
    logits = logits.repeat_interleave(2, 0)[: len(labels)]
    loss = loss_of(num_labels, **config)
    x = logits.clone().requires_grad_()
    expected = loss(x, labels)
    (of_expected,) = torch.autograd.grad(expected, x)

    def of_a_device(self: SegmentationLoss, logits: Tensor, labels: Tensor, counts: Tensor, _: Any) -> ChunkTerms:
        maps = DistanceMaps.of_labels(labels, 255, int(num_labels == 1)) if self.config.uses("boundary") else None
        return ChunkTerms(self.config, self.weights, counts, maps)

    monkeypatch.setattr(SegmentationLoss, "_terms", of_a_device)
    value = loss(x, labels)
    (gradient,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert (gradient - of_expected).abs().max() <= 1e-6 * of_expected.abs().max()
    labels[0, 0, 0] = 300
    assert loss(x, labels, loss.count(labels.clamp(max=255))).isnan()


# --- resizing by matrix products -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_labels", "small", "size"), CASES)
def test_products_are_the_operator_and_its_gradient(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = logits_and_labels(num_labels, small, size)[0].requires_grad_()
    expected = upsample(x, size)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (of_expected,) = torch.autograd.grad(expected, x, slope)
    monkeypatch.setattr(upsampling, "_by_products", lambda x: True)
    found = upsample(x, size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found, x, slope)[0], of_expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(upsample_backward(slope, x.shape), of_expected, rtol=1e-4, atol=1e-4)


def test_products_are_taken_where_determinism_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(2, 3, 4, 4, device="meta", requires_grad=True)
    with Ledger() as plain:
        upsample(x, (16, 16)).sum().backward()
    assert plain.kernels["upsample_bilinear2d_backward"] == 1 and not plain.kernels["mm"]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with Ledger(deterministic=True) as exact:
        upsample(x, (16, 16)).sum().backward()
    assert not exact.kernels["upsample_bilinear2d"] and exact.kernels["bmm"]
    with Ledger() as prediction, torch.no_grad():  # nothing to be differentiated
        upsample(x, (16, 16))
    assert prediction.kernels == {"upsample_bilinear2d": 1}
