"""The network as a GPU or a Mac would run it: counted on meta tensors, and with real numbers on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segtune.segformer import fused, fused_decode_head
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused import AddedDropPath, FusedMixFFN, FusedProjections, JointKeyValue, MatrixReduction
from segtune.segformer.fused_decode_head import ComposedFusion, DroppedClassifier, FusedDecodeHead, StripDecodeHead
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks
from support.kernels import counted
from support.ledger import Ledger

NO_DROPOUT = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}


def both(config: SegformerConfig) -> tuple[Any, Any]:
    """Ours and transformers' network of the same configuration."""
    fields = {name: value for name, value in config.to_dict().items() if name != "label_map"}
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig.from_dict(fields))
    return SegformerForSemanticSegmentation(config), theirs


def tiny(**fields: Any) -> Any:
    """A network with weights of the scale of trained ones."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**networks.TINY, num_labels=5, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5) if parameter.ndim > 1 else parameter.add_(0.1)
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors take the way of other devices."""
    for module in (fused, fused_decode_head):
        monkeypatch.setattr(module, "keeps_to_cache", lambda x: False)


@pytest.fixture(params=["cpu", "elsewhere"])
def everywhere(request: pytest.FixtureRequest) -> None:
    if request.param == "elsewhere":
        request.getfixturevalue("elsewhere")


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["b0", pytest.param("b2", marks=pytest.mark.slow)])
def pair_on_meta(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        return both(SegformerConfig.from_variant(request.param, num_labels=150))


def forward(model: nn.Module, batch: int) -> Ledger:
    with torch.no_grad(), Ledger(float64=False) as ledger:
        model.eval()(torch.empty(batch, 3, 512, 512, device="meta"))
    return ledger


def step(model: nn.Module, batch: int, with_loss: bool) -> Ledger:
    """Forward and backward pass; without the loss, of the sum of the logits."""
    model.zero_grad(set_to_none=True)
    x = torch.empty(batch, 3, 512, 512, device="meta")
    labels = torch.empty(batch, 512, 512, dtype=torch.long, device="meta")
    with Ledger() as ledger:
        output = model.train()(x, labels=labels if with_loss else None)
        (output.loss if with_loss else output.logits.sum()).backward()
    return ledger


def test_a_forward_pass_asks_for_no_more_than_transformers(pair_on_meta: tuple[nn.Module, nn.Module]) -> None:
    for batch in (1, 16):
        ours, theirs = (forward(model, batch) for model in pair_on_meta)
        assert ours.launches <= 1.05 * theirs.launches
        assert ours.bytes <= 0.85 * theirs.bytes
        assert not (ours.waits or ours.uploads)


def test_a_step_asks_for_less_than_transformers(pair_on_meta: tuple[nn.Module, nn.Module]) -> None:
    """Without a loss, and with the one that Triton's kernels compute."""
    for with_loss in (False, True):
        ours, theirs = pair_on_meta
        with counted() if with_loss else nullcontext():
            small, large = (step(ours, batch, with_loss) for batch in (2, 16))
        small_theirs, large_theirs = (step(theirs, batch, with_loss) for batch in (2, 16))
        assert small.kernels == large.kernels  # no loop over images
        assert small.launches <= (0.96 if with_loss else 1.0) * small_theirs.launches
        assert large.bytes <= (0.65 if with_loss else 0.77) * large_theirs.bytes
        assert not (large.waits or large.uploads or large.doubles)


def test_a_step_without_triton_takes_its_loss_in_chunks(pair_on_meta: tuple[nn.Module, nn.Module]) -> None:
    """More launches for more chunks of the batch, which a loop over images would double, and fewer bytes still."""
    (small, large), (theirs, large_theirs) = (
        [step(model, batch, with_loss=True) for batch in (2, 16)] for model in pair_on_meta
    )
    assert small.launches <= 1.15 * theirs.launches and large.launches <= 1.2 * theirs.launches
    assert large.bytes <= 0.78 * large_theirs.bytes
    assert not (large.waits or large.uploads or large.doubles)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_recomputes_on_devices_too(pair_on_meta: tuple[nn.Module, nn.Module]) -> None:
    ours = copy.deepcopy(pair_on_meta[0])
    plain = step(ours, 2, with_loss=False)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = step(ours, 2, with_loss=False)
    assert plain.launches + 100 < again.launches < 1.4 * plain.launches
    assert not (again.waits or again.doubles)


def test_no_path_for_a_cache_applies_elsewhere() -> None:
    with torch.device("meta"):
        model = SegformerForSemanticSegmentation(SegformerConfig(**networks.TINY)).train()
        x = torch.empty(1, 8, 8, 8)
        features = [torch.empty(1, 8, 8, size) for size in networks.TINY["hidden_sizes"]]
    block = model.segformer.encoder.block[0][0]
    attention = block.attention.self
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert not (FusedProjections.applies(block, x) or FusedMixFFN.applies(block, x))
            assert not (JointKeyValue.applies(attention, x) or MatrixReduction.applies(attention, x))
            assert not FusedDecodeHead.applies(model.decode_head, features)
            assert not StripDecodeHead.applies(model.decode_head.eval(), features)
            assert ComposedFusion.applies(model.decode_head.train(), features)


# --- real numbers ----------------------------------------------------------------------------------------------------


def outcome(model: nn.Module, x: Tensor, seed: int = 2) -> list[Tensor]:
    """Logits, the gradient to the images and those to all weights."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    logits = model(x).logits
    logits.sin().sum().backward()
    return [logits.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("train", [False, True])
def test_the_way_of_devices_gives_what_the_plain_network_gives(train: bool) -> None:
    """Dropout and stochastic depth on: they draw the same numbers."""
    model = tiny(classifier_dropout_prob=0.3, drop_path_rate=0.3).double().train(train)
    plain = copy.deepcopy(model)
    plain.config.fused = False
    x = images(3, 3, 70, 97).double()
    torch.testing.assert_close(outcome(model, x), outcome(plain, x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(list(model.buffers()), list(plain.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x).logits, plain.eval()(x).logits, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("stages", [1, 2])
def test_heads_of_few_stages(stages: int) -> None:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**networks.first_stages(stages))).double().eval()
    plain = copy.deepcopy(model)
    plain.config.fused = False
    x = images(2, 3, 40, 72).double()
    torch.testing.assert_close(outcome(model, x), outcome(plain, x), rtol=1e-8, atol=1e-9)


def observe(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def replace_forward(module: nn.Module) -> None:
    module.forward = module.forward


def derive(module: nn.Module) -> None:
    module.__class__ = type("Derived", (type(module),), {})


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("change", [observe, replace_forward, derive])
def test_a_changed_drop_path_is_called(change: Callable[[nn.Module], None]) -> None:
    model = tiny(drop_path_rate=0.5, classifier_dropout_prob=0.0).train()
    x = images(2, 5, 7, 8)
    before = outcome(model, images(2, 3, 40, 72))
    for (block,) in model.segformer.encoder.block:
        assert AddedDropPath.applies(block, x, x)
        assert not AddedDropPath.applies(block, x, x.half())
        change(block.drop_path)
        assert not AddedDropPath.applies(block, x, x)
    torch.testing.assert_close(outcome(model, images(2, 3, 40, 72)), before, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("change", [observe, replace_forward, derive])
@pytest.mark.parametrize("name", ["dropout", "classifier"])
def test_a_changed_dropout_or_classifier_is_called(name: str, change: Callable[[nn.Module], None]) -> None:
    model = tiny(classifier_dropout_prob=0.5).train()
    maps = images(2, 16, 5, 7)
    assert DroppedClassifier.applies(model.decode_head, maps)
    before = outcome(model, images(2, 3, 40, 72))
    change(model.decode_head.get_submodule(name))
    assert not DroppedClassifier.applies(model.decode_head, maps)
    torch.testing.assert_close(outcome(model, images(2, 3, 40, 72)), before, rtol=1e-3, atol=1e-4)


class PlanesFirst(TorchDispatchMode):
    """Convolutions answer in NCHW, whatever they are given: as CUDA does without cuDNN, and Apple's GPUs did."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            return out.contiguous()
        if func is torch.ops.aten.convolution_backward.default:
            return (None if out[0] is None else out[0].contiguous(), *out[1:])
        return out


@pytest.mark.usefixtures("everywhere")
def test_convolutions_may_answer_in_another_memory_format() -> None:
    model = tiny(**NO_DROPOUT).double().train()
    x = images(2, 3, 70, 97).double()
    expected = outcome(model, x)
    with PlanesFirst():
        torch.testing.assert_close(outcome(model, x), expected, rtol=1e-8, atol=1e-9)
        with torch.no_grad():
            logits = model.eval()(x).logits
    torch.testing.assert_close(logits, model(x).logits.detach(), rtol=1e-5, atol=1e-6)


# --- half precision --------------------------------------------------------------------------------------------------


def flat_gradient(model: nn.Module, dtype: torch.dtype, scale: float) -> Tensor:
    """Of the scaled loss, divided by the scale: `(parameters,)`, float64."""
    x, labels = images(2, 3, 96, 96), torch.randint(0, 5, (2, 96, 96), generator=torch.Generator().manual_seed(3))
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model.train()(x).logits
    loss = F.cross_entropy(F.interpolate(logits.float(), size=(96, 96), mode="bilinear"), labels)
    (loss * scale).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return torch.cat([gradients[name].flatten().double() for name in sorted(gradients)]) / scale


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_as_near_as_those_of_transformers(dtype: torch.dtype) -> None:
    ours = tiny(**NO_DROPOUT)
    theirs = both(ours.config)[1]
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    ours.load_state_dict(theirs.state_dict())
    exact = [flat_gradient(model, torch.float32, 1.0) for model in (ours, theirs)]
    for scale in (1.0, 65536.0):
        mine, other = (
            (flat_gradient(model, dtype, scale) - reference).norm() / reference.norm()
            for model, reference in zip((ours, theirs), exact, strict=True)
        )
        assert mine <= 1.2 * other < 0.5


# --- compilers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("elsewhere", "fresh_dynamo")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("stages", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_compiles_as_one_graph_forward_and_backward(stages: int, train: bool) -> None:
    torch.manual_seed(0)
    config = SegformerConfig(**networks.first_stages(stages), **NO_DROPOUT, num_labels=3)
    model = SegformerForSemanticSegmentation(config).train(train)
    x = images(1, 3, 40, 72)
    expected = outcome(copy.deepcopy(model), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere", "fresh_dynamo")
def test_five_sizes_are_compiled_at_most_twice() -> None:
    model, graphs = tiny().eval(), []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((64, 64), (96, 64), (64, 96), (128, 128), (160, 96)):
            compiled(images(1, 3, *size))
    assert len(graphs) <= 2


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_exports() -> None:
    model, x = tiny().eval(), images(1, 3, 64, 96)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x).logits, model(x).logits, rtol=1e-4, atol=1e-5)
