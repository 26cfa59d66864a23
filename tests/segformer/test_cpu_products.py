from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtune.segformer import cpu_products
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.cpu_products import (
    attends_by_onednn,
    attention,
    linear,
    linear_into,
    prefers_onednn,
    weight_gradient,
)
from segtune.segformer.fused import DirectAttention, product
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of PyTorch is without oneDNN's linear layer",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """oneDNN is preferred; the shapes of what it multiplies."""
    shapes: list[tuple[int, ...]] = []
    product = torch.ops.mkldnn._linear_pointwise

    def spy(x: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return product(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    monkeypatch.setattr(cpu_products, "prefers_onednn", lambda: True)
    return shapes


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# --- products --------------------------------------------------------------------------------------------------------


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 3, 12), (0, 12)])
def test_products_equal_those_of_torch(shape: tuple[int, ...], calls: list[tuple[int, ...]]) -> None:
    x, weight, bias = random(*shape), random(9, 12), random(9)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, random(12, 9).t()), F.linear(x, random(12, 9).t()))
    assert calls == [shape, shape]


@needs_onednn
@torch.no_grad()
def test_products_into_memory_that_is_there(calls: list[tuple[int, ...]]) -> None:
    x, weight = random(7, 12), random(9, 12)
    for bias in (None, random(9), random(7, 1)):
        out = torch.empty(7, 18)[:, ::2]
        linear_into(out, x, weight, bias)
        torch.testing.assert_close(out, x @ weight.t() + (0 if bias is None else bias))
    assert calls == [(7, 12)] * 3


@needs_onednn
def test_products_of_autograd_autocast_and_other_types_are_left_to_torch(calls: list[tuple[int, ...]]) -> None:
    x, weight = random(7, 12), random(9, 12).requires_grad_()
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(9, 12))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x.double(), weight.double()).dtype == torch.float64
        assert linear(x.to("meta"), weight.to("meta")).is_meta
    assert not calls


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize(("wide", "narrow"), [(130, 40), (40, 130)])
@pytest.mark.parametrize("rows", [0, 7, 2016, 4700])
def test_gradients_of_weights_equal_the_plain_product(
    rows: int, wide: int, narrow: int, calls: list[tuple[int, ...]]
) -> None:
    grad, x = random(rows, wide), random(2 * rows, narrow)[::2]
    torch.testing.assert_close(weight_gradient(grad, x), grad.t() @ x, atol=5e-4, rtol=1e-5)
    assert [shape[0] for shape in calls] == [40] * -(-rows // (2**18 // 130))
    assert sum(shape[1] for shape in calls) == rows


@needs_onednn
@torch.no_grad()
def test_few_weights_and_other_types_are_left_to_torch(calls: list[tuple[int, ...]]) -> None:
    grad, x = random(50, 15), random(50, 256)
    torch.testing.assert_close(weight_gradient(grad, x), grad.t() @ x)
    assert weight_gradient(grad.double(), x.double()).dtype == torch.float64
    assert not calls


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_has_the_gradients_of_the_linear_layer(bias: bool, calls: list[tuple[int, ...]]) -> None:
    given = [random(3, 40, 64), random(80, 64), random(80) if bias else None]
    ours, theirs = (
        [None if each is None else each.clone().requires_grad_() for each in given] for _ in ("ours", "theirs")
    )
    towards = random(3, 40, 80)
    out, expected = product(*ours), F.linear(*theirs)  # type: ignore[arg-type]
    torch.testing.assert_close(out, expected)
    (out * towards).sum().backward()
    (expected * towards).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-5)
    assert len(calls) == 3  # y, dx and dW
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(product(*ours).sum(), ours[:1], create_graph=True)


@needs_onednn
def test_a_product_computes_no_gradient_that_nobody_asks_for(calls: list[tuple[int, ...]]) -> None:
    x, weight = random(40, 64), random(80, 64).requires_grad_()
    product(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(80, 64))
    assert len(calls) == 2  # y and dW


# --- attention -------------------------------------------------------------------------------------------------------


@needs_onednn
@torch.no_grad()
def test_attention_equals_that_of_torch(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_CHUNK", 20)
    monkeypatch.setattr(cpu_products, "_FEWEST_QUERIES", 1)
    query, key, value = (random(2, tokens, 3, 8).transpose(1, 2) for tokens in (10, 5, 5))
    out = attention(query, key, value)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))
    assert out.transpose(1, 2).is_contiguous()  # heads side by side, without a copy
    assert len(calls) == 2 * 3 * 3 * 2  # two products for each of three chunks


@needs_onednn
def test_attention_has_the_gradients_of_torch(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_CHUNK", 4 * 160)
    monkeypatch.setattr(cpu_products, "_FEWEST_QUERIES", 1)
    given = [random(2, tokens, 3, 32).transpose(1, 2) for tokens in (10, 160, 160)]
    ours, theirs = ([each.clone().requires_grad_() for each in given] for _ in ("ours", "theirs"))
    towards = random(2, 3, 10, 32)
    out, expected = DirectAttention.run(*ours), F.scaled_dot_product_attention(*theirs)
    torch.testing.assert_close(out, expected)
    calls.clear()
    (out * towards).sum().backward()
    (expected * towards).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert len(calls) == 2 * 3 * 3 * 5  # five products for each of three chunks
    assert ours[0].grad.transpose(1, 2).is_contiguous()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(DirectAttention.run(*ours).sum(), ours[:1], create_graph=True)


@needs_onednn
@pytest.mark.usefixtures("calls")
def test_attention_with_dropout_or_a_gradient_of_few_weights_is_left_to_torch() -> None:
    query, key = random(1, 1, 2048, 8), random(1, 1, 128, 8)
    assert attends_by_onednn(query, key, 0.0)
    assert not attends_by_onednn(query, key, 0.1)
    assert not attends_by_onednn(query[:, :, 1:], key, 0.0)
    assert not attends_by_onednn(random(1, 1, 8192, 8), key[:, :, 1:], 0.0)
    with torch.no_grad():
        assert attends_by_onednn(query[:, :, :4], key[:, :, :2], 0.0)
        assert not attends_by_onednn(query, key, 0.1)


# --- the network -----------------------------------------------------------------------------------------------------


def outcome(model: Any, train: bool) -> list[Tensor]:
    x = random(2, 3, 70, 97)
    if not train:
        with torch.no_grad():
            return [model.eval()(x).logits]
    model.zero_grad()
    logits = model.train()(x).logits
    logits.sin().sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters())]


@needs_onednn
@pytest.mark.parametrize("train", [False, True])
def test_the_network_computes_the_same_with_either_library(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = SegformerConfig(**networks.TINY, drop_path_rate=0.0, classifier_dropout_prob=0.0)
    model = SegformerForSemanticSegmentation(config)
    results = []
    for prefers in (False, True, True):
        monkeypatch.setattr(cpu_products, "prefers_onednn", lambda prefers=prefers: prefers)
        results.append(outcome(model, train))
    by_mkl, by_onednn, again = (torch.cat([each.flatten() for each in result]) for result in results)
    assert (by_onednn - by_mkl).norm() < 1e-5 * by_mkl.norm()
    assert not torch.equal(by_onednn, by_mkl)
    assert torch.equal(by_onednn, again)


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What PyTorch and the system say of the processor, to be changed."""
    says = {"capability": "AVX512", "processor": "vendor_id : AuthenticAMD"}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: says["capability"])
    monkeypatch.setattr(cpu_products, "_processor", lambda: says["processor"])
    monkeypatch.delenv("SEGTUNE_ONEDNN", raising=False)
    prefers_onednn.cache_clear()
    yield says
    prefers_onednn.cache_clear()


@needs_onednn
@pytest.mark.parametrize(
    ("capability", "processor", "wish", "expected"),
    [
        ("AVX512", "vendor_id : AuthenticAMD", "", True),
        ("AVX512", "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "", True),  # as Windows says
        ("AVX512", "vendor_id : GenuineIntel", "", False),
        ("AVX2", "vendor_id : AuthenticAMD", "", False),
        ("DEFAULT", "arm", "", False),
        ("AVX512", "vendor_id : AuthenticAMD", "0", False),
        ("AVX2", "vendor_id : GenuineIntel", "1", True),
    ],
)
def test_processor_and_environment_decide(
    capability: str,
    processor: str,
    wish: str,
    expected: bool,
    machine: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine.update(capability=capability, processor=processor)
    monkeypatch.setenv("SEGTUNE_ONEDNN", wish)
    assert prefers_onednn() is expected


def test_without_the_operator_torch_computes(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    monkeypatch.setattr(torch.ops, "mkldnn", Without())
    monkeypatch.setenv("SEGTUNE_ONEDNN", "1")
    assert not prefers_onednn()
    with torch.no_grad():
        assert torch.equal(linear(random(7, 12), random(9, 12)), F.linear(random(7, 12), random(9, 12)))


def test_the_system_is_asked_where_there_is_no_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "AuthenticAMD")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert cpu_products._processor() == "AuthenticAMD"
