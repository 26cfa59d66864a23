"""What anyone does to or with a network gives what the same gives with transformers' class, on every layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import peft
import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.nn.modules import module as module_of_torch
from torch.nn.utils import parametrize

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerModel
from segtune.segformer.parameter_names import name_in_transformers_5, published_name
from support import networks

FIELDS: dict[str, Any] = {
    **networks.first_stages(2),
    "sr_ratios": (4, 1),  # with and without sequence reduction
    "drop_path_rate": 0.0,
    "classifier_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
OTHER_NAMES = {"mlp.activation": "mlp.activation_fn", "attention.dropout": "hidden_dropout"}
OTHER_NAMES_IN_4 = {"mlp.activation": "mlp.intermediate_act_fn", "attention.dropout": "attention.output.dropout"}
ONLY_OURS = ("drop_path",)


def pair(**fields: Any) -> tuple[Any, Any]:
    """Ours and transformers' network with the same random weights."""
    torch.manual_seed(0)
    fields = FIELDS | {"num_labels": 3} | fields
    ours = SegformerForSemanticSegmentation(SegformerConfig(**fields)).eval()
    theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**fields)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def images(batch: int = 2, height: int = 40, width: int = 72) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def leaves_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if not list(module.children())]


LEAVES = [name for name in leaves_of(pair()[0]) if not name.endswith(ONLY_OURS)]


def counterpart(theirs: nn.Module, name: str) -> nn.Module:
    if not hasattr(theirs.segformer, "stages"):  # transformers 4 names its modules as files do, but for these
        for ours, other in OTHER_NAMES_IN_4.items():
            name = name.replace(ours, other)
        return theirs.get_submodule(name)
    for ours, other in OTHER_NAMES.items():
        name = name.replace(ours, other)
    return theirs.get_submodule(name_in_transformers_5(f"{name}.")[:-1])


def test_the_leaves_are_all_there() -> None:
    assert len(LEAVES) == 38
    assert {type(pair()[0].get_submodule(name)).__name__ for name in LEAVES} == {
        *("Linear", "LayerNorm", "Conv2d", "BatchNorm2d", "Dropout", "Dropout2d", "GELUActivation")
    }


# --- every way of replacing or observing a layer ----------------------------------------------------------------------


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class SineTensor(Tensor):
    """A weight with which layers compute otherwise, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in ("linear", "conv2d", "layer_norm", "batch_norm"):
            return super().__torch_function__(func, types, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {})).sin()


class SineHook(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output.sin()


def replace_forward(module: nn.Module) -> None:
    old = module.forward
    module.forward = lambda *args: old(*args).sin()


def derive_class(module: nn.Module) -> None:
    cls = type(module)
    module.__class__ = type(cls.__name__, (cls,), {"forward": lambda self, *args: cls.forward(self, *args).sin()})


def replace_weight(module: nn.Module) -> None:
    if getattr(module, "weight", None) is not None:
        module.weight = nn.Parameter(module.weight.detach().as_subclass(SineTensor))


def parametrise(module: nn.Module) -> None:
    if getattr(module, "weight", None) is not None:
        parametrize.register_parametrization(module, "weight", Sine())


def halve_gradient(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda module, inputs, outputs: tuple(each.sin() for each in inputs))


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": replace_forward,
    "class": derive_class,
    "weight": replace_weight,
    "parametrisation": parametrise,
    "hook": lambda module: module.register_forward_hook(lambda module, args, output: output.sin()),
    "pre-hook": lambda module: module.register_forward_pre_hook(lambda module, args: (args[0].sin(),)),
    "backward hook": halve_gradient,
    "accelerate": lambda module: add_hook_to_module(module, SineHook()),
}


def outcome(model: nn.Module, mode: str) -> list[Tensor]:
    """The logits and, where autograd is on, the gradient to the images."""
    model.train(mode == "train")
    x = images().double().requires_grad_(mode != "no_grad")
    with torch.set_grad_enabled(mode != "no_grad"):
        logits = model(x).logits
    return [logits] if mode == "no_grad" else [logits, *torch.autograd.grad(logits.sin().sum(), x)]


@pytest.mark.parametrize("mode", ["train", "no_grad"])
@pytest.mark.parametrize("way", list(WAYS))
def test_a_changed_layer_counts_as_in_transformers(way: str, mode: str) -> None:
    ours, theirs = (model.double() for model in pair())
    for name in LEAVES:
        changed, reference = copy.deepcopy(ours), copy.deepcopy(theirs)
        WAYS[way](changed.get_submodule(name))
        WAYS[way](counterpart(reference, name))
        torch.testing.assert_close(
            outcome(changed, mode), outcome(reference, mode), rtol=1e-6, atol=1e-8, msg=f"{name}: {way}"
        )


@pytest.mark.parametrize("mode", ["train", "no_grad"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d])
def test_a_changed_class_counts_as_in_transformers(
    kind: type[nn.Module], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (model.double() for model in pair())
    plain, old = outcome(copy.deepcopy(ours), mode), kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args: old(self, *args).sin())
    changed = outcome(ours, mode)
    torch.testing.assert_close(changed, outcome(theirs, mode), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(changed[0], plain[0])


@pytest.mark.parametrize("mode", ["train", "no_grad"])
def test_global_hooks_see_every_layer(mode: str) -> None:
    ours, _ = pair()
    names, seen = {module: name for name, module in ours.named_modules()}, set()
    handle = module_of_torch.register_module_forward_hook(lambda module, *_: seen.add(names.get(module)))
    try:
        outcome(ours.double(), mode)
    finally:
        handle.remove()
    assert seen >= set(leaves_of(ours))


def test_the_switch_is_heard_at_any_time_and_kept() -> None:
    ours, theirs = pair()
    fast = ours(images()).logits
    ours.config.fused = False
    assert SegformerConfig(**ours.config.to_dict()).fused is False
    torch.testing.assert_close(ours(images()).logits, theirs(images()).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(images()).logits, fast, rtol=1e-4, atol=1e-5)
    assert "fused" not in SegformerConfig().to_dict()


@pytest.mark.parametrize("switch", [{"fused": False}, {}])
def test_second_derivatives_of_the_plain_network(switch: dict[str, bool]) -> None:
    labels = torch.ones(2, 40, 72, dtype=torch.long)
    results = []
    for model in pair(attn_implementation="eager"):
        for name, value in switch.items():
            setattr(model.config, name, value)
        x = images().double().requires_grad_()
        (first,) = torch.autograd.grad(model.double()(x, labels=labels).loss, x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9 * results[0].abs().max().item() + 1e-9)


# --- tracing ---------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, return_dict=False)[0]


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore:.is_grad:FutureWarning"
)
@pytest.mark.parametrize("size", [(1, 96, 96), (2, 512, 512)])
def test_a_trace_serves_other_sizes_and_batches(size: tuple[int, int, int]) -> None:
    ours, _ = pair()
    traced = torch.jit.trace(Logits(ours), images(*size), check_trace=False)
    for other in ((1, 768, 640), (1, 1024, 1024), (3, 512, 512), (3, 128, 65), (1, 130, 161)):
        with torch.no_grad():
            torch.testing.assert_close(traced(images(*other)), ours(images(*other)).logits, rtol=1e-5, atol=1e-5)


# --- torch.func ------------------------------------------------------------------------------------------------------

slowly = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of attention, in PyTorch itself


def functional_loss(model: nn.Module) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        inputs = {"pixel_values": x[None], "labels": labels[None]}
        return torch.func.functional_call(model, (parameters, buffers), (), inputs).loss

    return parameters, loss


@slowly
def test_functional_gradients_one_by_one_and_per_sample() -> None:
    ours, _ = pair()
    parameters, loss = functional_loss(ours)
    x, labels = images(), torch.randint(0, 3, (2, 40, 72), generator=torch.Generator().manual_seed(2))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, labels)
    for i in range(2):
        one = torch.func.grad(loss)(parameters, x[i], labels[i])
        ours.zero_grad()
        ours(x[i : i + 1], labels=labels[i : i + 1]).loss.backward()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(one[name], parameter.grad, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(each[name][i], parameter.grad, rtol=1e-3, atol=1e-5)


@slowly
def test_batches_and_ensembles_by_vmap() -> None:
    models = [pair()[0] for _ in range(2)]
    with torch.no_grad():
        models[1].decode_head.classifier.weight.mul_(2)
    single = torch.func.vmap(lambda x: models[0](x[None]).logits[0])(images())
    torch.testing.assert_close(single, models[0](images()).logits, rtol=1e-4, atol=1e-5)
    states, x = torch.func.stack_module_state(models), images()
    skeleton = copy.deepcopy(models[0]).to("meta")
    together = torch.func.vmap(lambda *state: torch.func.functional_call(skeleton, state, (x,)).logits)(*states)
    for got, model in zip(together, models, strict=True):
        torch.testing.assert_close(got, model(x).logits, rtol=1e-4, atol=1e-5)


# --- hidden states, heads, configurations ----------------------------------------------------------------------------


def test_gradients_to_hidden_states_are_complete() -> None:
    results = []
    for model in pair():
        output = model.double()(images().double(), output_hidden_states=True)
        results.append(torch.autograd.grad(output.logits[:, 1].sum(), output.hidden_states, retain_graph=True))
        encoded = model.segformer(images().double(), output_hidden_states=True)
        results[-1] += torch.autograd.grad(encoded.last_hidden_state[:, 1].sum(), encoded.hidden_states)
        for state in (states := model(images().double(), output_hidden_states=True)).hidden_states:
            state.retain_grad()
        states.logits[:, 1].sum().backward()
        results[-1] += tuple(state.grad for state in states.hidden_states)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Reshape_last_stage is set to False:FutureWarning")  # of transformers 4
@pytest.mark.parametrize("reshape", [True, False])
def test_the_head_takes_hidden_states(reshape: bool) -> None:
    ours, theirs = pair(reshape_last_stage=reshape)
    for encoder in (ours.segformer, *([theirs.segformer] if reshape else [])):
        states = encoder(images(), output_hidden_states=True).hidden_states
        torch.testing.assert_close(ours.decode_head(states), ours(images()).logits, rtol=1e-4, atol=1e-5)
    encoded = ours.segformer.encoder(images(), output_hidden_states=True, return_dict=True)
    torch.testing.assert_close(encoded.hidden_states, states, rtol=1e-4, atol=1e-5)


def test_the_head_refuses_maps_of_another_layout() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, channels, height, width\) with \[8, 16\] channels"):
        pair()[0].decode_head([torch.zeros(1, 16, 18, 8), torch.zeros(1, 8, 9, 16)])


def test_configurations_of_transformers_are_taken_everywhere(tmp_path: Any) -> None:
    ours, theirs = pair()
    theirs.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(config) is not SegformerConfig
    loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path, config=config)
    torch.testing.assert_close(loaded(images()).logits, ours(images()).logits, rtol=1e-4, atol=1e-5)
    for built in (SegformerModel(config), SegformerForSemanticSegmentation._from_config(config), loaded):
        assert type(built.config) is SegformerConfig
        assert built.config._attn_implementation == "eager"
    with pytest.raises(TypeError, match="BertConfig is not the configuration of a SegFormer"):
        SegformerModel(transformers.BertConfig())


# --- parameter names, offloading, checkpointing ----------------------------------------------------------------------


def test_weights_of_memory_go_both_ways() -> None:
    ours, theirs = pair()
    names = list(ours.state_dict())
    assert [published_name(name_in_transformers_5(name)) for name in names] == names
    other = SegformerForSemanticSegmentation(ours.config)
    other.load_state_dict(theirs.state_dict())
    other.segformer.load_state_dict(theirs.segformer.state_dict())
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)
    wanted = set(theirs.state_dict())
    rename = name_in_transformers_5 if any(".stages." in name for name in wanted) else str
    theirs.load_state_dict({rename(name): value for name, value in ours.state_dict().items()})


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning", "ignore:Could not find a config file:UserWarning"
)
def test_adapters_of_peft_go_both_ways() -> None:
    ours, theirs = pair()
    published = [name for name, _ in theirs.named_modules() if name.endswith("attention.self.query")]
    targets = {"ours": ["query", "dense1"], "theirs": ["query", "dense1"] if published else ["q_proj", "fc1"]}
    adapted = {
        side: peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=targets[side]))
        for side, model in (("ours", ours), ("theirs", theirs))
    }
    rename = {"ours": published_name, "theirs": str if published else name_in_transformers_5}
    for source, target in (("ours", "theirs"), ("theirs", "ours")):
        with torch.no_grad():
            for name, parameter in adapted[source].named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        weights = peft.get_peft_model_state_dict(adapted[source])
        renamed = {rename[target](name): value for name, value in weights.items()}
        result = peft.set_peft_model_state_dict(adapted[target], renamed)
        assert not result.unexpected_keys
        logits = [model.eval()(images()).logits for model in adapted.values()]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(logits[0], ours(images()).logits, atol=1e-2)


@contextmanager
def offloaded(how: str, ours: nn.Module, folder: Any) -> Iterator[nn.Module]:
    if how == "cpu":
        yield accelerate.cpu_offload(copy.deepcopy(ours), execution_device=torch.device("cpu"))
    elif how == "disk":
        yield accelerate.disk_offload(copy.deepcopy(ours), folder / "disk", execution_device=torch.device("cpu"))
    else:
        ours.save_pretrained(folder / "model")
        yield SegformerForSemanticSegmentation.from_pretrained(
            folder / "model", device_map="auto", max_memory={"cpu": "20kB"}, offload_folder=folder / "disk"
        )


@pytest.mark.parametrize("how", ["cpu", "disk", "device_map"])
def test_offloaded_weights_are_fetched(how: str, tmp_path: Any) -> None:
    if how == "device_map" and transformers.__version__.startswith("4."):
        pytest.skip("transformers 4 cannot read onto a disk with this safetensors, its own class neither")
    ours, _ = pair()
    with torch.no_grad(), offloaded(how, ours, tmp_path) as model:
        assert any(parameter.is_meta for parameter in model.parameters())
        torch.testing.assert_close(model(images()).logits, ours(images()).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_blocks_are_the_layers_that_checkpointing_knows() -> None:
    ours, _ = pair()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [
        each for each in ours.modules() if isinstance(each, transformers.modeling_layers.GradientCheckpointingLayer)
    ]
    assert len(layers) == 2 and all(layer.gradient_checkpointing for layer in layers)
