"""Model conversion in memory: transformers' SegFormer as ours, sharing its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from segtune.errors import UsageError, listed
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainedModel,
)
from segtune.segformer.parameter_names import published_name

_CLASSES: dict[str, type[SegformerPreTrainedModel]] = {
    cls.__name__: cls for cls in (SegformerForImageClassification, SegformerForSemanticSegmentation, SegformerModel)
}
_SHOWN = 8  # names in an error message


def from_transformers(model: nn.Module) -> Any:
    """Our network around the parameters of a transformers SegFormer that is already loaded.

    Parameters and buffers are shared, not copied: what one of the two learns, the other knows. Configuration, dtype,
    device and the training mode of every layer are those of `model`; its hooks stay behind, and gradient checkpointing
    starts switched off. In training, dropout before the classifier drops whole channels (as the authors' does), where
    transformers drops single values.

    Args:
        model: transformers' `SegformerForSemanticSegmentation`, `SegformerForImageClassification` or `SegformerModel`,
            of version 4 or 5.

    Returns:
        Our class of the same name; a model that is ours already is returned as it is.

    Raises:
        UsageError: another architecture, or a network whose layers were replaced (adapters, quantisation).
    """
    if isinstance(model, SegformerPreTrainedModel):
        return model
    name = type(model).__name__
    if name not in _CLASSES or type(model) is not getattr(transformers, name):
        raise UsageError(
            f"from_transformers takes transformers' {', '.join(_CLASSES)}, not {type(model).__module__}.{name}; "
            "of a wrapped model pass what is inside, with adapters merged"
        )
    theirs: Any = model
    with torch.device("meta"):
        ours = _CLASSES[name](SegformerConfig.from_dict(theirs.config.to_dict()))
    modules = {published_name(f"{path}.")[:-1]: module for path, module in theirs.named_modules(remove_duplicate=False)}
    _check_layers(ours, modules)
    _share_tensors(ours, theirs)
    for path, module in ours.named_modules():  # parents come first: what theirs does not have follows its parent
        counterpart = modules.setdefault(path, modules.get(path.rpartition(".")[0], theirs))
        module.training = counterpart.training
    ours.name_or_path = ours.config.name_or_path = theirs.name_or_path
    return ours


def _check_layers(ours: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Raise where a layer with parameters is not of the class that ours is: it may not do what its weights say."""
    replaced = [
        f"{path} is a {type(modules[path]).__module__}.{type(modules[path]).__name__}"
        for path, module in ours.named_modules()
        if module._parameters and path in modules and type(modules[path]) is not type(module)
    ]
    if replaced:
        raise UsageError(
            f"not a plain SegFormer: {listed(replaced, _SHOWN)}; merge adapters first, and convert layers after "
            "from_transformers"
        )


def _share_tensors(ours: nn.Module, theirs: nn.Module) -> None:
    """Put the parameters and buffers of `theirs` into `ours`, which must have a place for each and miss none."""
    wanted, given = _tensors(ours), {published_name(key): value for key, value in _tensors(theirs).items()}
    if faults := tensor_faults(wanted, given):
        raise UsageError(f"the parameters are not those of a SegFormer with this configuration: {faults}")
    for key in wanted:
        path, _, leaf = key.rpartition(".")
        module = ours.get_submodule(path)
        (module._parameters if leaf in module._parameters else module._buffers)[leaf] = given[key]


def tensor_faults(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Which tensors are missing, left over or of another shape, by name; empty where each finds its place."""
    differ = [key for key in wanted.keys() & given.keys() if wanted[key].shape != given[key].shape]
    faults = {
        "missing": wanted.keys() - given.keys(),
        "left over": given.keys() - wanted.keys(),
        "of another shape": differ,
    }
    return "; ".join(f"{what}: {listed(sorted(names), _SHOWN)}" for what, names in faults.items() if names)


def _tensors(model: nn.Module) -> dict[str, Any]:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return tensors | dict(model.named_buffers(remove_duplicate=False))
