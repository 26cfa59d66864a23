"""LoRA through peft: low-rank adapters of frozen weights (Hu et al. 2021, arXiv 2106.09685).

`model.lora` of a recipe adds them, training saves them beside the merged network, `load_adapter` puts them back onto
their base model.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.segformer.modeling_segformer import (
    SegformerForSemanticSegmentation,
    SegformerPreTrainedModel,
)
from segtune.training.config import LoraConfig

Model = TypeVar("Model", bound=SegformerPreTrainedModel)

ADAPTER_FILE, ADAPTER_CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_HEAD = "decode_head"
_PREFIX = "base_model.model."  # of the names in peft's files


def add_lora(
    model: SegformerForSemanticSegmentation, config: LoraConfig, base: str | None = None
) -> SegformerForSemanticSegmentation:
    """Adapt `model` in place: everything is frozen but the adapters, the decode head and `also_train`.

    The outputs stay the same until the first step. The adapters are drawn from torch's global generator.

    Args:
        base: the checkpoint that `model` was loaded from, for whoever loads the adapter with peft.

    Raises:
        UsageError: peft is not installed; `targets` or `also_train` name nothing, or the same thing.
    """
    _refuse_second(model)
    _check_paths(model, config)
    settings = _import_peft().LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        modules_to_save=[_HEAD, *config.also_train],
        base_model_name_or_path=base,
    )
    _inject(model, settings)
    return model


def merged(model: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """A copy of an adapted model, in evaluation mode, with the updates added to the weights.

    It is a plain SegFormer that every tool loads; its outputs equal those of `model` up to rounding.
    """
    plain = copy.deepcopy(model)
    # y = W x + (alpha / r) B A x = (W + (alpha / r) B A) x: `merge` adds the update to W, whose layer can stand alone.
    for name, layer in _adapted(plain).items():
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    del plain.peft_config
    return cast(SegformerForSemanticSegmentation, plain.requires_grad_(True).eval())


def save_adapter(model: SegformerForSemanticSegmentation, folder: Path) -> None:
    """Write what was trained, and the model's `config.json`, in peft's format.

    `load_adapter` reads it, and so does `peft.PeftModel.from_pretrained(base model, folder)` for our model class. The
    decode head with its running statistics is part of it, since a fresh one would be drawn otherwise.
    """
    peft, settings = _import_peft(), model.peft_config["default"]
    tensors = dict(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    # State dicts in place of peft's parameters: the head's batch norm has running statistics too.
    for path in settings.modules_to_save:
        tensors |= {f"{path}.{name}": value for name, value in model.get_submodule(path).state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({_PREFIX + name: value.contiguous() for name, value in tensors.items()}, folder / ADAPTER_FILE)
    stored = dataclasses.replace(settings, inference_mode=True)
    stored.target_modules = sorted(settings.target_modules)  # peft's set has another order in every process
    stored.save_pretrained(str(folder))
    model.config.save_pretrained(folder)


def load_adapter(model: SegformerForSemanticSegmentation, folder: Path) -> SegformerForSemanticSegmentation:
    """Put what `save_adapter` wrote onto its base model, in place; it then equals the saved one and can train on.

    Args:
        model: the checkpoint that the training started from, with the number of labels of the adapter's config.

    Raises:
        DataError: the folder holds no adapter, or one of another model.
    """
    peft = _import_peft()
    missing = [name for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} holds no adapter: {missing[0]} is missing")
    _refuse_second(model)
    try:
        _inject(model, dataclasses.replace(peft.LoraConfig.from_pretrained(str(folder)), inference_mode=False))
        tensors = {name.removeprefix(_PREFIX): value for name, value in load_file(folder / ADAPTER_FILE).items()}
        result = peft.set_peft_model_state_dict(model, tensors)
    except (AttributeError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise DataError(f"the adapter in {folder} cannot be loaded: {str(error).splitlines()[-1]}") from error
    # Weights of the base are rightly missing; what trains must be in the file.
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    faults = [*sorted(set(result.missing_keys) - frozen), *result.unexpected_keys]
    if faults:
        raise DataError(f"the adapter in {folder} does not fit the model: {len(faults)} tensors differ, {faults[0]}")
    return model


def _inject(model: SegformerForSemanticSegmentation, settings: Any) -> None:
    """Put adapters into the model, which stays what it is, and let only them and `modules_to_save` train.

    peft itself would wrap the modules to save, and so hide the decode head's layers from the network.
    """
    _import_peft().inject_adapter_in_model(dataclasses.replace(settings, modules_to_save=None), model)
    model.peft_config = {"default": settings}
    for path in settings.modules_to_save:
        model.get_submodule(path).requires_grad_(True)
    for layer in _adapted(model).values():
        layer.train(model.training)


def _refuse_second(model: nn.Module) -> None:
    if hasattr(model, "peft_config"):
        raise UsageError("the model has a LoRA adapter already")


def _check_paths(model: nn.Module, config: LoraConfig) -> None:
    """Every name must mean something, and a module is either adapted or trained in full."""
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    for path in config.also_train:
        if path not in modules:
            raise UsageError(f"lora.also_train names {path}, which the model does not have")
    for target in config.targets:
        matched = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not matched:
            raise UsageError(f"lora.targets names {target}, but no linear layer's path ends so")
        for path in (_HEAD, *config.also_train):
            if any(f"{name}.".startswith(f"{path}.") for name in matched):
                raise UsageError(f"lora.targets names {target}, which is part of {path}, which trains in full")


def _adapted(model: nn.Module) -> dict[str, Any]:
    kind = _import_peft().tuners.lora.LoraLayer
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UsageError("LoRA needs the package peft: pip install 'segtune[lora]'") from error
    return peft
