"""What people put around or into a network must still work: hooks, adapters, copies, export, compilers."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrize

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks

# one module of each kind; stage 1 reduces the sequence, stage 4 does not
MODULES = [
    "segformer.encoder.patch_embeddings.0",
    "segformer.encoder.patch_embeddings.0.proj",
    "segformer.encoder.patch_embeddings.0.layer_norm",
    "segformer.encoder.block.0.0",
    "segformer.encoder.block.0.0.layer_norm_1",
    "segformer.encoder.block.0.0.attention",
    "segformer.encoder.block.0.0.attention.self",
    "segformer.encoder.block.0.0.attention.self.query",
    "segformer.encoder.block.0.0.attention.self.key",
    "segformer.encoder.block.0.0.attention.self.value",
    "segformer.encoder.block.0.0.attention.self.sr",
    "segformer.encoder.block.0.0.attention.self.layer_norm",
    "segformer.encoder.block.0.0.attention.output.dense",
    "segformer.encoder.block.3.0.attention.self.key",
    "segformer.encoder.block.0.0.layer_norm_2",
    "segformer.encoder.block.0.0.mlp",
    "segformer.encoder.block.0.0.mlp.dense1",
    "segformer.encoder.block.0.0.mlp.dwconv",
    "segformer.encoder.block.0.0.mlp.dwconv.dwconv",
    "segformer.encoder.block.0.0.mlp.activation",
    "segformer.encoder.block.0.0.mlp.dense2",
    "segformer.encoder.block.0.0.attention.dropout",
    "segformer.encoder.layer_norm.0",
    "segformer.encoder",
    "segformer",
    "decode_head",
    "decode_head.linear_c.0",
    "decode_head.linear_c.1.proj",
    "decode_head.linear_fuse",
    "decode_head.batch_norm",
    "decode_head.dropout",
    "decode_head.classifier",
]
ADAPTABLE = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.self.sr",
    "attention.output.dense",
    "mlp.dense1",
    "mlp.dense2",
    "patch_embeddings.0.proj",
    "linear_c.2.proj",
    "linear_fuse",
    "classifier",
]
MODES = ["train", "eval", "no_grad"]
tracing = pytest.mark.parametrize("stages", [1, pytest.param(4, marks=pytest.mark.slow)])  # 4 take some 10 s
peft_asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def tiny(stages: int = 4) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=3,
        **networks.first_stages(stages),
        initializer_range=0.3,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    return SegformerForSemanticSegmentation(config)


def images(height: int = 40, width: int = 72) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, mode: str, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
    model.train(mode == "train")
    with torch.set_grad_enabled(mode != "no_grad"):
        return model(images() if pixel_values is None else pixel_values).logits


def test_the_list_names_every_kind_of_module() -> None:
    model = tiny()
    kinds = {type(model.get_submodule(name)) for name in MODULES}
    containers = (nn.ModuleList, nn.ModuleDict)
    missing = {
        type(module)
        for name, module in model.named_modules()
        if name and not isinstance(module, containers) and "DropPath" not in str(type(module))
    } - kinds
    assert not missing


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODULES)
def test_hooks_are_called(name: str, mode: str) -> None:
    model, calls = tiny(), []
    expected = run(copy.deepcopy(model), mode)
    module = model.get_submodule(name)
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_: calls.append("after"))
    logits = run(model, mode)
    assert calls == ["before", "after"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@peft_asks
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ADAPTABLE)
def test_adapters_of_any_layer_count(name: str, mode: str) -> None:
    """peft merges an update into the stored weight itself: the outputs before and after must agree."""
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=rf".*{name}", init_lora_weights=False))
    plain = run(tiny(), mode)
    adapted = run(model, mode)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    merged = run(copy.deepcopy(model).merge_and_unload(), mode)
    torch.testing.assert_close(adapted, merged, rtol=1e-3, atol=1e-3)


@peft_asks
@pytest.mark.parametrize("name", ADAPTABLE)
def test_adapters_of_any_layer_learn(name: str) -> None:
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=rf".*{name}", init_lora_weights=False))
    run(model, "train").square().mean().backward()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in key for key in trained)
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained.values())


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("name", ["decode_head.linear_c.1.proj", "segformer.encoder.block.0.0.mlp.dense1"])
def test_parametrised_weights_count(name: str) -> None:
    model, literal = tiny(), tiny()
    parametrize.register_parametrization(model.get_submodule(name), "weight", Doubled())
    with torch.no_grad():
        literal.get_submodule(name).weight *= 2
    torch.testing.assert_close(run(model, "no_grad"), run(literal, "no_grad"), rtol=1e-4, atol=1e-4)


def test_a_copy_is_equal_and_its_own() -> None:
    model = tiny()
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, "no_grad"), run(model, "no_grad"))
    with torch.no_grad():
        twin.decode_head.linear_fuse.weight.mul_(2)
    assert not torch.equal(run(twin, "no_grad"), run(model, "no_grad"))


@pytest.mark.parametrize("name", [name for name in tiny().decode_head.state_dict() if "tracked" not in name])
def test_new_weights_count_at_once_however_they_are_written(name: str) -> None:
    """What is computed from weights is kept, but not even writes that autograd does not see go unnoticed."""
    model = tiny()
    before = run(model, "no_grad")
    value = model.decode_head.state_dict()[name].data
    value.view(-1)[0] += 30  # a single number of many
    after, twin = run(model, "no_grad"), copy.deepcopy(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, run(twin, "no_grad"))
    value.view(-1)[0] += 3
    assert torch.equal(run(model, "no_grad"), run(copy.deepcopy(model), "no_grad"))


@tracing
def test_exports_with_free_sizes(stages: int) -> None:
    model = tiny(stages).eval()
    sizes = {2: 32 * torch.export.Dim("height", min=2, max=8), 3: 32 * torch.export.Dim("width", min=2, max=8)}
    program = torch.export.export(model, (images(96, 64),), dynamic_shapes={"pixel_values": sizes}, strict=False)
    for size in ((96, 64), (64, 160)):
        logits = program.module()(images(*size)).logits
        torch.testing.assert_close(logits, run(model, "no_grad", images(*size)), rtol=1e-4, atol=1e-4)


@tracing
def test_compiles_once_for_all_sizes(stages: int) -> None:
    model = tiny(stages).eval()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(copy.deepcopy(model), backend=count, fullgraph=True, dynamic=True)
    for size in ((64, 96), (96, 64), (160, 128)):
        torch.testing.assert_close(
            run(compiled, "no_grad", images(*size)), run(model, "no_grad", images(*size)), rtol=1e-4, atol=1e-4
        )
    assert len(graphs) == 1


def another_convolution(conv: nn.Conv2d, name: str) -> nn.Conv2d:
    """One that may take the place of `conv` and gives the same size: padded otherwise, with a bias, or wider."""
    shape = (conv.in_channels, conv.out_channels)
    options = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups, "bias": conv.bias is not None}
    if name.endswith("dwconv"):
        return nn.Conv2d(*shape, conv.kernel_size, **options, padding_mode="circular")
    if name.endswith("sr"):
        return nn.Conv2d(*shape, conv.kernel_size, **options | {"padding": 3})
    if name.endswith("linear_fuse"):
        return nn.Conv2d(*shape, conv.kernel_size, **options | {"bias": True})
    return nn.Conv2d(*shape, 3, **options | {"padding": 1})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    [
        "segformer.encoder.block.0.0.attention.self.sr",
        "segformer.encoder.block.0.0.mlp.dwconv.dwconv",
        "decode_head.linear_fuse",
        "decode_head.classifier",
    ],
)
def test_exchanged_convolutions_are_called(name: str, mode: str) -> None:
    """The reference is the same network with a hook on it, which is always called."""
    model = tiny()
    torch.manual_seed(2)
    parent, _, child = name.rpartition(".")
    exchanged = another_convolution(model.get_submodule(name), name)
    nn.init.normal_(exchanged.weight)
    if exchanged.bias is not None:
        nn.init.normal_(exchanged.bias)
    setattr(model.get_submodule(parent), child, exchanged)
    literal, calls = copy.deepcopy(model), []
    literal.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    expected = run(literal, mode)
    assert calls
    torch.testing.assert_close(run(model, mode), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_mix_ffn_may_do_without_its_convolution(mode: str) -> None:
    model, literal = tiny(), tiny()
    for block in (stage[0] for stage in model.segformer.encoder.block):
        block.mlp.dwconv = nn.Identity()
    for block in (stage[0] for stage in literal.segformer.encoder.block):
        nn.init.dirac_(block.mlp.dwconv.dwconv.weight, groups=block.mlp.dwconv.dwconv.groups)
    torch.testing.assert_close(run(model, mode), run(literal, mode), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    [
        "segformer.encoder.block.0.0.attention.dropout",
        "segformer.encoder.block.0.0.mlp.dropout",
        "segformer.encoder.block.0.0.mlp",
        "segformer.encoder.block.0.0.mlp.dense2",
        "decode_head.dropout",
    ],
)
def test_any_layer_may_be_replaced(name: str, mode: str) -> None:
    """By one without the attributes that a fast path reads: it is called, and its gradient flows."""
    model, parent = tiny(), name.rpartition(".")[0]
    calls: list[object] = []
    old = model.get_submodule(name)
    new = nn.Sequential(old)
    new.register_forward_hook(lambda *_: calls.append(name))
    setattr(model.get_submodule(parent), name.rpartition(".")[2], new)
    expected = run(tiny(), mode)
    torch.testing.assert_close(run(model, mode), expected, rtol=1e-4, atol=1e-4)
    assert calls
