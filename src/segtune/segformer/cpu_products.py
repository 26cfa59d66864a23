"""Matrix products and attention on a CPU, by the faster of the two libraries in PyTorch's wheels.

In float32, `F.linear` asks MKL. On AMD's processors with AVX-512 that takes its path for AVX2, and oneDNN's kernels are
2.1 to 2.5 times faster for the shapes of this network; with AVX2 alone they are no faster, and attention made of them
is slower. So which one is asked depends on the processor and on the build of PyTorch, never on a clock: a run and its
continuation on the same machine compute the same bits. `SEGTUNE_ONEDNN=0` or `1` in the environment decides otherwise.

Letters: B batch, N tokens, d channels of a head.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS, _FEWEST = 512, 4096  # rows whose transpose stays in the cache; weights above which oneDNN is the faster one
_CHUNK, _FEWEST_QUERIES = 2**18, 128  # attention weights that stay in the cache; of at least so many queries


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
    many = grad.shape[1] * x.shape[1] > _FEWEST and len(x) > 0  # it has no kernel for sums of nothing
    if not (many and grad.dtype == x.dtype and _by_onednn(x)):
        return grad.t() @ x
    narrow, wide = (grad, x) if grad.shape[1] <= x.shape[1] else (x, grad)
    pairs = zip(narrow.split(_ROWS), wide.split(_ROWS), strict=True)
    parts = (torch.ops.mkldnn._linear_pointwise(a.t(), b.t(), None, "none", [], "") for a, b in pairs)
    total: Tensor = next(parts)
    for part in parts:
        total += part
    return total if narrow is grad else total.t()


def attends_by_onednn(query: Tensor, dropout: float) -> bool:
    """Whether `attention` is faster than PyTorch's, and may be used: no dropout, no gradient."""
    return dropout == 0 and not torch.is_grad_enabled() and _by_onednn(query)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(Q Kᵀ / sqrt(d)) V` in chunks of queries; `(B, heads, N, d)`, and twice `(B, heads, M, d)`."""
    b, heads, n, d = query.shape
    chunk = max(_FEWEST_QUERIES, _CHUNK // key.shape[2])
    out = query.new_empty((b, n, heads, d)).transpose(1, 2)  # (B, heads, N, d), as the tokens lie in memory
    for i in range(b):
        for head in range(heads):
            scaled, transposed = key[i, head] * d**-0.5, value[i, head].t().contiguous()  # (M, d) and (d, M)
            for queries, target in zip(query[i, head].split(chunk), out[i, head].split(chunk), strict=True):
                target.copy_(linear(linear(queries, scaled).softmax(-1), transposed))
    return out


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
