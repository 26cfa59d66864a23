"""Matrix products and attention on a CPU, by the faster of the two libraries in PyTorch's wheels.

In float32, `F.linear` asks MKL. On AMD's processors with AVX-512 that takes its path for AVX2, and oneDNN's kernels are
2.1 to 2.5 times faster for the shapes of this network; with AVX2 alone they are no faster, and attention made of them
is slower. So which one is asked depends on the processor and on the build of PyTorch, never on a clock: a run and its
continuation on the same machine compute the same bits. `SEGTUNE_ONEDNN=0` or `1` in the environment decides otherwise.

Letters: B batch, N tokens, d channels of a head.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_PACKED, _FEWEST_ROWS = 2**18, 512  # numbers whose transpose stays in the cache; of at least so many rows
_FEWEST = 4096  # weights from which on oneDNN's gradient of them is faster
_CHUNK, _FEWEST_QUERIES = 2**18, 128  # attention weights that stay in the cache; of at least so many queries
_FEWEST_KEYS, _FEWEST_WEIGHTS = 128, 2**18  # in a head, from which on its gradient is faster by oneDNN


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for where autograd does not look: `(…, C)` times `(E, C)` transposed to `(…, E)`."""
    if not _by_onednn(x):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.contiguous(), bias, "none", [], "")
    return out


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`linear` of a matrix into memory that is there; with a bias `(E,)`, or with one for each row, `(M, 1)`."""
    if _by_onednn(x) and bias is not None and bias.ndim > 1:
        torch.add(linear(x, weight), bias, out=out)
    elif _by_onednn(x):
        out.copy_(linear(x, weight, bias))
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """`dyᵀ x`, the gradient of a linear layer's weight: `(M, E)` and `(M, C)` to `(E, C)`.

    oneDNN is given the narrower of the two as its input, and rows in parts: it packs the transpose of the wider one
    again for each call, and of many thousands of rows that leaves the cache.
    """
    many = grad.shape[1] * x.shape[1] >= _FEWEST and len(x) > 0  # it has no kernel for sums of nothing
    if not (many and grad.dtype == x.dtype and _by_onednn(x)):
        return grad.t() @ x
    narrow, wide = (grad, x) if grad.shape[1] <= x.shape[1] else (x, grad)
    rows = max(_FEWEST_ROWS, _PACKED // wide.shape[1])
    pairs = zip(narrow.split(rows), wide.split(rows), strict=True)
    parts = (torch.ops.mkldnn._linear_pointwise(a.t(), b.t(), None, "none", [], "") for a, b in pairs)
    total: Tensor = next(parts)
    for part in parts:
        total += part
    return total if narrow is grad else total.t()


def attends_by_onednn(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Whether `attention` is the faster one, and the same: no dropout; with a gradient, only of many weights."""
    if dropout != 0 or not suits_onednn(query):
        return False
    n, m = query.shape[2], key.shape[2]
    return not torch.is_grad_enabled() or (m >= _FEWEST_KEYS and n * m >= _FEWEST_WEIGHTS)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(Q Kᵀ / sqrt(d)) V` in chunks of queries; `(B, heads, N, d)`, and twice `(B, heads, M, d)`."""
    out = _like_tokens(query)
    for i, scaled, transposed in _heads(key * query.shape[-1] ** -0.5, value.transpose(2, 3)):
        for queries, target in _chunks(key.shape[2], query[i], out[i]):
            target.copy_(linear(linear(queries, scaled).softmax(-1), transposed))
    return out


def attention_gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention` with respect to its three arguments, of that of its result `(B, heads, N, d)`.

    With S = Q Kᵀ / sqrt(d), P = softmax(S), computed a second time, and y = P V:
        dV = Pᵀ dy,  dP = dy Vᵀ,  dS = P ⊙ (dP - Σ_j P_j dP_j),  dQ = dS K / sqrt(d),  dK = dSᵀ Q / sqrt(d).
    """
    scale = query.shape[-1] ** -0.5
    grad_query, grad_key, grad_value = _like_tokens(query), _like_tokens(key), _like_tokens(value)
    for i, scaled, values in _heads(key * scale, value):
        of_key, of_value = torch.zeros_like(scaled), torch.zeros_like(values)
        for queries, of_out, of_query in _chunks(key.shape[2], query[i], grad[i], grad_query[i]):
            p = linear(queries, scaled).softmax(-1)  # (n, M)
            of_value += weight_gradient(p, of_out)
            of_scores = torch._softmax_backward_data(linear(of_out, values), p, -1, p.dtype)
            of_query.copy_(linear(of_scores, scaled.t()))
            of_key += weight_gradient(of_scores, queries)
        torch.mul(of_key, scale, out=grad_key[i])
        grad_value[i].copy_(of_value)
    return grad_query, grad_key, grad_value


def _like_tokens(x: Tensor) -> Tensor:
    """Memory for `(B, heads, N, d)`, with the heads of a token side by side."""
    b, heads, n, d = x.shape
    return x.new_empty((b, n, heads, d)).transpose(1, 2)


def _heads(*tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """For each image and head, its index and its matrices of the tensors `(B, heads, ·, ·)`, dense."""
    for i in itertools.product(*map(range, tensors[0].shape[:2])):
        yield i, *(x[i].contiguous() for x in tensors)


def _chunks(keys: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of matrices `(N, d)`, as many as have attention weights that stay in the cache."""
    return zip(*(x.split(max(_FEWEST_QUERIES, _CHUNK // keys)) for x in tensors), strict=True)


def suits_onednn(x: Tensor) -> bool:
    """Whether oneDNN's product of `x` is the faster one, where autograd does not look: it knows neither that nor
    autocast, and a compiler chooses its own.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and prefers_onednn()


def _by_onednn(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and suits_onednn(x)


@cache
def prefers_onednn() -> bool:
    """Whether this machine's float32 products are oneDNN's; where it is missing (Arm, macOS) they never are."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    wish = os.environ.get("SEGTUNE_ONEDNN", "")
    if wish in ("0", "1"):
        return wish == "1"
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system says of its processors, with the name of their maker."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
