"""Triton's kernels against the plain formula, in Triton's interpreter; and that a compiler for GPUs takes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from segtune.segformer import cross_entropy, upsampling
from segtune.segformer.cross_entropy import upsampled_cross_entropy
from segtune.segformer.upsampling import has_kernels, upsample, upsampled_confidence, upsampled_prediction
from support.kernels import used
from support.upsampled import logits_and_labels

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton is for Linux")

# (K, (h, w), (H, W)), as small as can be, since the interpreter is slow; tiles take 32 pixels, 16 columns, 32 labels
RATIOS = [
    (3, (1, 2), (4, 8)),  # four
    pytest.param(3, (3, 3), (12, 12), marks=pytest.mark.slow),
    (2, (3, 2), (5, 3)),  # odd, no whole number
    (4, (3, 4), (2, 3)),  # shrinking
    (1, (1, 1), (2, 3)),  # one class, one pixel
    pytest.param(3, (1, 17), (2, 34), marks=pytest.mark.slow),  # more columns than a tile has
    (35, (1, 2), (2, 3)),  # more labels than a tile has
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.3},
]


@pytest.fixture
def kernels() -> Iterator[None]:
    with used():
        yield


def batch(num_labels: int, small: tuple[int, int], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = logits_and_labels(num_labels, small, size)
    labels[0, 0, 0] = 0  # at least one valid pixel
    return logits[:1], labels[:1]


def loss_and_gradient(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = logits.clone().requires_grad_()
    loss = upsampled_cross_entropy(x, labels, **options)
    loss.backward()
    assert x.grad is not None and x.grad.stride() == logits.stride()
    return loss.detach(), x.grad


def plain(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = logits.double().requires_grad_()
    options = {name: value.double() if torch.is_tensor(value) else value for name, value in options.items()}
    loss = F.cross_entropy(upsample(x, labels.shape[1:]), labels.long(), ignore_index=255, **options)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def assert_equals_plain(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> None:
    found, expected = loss_and_gradient(logits, labels, **options), plain(logits, labels, **options)
    for value, truth in zip(found, expected, strict=True):
        assert (value - truth).abs().max() <= 1e-6 * truth.abs().max() + 1e-7


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("num_labels", "small", "size"), RATIOS)
def test_loss_and_gradient_equal_the_plain_formula(
    num_labels: int, small: tuple[int, int], size: tuple[int, int]
) -> None:
    assert_equals_plain(*batch(num_labels, small, size))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_class_weights_and_label_smoothing(options: dict[str, Any]) -> None:
    weight = {"weight": torch.linspace(0.0, 2.0, 5)} if "weight" in options else {}
    assert_equals_plain(*batch(5, (1, 2), (2, 3)), **{**options, **weight})


@pytest.mark.usefixtures("kernels")
def test_several_images_channels_last_and_small_labels() -> None:
    logits, labels = logits_and_labels(3, (1, 3), (2, 5))
    assert_equals_plain(logits.contiguous(memory_format=torch.channels_last), labels.to(torch.uint8))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_float32_added_up(dtype: torch.dtype) -> None:
    logits, labels = batch(5, (1, 2), (2, 3))
    half = logits.to(dtype)
    loss, gradient = loss_and_gradient(half, labels)
    expected, of_expected = loss_and_gradient(half.float(), labels)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert torch.equal(gradient, of_expected.to(dtype))


@pytest.mark.usefixtures("kernels")
def test_logits_far_apart_and_far_from_zero() -> None:
    logits, labels = batch(3, (1, 2), (2, 4))
    for extreme in (1e4 * logits, 100 * logits + 1e4):
        loss, gradient = loss_and_gradient(extreme, labels)
        assert loss.item() == pytest.approx(plain(extreme, labels)[0].item(), rel=1e-5)
        assert gradient.isfinite().all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_nothing_valid_gives_zero_and_zero_gradient(options: dict[str, Any]) -> None:
    logits, labels = batch(3, (1, 2), (2, 4))
    loss, gradient = loss_and_gradient(logits, torch.full_like(labels, 255), **options)
    assert loss == 0 and gradient.abs().max() == 0


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_outside_the_classes_makes_loss_and_gradient_nan(wrong: int) -> None:
    logits, labels = batch(3, (1, 2), (2, 3))
    labels[0, 0, 0] = wrong
    loss, gradient = loss_and_gradient(logits, labels)
    assert loss.isnan() and gradient.isnan().all()


@pytest.mark.usefixtures("kernels")
def test_no_gradient_is_computed_where_none_is_asked() -> None:
    logits, labels = batch(3, (1, 2), (2, 4))
    expected, _ = loss_and_gradient(logits, labels)
    assert torch.equal(upsampled_cross_entropy(logits, labels), expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("num_labels", "small", "size"), [*RATIOS[:4], RATIOS[-1], (40, (3, 3), (7, 11))])
def test_prediction_and_its_probability(num_labels: int, small: tuple[int, int], size: tuple[int, int]) -> None:
    logits = logits_and_labels(num_labels, small, size)[0]
    full = upsample(logits, size)
    assert torch.equal(upsampled_prediction(logits, size), full.argmax(1))
    torch.testing.assert_close(upsampled_confidence(logits, size), full.softmax(1).amax(1), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("kernels")
def test_prediction_of_equal_logits_is_the_first_class_and_nan_is_some_class() -> None:
    equal, unknown = torch.zeros(1, 40, 1, 2), torch.full((1, 40, 1, 2), torch.nan)
    assert torch.equal(upsampled_prediction(equal, (2, 4)), torch.zeros(1, 2, 4, dtype=torch.int64))
    assert upsampled_prediction(unknown, (2, 4)).max() < 40


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_the_operator_keeps_its_contract() -> None:
    logits, labels = batch(3, (1, 2), (2, 4))
    arguments = (logits.bfloat16().requires_grad_(), labels, None, 255, 0.1, True)
    torch.library.opcheck(cross_entropy._cross_entropy, arguments, test_utils="test_schema")


def test_kernels_are_for_cuda_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Logits:
        device, shape = torch.device("cuda", 0), torch.Size((1, 150, 128, 128))

    monkeypatch.setattr(upsampling, "_compiles_kernels", lambda device: True)
    assert has_kernels(Logits())  # type: ignore[arg-type]
    monkeypatch.setattr(Logits, "shape", torch.Size((1, 150, 4096, 4096)))  # their offsets are of 32 bits
    assert not has_kernels(Logits())  # type: ignore[arg-type]
    monkeypatch.undo()
    monkeypatch.setattr(upsampling, "_compiles_kernels", lambda device: True)
    monkeypatch.setenv("SEGTUNE_TRITON", "0")
    assert not has_kernels(Logits())  # type: ignore[arg-type]
    assert not has_kernels(torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize(
    ("compiler", "capability", "expected"),
    [("/usr/bin/gcc", (7, 5), True), (None, (7, 5), False), ("gcc", (6, 0), False)],
)
def test_what_triton_needs(
    compiler: str | None, capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(upsampling.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    pytest.importorskip("triton")
    assert upsampling._compiles_kernels.__wrapped__(torch.device("cuda", 0)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "labels"), [("75", "fp16", "u8"), ("90", "fp32", "i64")])
def test_kernels_compile_for_gpus(capability: str, dtype: str, labels: str, tmp_path: Path) -> None:
    """To machine code of a T4 and of an H100, by the assembler that comes with Triton; none adds up atomically."""
    pytest.importorskip("triton")
    worker = Path(__file__).parents[1] / "support" / "workers" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(worker), capability, dtype, labels]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    for code in json.loads(done.stdout).values():
        words = code.split()
        assert any(word.startswith("st.global") for word in words)
        assert not any(word.startswith(("atom.", "red.")) for word in words)
