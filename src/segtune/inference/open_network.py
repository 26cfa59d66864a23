"""A checkpoint as a network that is ready to run: in PyTorch, or in an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from segtune.engines.engine_network import Engine, EngineNetwork, open_engine, refuse_graph
from segtune.errors import UsageError
from segtune.inference.device import Precision, choose_precision, to_device
from segtune.inference.ensemble import Ensemble, first_member
from segtune.inference.processor import load_processor
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model


def open_network(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device | None = None,
    engine: Engine = "torch",
    precision: Precision = "auto",
    option: str = "--device",
) -> Any:
    """The network of a checkpoint, or of what was exported of one: it has `config`, `device` and `name_or_path`.

    Args:
        device: of PyTorch; engines run on the CPU. Default is the best there is.
        engine: "torch", or see `open_engine`.
        precision: of an engine. That of PyTorch is chosen by `precision_of`, when it runs.
        option: by which the device was named, for messages.

    Raises:
        UsageError: there is no such checkpoint, device, engine or package.
        DataError: its files are damaged.
    """
    if engine == "torch":
        refuse_graph(checkpoint)
        return to_device(load_model(os.fspath(checkpoint), whole=True), device, option)
    refuse_device(engine, device, option)
    return open_engine(checkpoint, engine, precision)


def open_networks(
    checkpoints: Sequence[str | os.PathLike[str]],
    *options: Any,
    default: Callable[[], SegformerImageProcessor] | None = None,
) -> Any:
    """The network of one checkpoint, or the ensemble of several.

    Args:
        options: device, engine and precision, see `open_network`.
        default: see `load_processor`; for the members of an ensemble.

    Raises:
        UsageError, DataError: see `open_network`; or the classes of two checkpoints differ.
    """
    networks = [open_network(checkpoint, *options) for checkpoint in checkpoints]
    if len(networks) == 1:
        return networks[0]
    return Ensemble(networks, [load_processor(network, default) for network in networks])


def refuse_device(engine: str, device: str | torch.device | None, option: str) -> None:
    """Raise UsageError where an engine is to run elsewhere than on a CPU."""
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise UsageError(f"{option} {device}: --engine {engine} runs on the CPU here; --engine torch runs on others")


def precision_of(network: nn.Module, precision: Precision) -> str:
    """What a network computes in: an engine has its own, PyTorch's is chosen by `choose_precision`."""
    network = first_member(network)
    if isinstance(network, EngineNetwork):
        return network.precision
    return choose_precision(precision, next(network.parameters()).device)


def engine_of(network: nn.Module) -> str:
    network = first_member(network)
    return network.engine if isinstance(network, EngineNetwork) else "torch"
