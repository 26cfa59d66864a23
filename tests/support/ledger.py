"""What a device would be asked to do, counted on meta tensors: no GPU, no arithmetic, the same on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_unsafe_index"}  # a mask among the indices is searched for its pixels
_SEARCHES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
_NO_WORK = {"alias", "detach", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_GATHERS = {"gather", "index", "index_select"}  # read as much as they write
_SCATTERS = {"index_add_", "index_copy_", "scatter_", "scatter_add_"}
_FILLS = {"arange", "fill_", "full", "full_like", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "zero_"}
_FILLS |= {"zeros", "zeros_like"}
# What raises on a GPU under torch.use_deterministic_algorithms(True), as its documentation lists it; of operators whose
# backward pass raises, that one.
_NOT_DETERMINISTIC = {"_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "grid_sampler_2d_backward", "histc"}
_NOT_DETERMINISTIC |= {"kthvalue", "max_unpool2d", "nll_loss2d_backward", "nll_loss2d_forward", "put_"}
_NOT_DETERMINISTIC |= {"reflection_pad2d_backward", "replication_pad2d_backward", "upsample_linear1d_backward"}
_NOT_DETERMINISTIC |= {"upsample_bicubic2d_backward", "upsample_bilinear2d_backward"}


class Ledger(TorchDispatchMode):
    """Counts what runs inside a `with` block as a GPU would be asked for it, on tensors of the device "meta".

    A launch is an operator that writes memory: one kernel, or a few. Convolutions answer in the memory format that they
    are given, as cuDNN does; attention is one kernel forward and one backward; operators of segtune are what they are
    made of. Where the program would wait for the device, the wait is counted and answered: a number with `answer`,
    positions with `found` rows, a mask finds nothing. On CPU tensors it counts as well; all answers are the real ones.

    Args:
        float64: whether the device has it; `False` raises what an Apple GPU raises, where it is used.
        deterministic: whether to raise at operators without a deterministic kernel, as a GPU does under
            `torch.use_deterministic_algorithms(True)`.

    Attributes:
        kernels: how often each operator was launched.
        waits: the same of operators at which the program stands still until the device is done.
        uploads: the same of copies from host memory, which wait as well unless they are `non_blocking`.
        doubles: the same of operators that read or write float64.
        traffic: the bytes that each reads and writes; an element that is repeated (expanded) counts once.
    """

    def __init__(
        self, *, float64: bool = True, deterministic: bool = False, answer: float = -10.0, found: int = 20
    ) -> None:
        super().__init__()
        self._float64, self._deterministic, self._answer, self._found = float64, deterministic, answer, found
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self._patches: list[ExitStack] = []

    @property
    def launches(self) -> int:
        return self.kernels.total()

    @property
    def bytes(self) -> int:
        return self.traffic.total()

    def __enter__(self) -> Ledger:
        super().__enter__()
        self._patches.append(ExitStack())
        if len(self._patches) == 1:  # not when an operator is opened
            self._watch_calls(self._patches[0])
        return self

    def __exit__(self, *error: Any) -> None:
        self._patches.pop().close()
        super().__exit__(*error)

    def _watch_calls(self, patches: ExitStack) -> None:
        """What operators alone do not tell: attention as one kernel, and tensors made of Python numbers.

        Not by a mode of torch functions, which is off in backward passes.
        """
        attend = F.scaled_dot_product_attention

        def watched(query: Tensor, *args: Any, **options: Any) -> Tensor:
            return (_attention if query.is_meta else attend)(query, *args, **options)

        patches.enter_context(patch.object(F, "scaled_dot_product_attention", watched))
        for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (Tensor, "new_tensor")):
            patches.enter_context(patch.object(owner, name, self._counting_uploads(getattr(owner, name), name)))

    def _counting_uploads(self, function: Any, name: str) -> Any:
        def make(*args: Any, **kwargs: Any) -> Tensor:
            out: Tensor = function(*args, **kwargs)
            if out.is_meta:
                self.upload(name, blocking=True)
            return out

        return make

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        if func.namespace == "segtune":
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        with self:  # in inference mode, operators that are made of others arrive here whole
            if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        inputs = list(_tensors((args, kwargs)))
        out = self._answer_wait(name, inputs, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if name in ("convolution", "convolution_backward"):
            out = _as_cudnn_lays_it_out(name, args, out)
        self._write(name, func._schema.is_mutable, inputs, list(_tensors(out)))
        return out

    def upload(self, name: str, blocking: bool) -> None:
        """Count a copy from host memory; it waits for its turn on the device, but from pinned memory."""
        self.uploads[name] += 1
        if blocking:
            self.waits[name] += 1

    def _answer_wait(self, name: str, inputs: list[Tensor], kwargs: dict[str, Any]) -> Any:
        """Count the wait or upload of an operator, if it is one; its answer where only a device could give it."""
        first = inputs[0] if inputs else None
        if first is None or not (first.is_meta or inputs[-1].is_meta or kwargs.get("device") == torch.device("meta")):
            if name in _SEARCHES | {"_local_scalar_dense"}:
                self.waits[name] += 1
            return None
        if name in _COPIES:
            to_meta = torch.device(kwargs.get("device") or first.device).type == "meta"
            if to_meta and not inputs[-1].is_meta:
                self.upload(name, blocking=not kwargs.get("non_blocking"))
            elif not to_meta:
                self.waits[name] += 1
                return torch.zeros(inputs[-1].shape, dtype=kwargs.get("dtype") or first.dtype)
        elif name == "_local_scalar_dense":
            self.waits[name] += 1
            return torch.tensor(self._answer).to(first.dtype).item()
        elif name in _SEARCHES:
            self.waits[name] += 1
            return first.new_empty((self._found, first.ndim), dtype=torch.long) if name == "nonzero" else None
        elif name in _INDEXED:
            if any(index.dtype in (torch.bool, torch.uint8) for index in inputs[1:] if index.ndim):
                self.waits[name] += 1
                return first.new_empty(0) if name == "index" else first
            if not all(each.is_meta for each in inputs):
                self.upload(name, blocking=True)
        return None

    def _write(self, name: str, mutable: bool, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        known = {x.untyped_storage()._cdata for x in inputs}
        views = bool(outputs) and not mutable and all(x.untyped_storage()._cdata in known for x in outputs)
        if name in _NO_WORK or views or not outputs:
            return
        self.kernels[name] += 1
        if any(x.dtype == torch.float64 for x in (*inputs, *outputs)):
            self.doubles[name] += 1
            if not self._float64:
                raise TypeError(f"{name}: this device has no float64")
        if self._deterministic and name in _NOT_DETERMINISTIC:
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        self.traffic[name] += _traffic(name, mutable, inputs, outputs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, dropout_p: float = 0.0, **options: Any) -> Tensor:
    if options.get("attn_mask") is not None or options.get("is_causal"):
        raise NotImplementedError("the ledger knows attention without a mask")
    keep = torch.is_grad_enabled()
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = attend(query, key, value, None, keep, dropout_p, False, scale=options.get("scale"))[0]
    return out


def _as_cudnn_lays_it_out(name: str, args: Any, out: Any) -> Any:
    """Channels-last of channels-last: the output of a convolution, in its backward pass the gradient of the input."""
    result, x = (out, args[0]) if name == "convolution" else (out[0], args[1])
    if result is not None and result.is_meta and x.is_contiguous(memory_format=torch.channels_last):
        result = torch.empty_like(result, memory_format=torch.channels_last)
    return result if name == "convolution" else (result, *out[1:])


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _traffic(name: str, mutable: bool, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """The bytes that an operator reads and writes."""
    written = sum(map(_bytes, outputs))
    if name in _FILLS:
        return written
    if name in _GATHERS:
        return 2 * written
    if name in _SCATTERS:  # of the memory that is scattered to, only these places
        return 3 * sum(map(_bytes, inputs[1:]))
    # what is written in place was read before
    return sum(map(_bytes, {id(x): x for x in (*inputs, *outputs)}.values())) + (written if mutable else 0)


def _bytes(x: Tensor) -> int:
    return x.element_size() * prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
