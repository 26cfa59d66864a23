"""Fast paths of the encoder: layers fused into one function, and the condition under which each gives the same.

Autograd keeps every intermediate map for the backward pass. The functions here keep only what is expensive to compute
again, and compute element-wise results and cheap products a second time (as in gradient checkpointing, Chen et al.
2016, arXiv 1604.06174): of 14 units (a unit is a map of C channels, at the usual Mix-FFN ratio of 4) the Mix-FFN
keeps one, its input; the projections of the attention keep their input and results. All equal the plain layers up to
rounding, and differentiate once.

A fast path is a class: `applies` says whether it gives what the layers give, `run` computes it.

Letters: B batch, C channels, H W size, N = H·W tokens, M = B·N, E = ratio·C, R sequence-reduction ratio. In comments,
`dy` is the gradient of the loss with respect to y, and a linear layer is written `y = W x + b` for each pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation

from .cpu_products import (
    attends_by_onednn,
    attention,
    attention_gradients,
    linear,
    linear_into,
    suits_onednn,
    weight_gradient,
)
from .upsampling import strip_rows

_NETWORK = f"{__name__.rpartition('.')[0]}.modeling_segformer"  # imports this file, so that it is not imported here
_TENSORS = (Tensor, nn.Parameter)
_NEED_ALL_WEIGHTS = (nn.Linear, nn.LayerNorm)
_LAYERS = (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout2d)
_FORWARDS = {cls: cls.forward for cls in (*_LAYERS, GELUActivation)}  # before anyone put another one in its place


# --- what every condition is made of ---------------------------------------------------------------------------------


def may_fuse(config: Any, *maps: Tensor) -> bool:
    """The one rule of all fast paths: whether nobody could tell the difference to calling layer after layer.

    Not so where `config.fused` is off or attention is "eager"; where another one records or transforms the operations
    (`torch.jit.trace`, `torch.func`, forward-mode derivatives), to whom sizes and batches are not constants; where a
    hook waits for every module; and where a map is of a subclass of Tensor. What one layer needs besides is `is_plain`.
    A compiler gets the paths without loops (see `is_eager`).

    Args:
        config: of the network.
        maps: what the path would read.
    """
    if not config.fused or config._attn_implementation == "eager":
        return False
    if torch.compiler.is_compiling():
        return True
    return not (torch.jit.is_tracing() or is_transformed() or _has_any_global_hook()) and all(map(_is_dense, maps))


def keeps_to_cache(x: Tensor) -> bool:
    """The one rule of devices: whether to compute in parts that stay in a cache, and cheap results a second time.

    So on a CPU, where a call costs little and memory is slow. Other devices get whole maps, layer after layer, and the
    composed decode head: there every part would cost a launch, and what is computed twice is read twice. Where memory
    is short, `gradient_checkpointing` recomputes on any device.
    """
    return x.device.type == "cpu"


def is_plain(module: Any, kind: type[nn.Module] | str) -> bool:
    """Whether calling `module` does what its class does and nothing else, so that its weights may be read instead.

    Neither adapted, quantised, parametrised, offloaded or otherwise replaced, nor hooked; nor was a `forward` put into
    its place, in the module or in its class. All weights are there (a convolution may do without a bias).

    Args:
        kind: the class, exactly; a name stands for one of `modeling_segformer`.
    """
    cls, own = type(module), module.__dict__  # not by attribute: this runs for every layer of every call
    exact = cls is kind if not isinstance(kind, str) else cls.__name__ == kind and cls.__module__ == _NETWORK
    if not exact or "forward" in own or "_hf_hook" in own:
        return False
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    weights = own["_parameters"].values()
    if cls in _NEED_ALL_WEIGHTS and any(each is None for each in weights):
        return False
    if torch.compiler.is_compiling():
        return True  # it has tensors of its own
    if cls in _FORWARDS and cls.forward is not _FORWARDS[cls]:
        return False
    return all(each is None or type(each) in _TENSORS for each in weights)


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor is no subclass, which may compute otherwise: quantised, sharded, fake."""
    return type(x) in _TENSORS


def is_transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp) or a forward-mode derivative looks at every operation."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_plain_convolution(
    conv: Any, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = True
) -> bool:
    """Whether `conv` is a plain convolution of these settings, without dilation, padding with zeros."""
    if not is_plain(conv, nn.Conv2d):
        return False
    settings = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    wanted = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), groups, "zeros")
    return settings == wanted and (conv.bias is not None) is bias


def is_idle(dropout: Any, kind: type[nn.Module]) -> bool:
    """Whether `dropout` is a plain one that drops nothing now."""
    return is_plain(dropout, kind) and not (dropout.training and dropout.p > 0)


def is_eager() -> bool:
    """Whether operations run one by one, as they are written; a compiler decides on its own what to keep."""
    return not torch.compiler.is_compiling()


def refuse_second_derivative(what: str) -> None:
    """For the backward pass of a function that differentiates once, and whose backward pass is not transformed."""
    if torch.is_grad_enabled() or is_transformed():  # create_graph=True, is_grads_batched=True
        raise RuntimeError(
            f"{what} keeps too little for a second derivative: call backward without create_graph=True, or set "
            'model.config.fused = False (and attn_implementation="eager") before the forward pass'
        )


# --- fast paths of the attention -------------------------------------------------------------------------------------


class MatrixReduction:
    """The convolution of the sequence reduction as one matrix product, because its kernel equals its stride."""

    @staticmethod
    def applies(attention: Any, x: Tensor) -> bool:
        """Whether `attention.sr` is such a convolution, and copying the patches is cheaper than a slow convolution."""
        return (
            may_fuse(attention.config, x)
            and keeps_to_cache(x)
            and is_plain_convolution(attention.sr, attention.ratio, stride=attention.ratio)
        )

    @staticmethod
    def run(attention: Any, x: Tensor) -> Tensor:
        """`(B, H, W, C)` to `(B, N/R², C)`."""
        return F.linear(unfold_patches(x, attention.ratio), MatrixReduction.matrix(attention), attention.sr.bias)

    @staticmethod
    def matrix(attention: Any) -> Tensor:
        """The kernel as `(C, R²·C)`, in the order of `unfold_patches`."""
        weight: Tensor = attention.sr.weight
        return weight.permute(0, 2, 3, 1).flatten(1)


class JointKeyValue:
    """Keys and values by one matrix product."""

    @staticmethod
    def applies(attention: Any, x: Tensor) -> bool:
        """Whether both are plain linear layers, whose weights are joined quicker than a second product starts."""
        return (
            may_fuse(attention.config, x)
            and keeps_to_cache(x)
            and is_plain(attention.key, nn.Linear)
            and is_plain(attention.value, nn.Linear)
        )

    @staticmethod
    def run(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, N/R², C)` to key and value of the same shape."""
        key, value = F.linear(x, *JointKeyValue.weights(attention)).chunk(2, -1)
        return key, value

    @staticmethod
    def weights(attention: Any) -> tuple[Tensor, Tensor]:
        """Weight `(2·C, C)` and bias `(2·C,)`, those of the key first."""
        key, value = attention.key, attention.value
        return torch.cat((key.weight, value.weight)), torch.cat((key.bias, value.bias))


class DirectLinear:
    """A linear layer on its own by `cpu_products`, whose products are the faster ones for these shapes."""

    @staticmethod
    def applies(config: Any, layer: Any, x: Tensor) -> bool:
        """Whether the layer is the plain one, and nothing is recorded but what `LinearProduct` has a gradient for."""
        return (
            (not torch.is_grad_enabled() or suits_onednn(x))
            and may_fuse(config, x)
            and keeps_to_cache(x)
            and is_eager()
            and is_plain(layer, nn.Linear)
        )

    @staticmethod
    def run(layer: Any, x: Tensor) -> Tensor:
        """`(…, C)` to `(…, E)`."""
        return product(x, layer.weight, layer.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, with a gradient where one is recorded: `(…, C)` times `(E, C)` transposed to `(…, E)`."""
    if not (torch.is_grad_enabled() and suits_onednn(x)):
        return linear(x, weight, bias)
    out: Tensor = LinearProduct.apply(x, weight, bias)
    return out


class LinearProduct(torch.autograd.Function):
    """`y = W x + b` and its gradients, all by `cpu_products`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`(…, C)`, `(E, C)` and `(E,)` to `(…, E)`."""
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("a linear layer")
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])  # (M, E)
        # dx = dy W, dW = dyᵀ x, db = Σ dy
        grad_x = linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = weight_gradient(flat, x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


class DirectAttention:
    """Equation 1 by `cpu_products`, where these are faster for the number of tokens."""

    @staticmethod
    def applies(config: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
        """Whether nothing drops weights, and nothing is recorded but what `AttentionProduct` has a gradient for."""
        return may_fuse(config, query, key, value) and attends_by_onednn(query, key, dropout)

    @staticmethod
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`(B, heads, N, d)`, and twice `(B, heads, N/R², d)`, to `(B, heads, N, d)`."""
        if not torch.is_grad_enabled():
            return attention(query, key, value)
        out: Tensor = AttentionProduct.apply(query, key, value)
        return out


class AttentionProduct(torch.autograd.Function):
    """`softmax(Q Kᵀ / sqrt(d)) V` and its gradients by `cpu_products`; keeps its arguments alone."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`(B, heads, N, d)`, and twice `(B, heads, M, d)`, to `(B, heads, N, d)`."""
        ctx.save_for_backward(query, key, value)
        return attention(query, key, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the attention")
        return attention_gradients(grad, *ctx.saved_tensors)


class FusedProjections:
    """Layer norm, query, key and value of a block: `NormQueryKeyValue`."""

    @staticmethod
    def applies(block: Any, x: Tensor) -> bool:
        """Whether nothing between the block's input and the attention's products is replaced or hooked."""
        attention: Any = getattr(block.attention, "self", None)
        return (
            may_fuse(block.config, x)
            and keeps_to_cache(x)
            and is_eager()
            and is_plain(block.layer_norm_1, nn.LayerNorm)
            and is_plain(block.attention, "SegformerAttention")
            and is_plain(attention, "SegformerEfficientSelfAttention")
            and min(x.shape[1:3]) >= attention.ratio  # a smaller map is padded first
            and is_plain(attention.query, nn.Linear)
            and JointKeyValue.applies(attention, x)
            and (attention.ratio == 1 or MatrixReduction.applies(attention, x))
            and (attention.ratio == 1 or is_plain(attention.layer_norm, nn.LayerNorm))
        )

    @staticmethod
    def run(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(B, H, W, C)` to the query `(B, N, C)` and to key and value `(B, N/R², C)`."""
        norm, attention = block.layer_norm_1, block.attention.self
        query, key_value = attention.query, JointKeyValue.weights(attention)
        weights = ProjectionWeights(norm.weight, norm.bias, query.weight, query.bias, *key_value)
        eps = reduction_eps = norm.eps
        if attention.ratio > 1:
            reduction_eps = attention.layer_norm.eps
            weights = weights._replace(
                reduction_weight=MatrixReduction.matrix(attention),
                reduction_bias=attention.sr.bias,
                reduction_norm_weight=attention.layer_norm.weight,
                reduction_norm_bias=attention.layer_norm.bias,
            )
        query, key_value = NormQueryKeyValue.apply(x, attention.ratio, eps, reduction_eps, *weights)
        key, value = key_value.chunk(2, -1)
        return query, key, value


class ProjectionWeights(NamedTuple):
    """What `NormQueryKeyValue` reads besides the map; in its backward pass, the gradients of each."""

    norm_weight: Any  # (C,)
    norm_bias: Any
    query_weight: Any  # (C, C)
    query_bias: Any
    key_value_weight: Any  # (2·C, C)
    key_value_bias: Any
    reduction_weight: Any = None  # (C, R²·C), the convolution as a matrix; from here on None for R = 1
    reduction_bias: Any = None
    reduction_norm_weight: Any = None  # (C,)
    reduction_norm_bias: Any = None


class NormQueryKeyValue(torch.autograd.Function):
    """Query, and key and value side by side, of a block: of the layer norm's and the reduction's maps none is kept.

    `query(n)` and `key|value(layer_norm(sr(n)))` with `n = layer_norm(x)`; for R = 1 `key|value(n)`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ratio: int, eps: float, reduction_eps: float, *weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`(B, H, W, C)` to the query `(B, N, C)` and key and value `(B, N/R², 2·C)`.

        Args:
            ratio: R.
            eps, reduction_eps: of the block's layer norm, and of the reduction's.
            weights: `ProjectionWeights`.
        """
        w = ProjectionWeights(*weights)
        ctx.dtype, x = x.dtype, x.to(w.norm_weight.dtype)
        normed = F.layer_norm(x, x.shape[-1:], w.norm_weight, w.norm_bias, eps)
        reduced = normed.flatten(1, 2)  # (B, N, C)
        if ratio > 1:
            reduced = linear(unfold_patches(normed, ratio), w.reduction_weight, w.reduction_bias)  # (B, N/R², C)
            norm = (w.reduction_norm_weight, w.reduction_norm_bias)
            reduced = F.layer_norm(reduced, x.shape[-1:], *norm, reduction_eps)
        query = linear(normed.flatten(1, 2), w.query_weight, w.query_bias)
        ctx.save_for_backward(x, *w)
        ctx.settings = query.dtype, ratio, eps, reduction_eps
        return query, linear(reduced, w.key_value_weight, w.key_value_bias)

    @staticmethod
    def backward(ctx: Any, grad_query: Tensor, grad_key_value: Tensor) -> Any:
        refuse_second_derivative("the attention's projections")
        x, *saved = ctx.saved_tensors
        w, (dtype, ratio, eps, reduction_eps) = ProjectionWeights(*saved), ctx.settings
        c = x.shape[-1]

        # n = norm(x), a second time
        normed, mean, rstd = torch.native_layer_norm(x, [c], w.norm_weight, w.norm_bias, eps)  # (B, H, W, C)
        values = normed.to(dtype)

        # q = Wq n + bq and kv = Wkv r + bkv: dn = dq Wq so far, dr = dkv Wkv
        grad_query = grad_query.to(dtype).reshape(-1, c)  # (M, C)
        grad_key_value = grad_key_value.to(dtype).reshape(-1, 2 * c)  # (M/R², 2·C)
        grad_reduced = linear(grad_key_value, w.key_value_weight.to(dtype).t())  # (M/R², C)
        grad_normed = linear(grad_query, w.query_weight.to(dtype).t()).view_as(x)

        # r = n for R = 1, else r = norm(sr(n)): the rest of dn, through the reduction
        if ratio == 1:
            reduced = values.view(-1, c)
            grad_normed += grad_reduced.view_as(x)
            grads_reduction: tuple[Any, ...] = (None,) * 4
        else:
            reduced, grads_reduction = _reduction_backward(w, values, grad_reduced, grad_normed, ratio, reduction_eps)

        # dx, and of the norm dgamma = Σ dn ⊙ (x - mean) rstd, dbeta = Σ dn
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_normed.to(x.dtype), x, [c], mean, rstd, w.norm_weight, w.norm_bias, [True, True, True]
        )
        # of a linear layer dW = dyᵀ x and db = Σ dy
        query = (weight_gradient(grad_query, values.view(-1, c)), grad_query.sum(0))
        key_value = (weight_gradient(grad_key_value, reduced), grad_key_value.sum(0))
        grads = ProjectionWeights(grad_norm_weight, grad_norm_bias, *query, *key_value, *grads_reduction)
        return grad_x.to(ctx.dtype), None, None, None, *grads


def _reduction_backward(
    w: ProjectionWeights, values: Tensor, grad_reduced: Tensor, grad_normed: Tensor, ratio: int, eps: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The backward pass of `r = norm(Ws p + bs)`, p being the patches of n = `values` (B, H, W, C).

    Adds its part of dn to `grad_normed`. Returns r `(M/R², C)` and the gradients of Ws, bs and the norm's two weights.
    """
    dtype, c = values.dtype, values.shape[-1]
    norm_weight, norm_bias = w.reduction_norm_weight, w.reduction_norm_bias
    # z = Ws p + bs and r = norm(z), a second time
    patches = unfold_patches(values, ratio)  # (B, N/R², R²·C)
    before = linear(patches, w.reduction_weight.to(dtype), w.reduction_bias.to(dtype)).to(w.norm_weight.dtype)
    reduced, mean, rstd = torch.native_layer_norm(before, [c], norm_weight, norm_bias, eps)
    # dz of dr, with those of the norm's weights
    grad_before, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
        grad_reduced.view_as(before).to(before.dtype), before, [c], mean, rstd, norm_weight, norm_bias, [True] * 3
    )
    # dWs = dzᵀ p, dbs = Σ dz; dp = dz Ws goes back to where each patch lies in n
    grad_before = grad_before.to(dtype).view(-1, c)
    grad_weight = weight_gradient(grad_before, patches.view(len(grad_before), -1))
    del patches
    add_patches(grad_normed, linear(grad_before, w.reduction_weight.to(dtype).t()), ratio)
    return reduced.to(dtype).view(-1, c), (grad_weight, grad_before.sum(0), grad_norm_weight, grad_norm_bias)


def unfold_patches(x: Tensor, ratio: int) -> Tensor:
    """Patches of R x R pixels of `(B, H, W, C)`, side by side, without a remainder: `(B, N/R², R²·C)`."""
    b, h, w, c = x.shape
    down, across = h // ratio, w // ratio
    x = x[:, : down * ratio, : across * ratio].reshape(b, down, ratio, across, ratio, c)
    return x.transpose(2, 3).reshape(b, down * across, ratio * ratio * c)


def add_patches(x: Tensor, values: Tensor, ratio: int) -> None:
    """Add `values`, laid out as `unfold_patches(x)` is, to `x` (B, H, W, C)."""
    b, h, w, c = x.shape
    down, across = h // ratio, w // ratio
    target = x[:, : down * ratio, : across * ratio].unflatten(2, (across, ratio)).unflatten(1, (down, ratio))
    target += values.view(b, down, across, ratio, ratio, c).transpose(2, 3)  # (B, down, R, across, R, C)


# --- fast paths of the block -----------------------------------------------------------------------------------------


class AddedDropPath:
    """Stochastic depth and the sum with the residual stream, in one operation."""

    @staticmethod
    def applies(block: Any, x: Tensor, y: Tensor) -> bool:
        """Whether nothing observes the dropping; of two types (autocast's), one would be converted first."""
        return may_fuse(block.config, x, y) and x.dtype == y.dtype and is_plain(block.drop_path, "SegformerDropPath")

    @staticmethod
    def run(block: Any, x: Tensor, y: Tensor) -> Tensor:
        """`x + drop_path(y)` of two maps `(B, H, W, C)`."""
        mask = block.drop_path.mask(y)
        return x + y if mask is None else torch.addcmul(x, y, mask)


# --- the fast path of the Mix-FFN ------------------------------------------------------------------------------------


class FusedMixFFN:
    """Layer norm and Mix-FFN of a block: in training `MixFFN`, without autograd `mix_ffn` over strips."""

    @staticmethod
    def applies(block: Any, x: Tensor) -> bool:
        """Whether the activation is GELU, no dropout is on, and nothing is replaced or hooked."""
        mlp = block.mlp
        return (
            may_fuse(block.config, x)
            and keeps_to_cache(x)
            and is_eager()
            and is_plain(block.layer_norm_2, nn.LayerNorm)
            and is_plain(mlp, "SegformerMixFFN")
            and is_plain(mlp.dense1, nn.Linear)
            and is_plain(mlp.dwconv, "SegformerDepthwiseConv")
            and is_plain_convolution(mlp.dwconv.dwconv, 3, padding=1, groups=mlp.dense1.out_features)
            and is_plain(mlp.activation, GELUActivation)
            and is_plain(mlp.dense2, nn.Linear)
            and is_idle(mlp.dropout, nn.Dropout)
        )

    @staticmethod
    def run(block: Any, x: Tensor) -> Tensor:
        """`(B, H, W, C)` to the same shape."""
        norm, mlp = block.layer_norm_2, block.mlp
        dense1, conv, dense2 = mlp.dense1, mlp.dwconv.dwconv, mlp.dense2
        weights = MixFFNWeights(
            norm.weight, norm.bias, dense1.weight, dense1.bias, conv.weight, conv.bias, dense2.weight, dense2.bias
        )
        if torch.is_grad_enabled():
            result: Tensor = MixFFN.apply(x, norm.eps, *weights)
            return result
        return mix_ffn(x, norm.eps, weights)


class MixFFNWeights(NamedTuple):
    """What the fused Mix-FFN reads besides the map; E = ratio·C."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor
    weight1: Tensor  # (E, C)
    bias1: Tensor
    conv_weight: Tensor  # (E, 1, 3, 3)
    conv_bias: Tensor
    weight2: Tensor  # (C, E)
    bias2: Tensor

    def cast(self, dtype: torch.dtype) -> MixFFNWeights:
        """The weights of the products in `dtype`; a layer norm keeps its own, as under autocast."""
        return MixFFNWeights(*self[:2], *(value.to(dtype) for value in self[2:]))


class MixFFN(torch.autograd.Function):
    """`dense2(gelu(dwconv(dense1(layer_norm(x)))))` of a map `(B, H, W, C)`, of which only x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, *weights: Tensor) -> Tensor:
        """`(B, H, W, C)`, and `MixFFNWeights`, to the same shape."""
        w = MixFFNWeights(*weights)
        ctx.dtype, ctx.eps, x = x.dtype, eps, x.to(w.norm_weight.dtype)
        ctx.save_for_backward(x, *w)
        out = mix_ffn(x, eps, w)
        ctx.compute_dtype = out.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        refuse_second_derivative("the Mix-FFN")
        x, *saved = ctx.saved_tensors
        dtype = ctx.compute_dtype
        w = MixFFNWeights(*saved).cast(dtype)
        c, width = x.shape[-1], len(w.conv_weight)
        norm = (w.norm_weight, w.norm_bias)
        train = any(ctx.needs_input_grad[2:])  # or only pass the gradient on, as with frozen weights
        grad_x = torch.empty_like(x)
        sums: list[Tensor] = []
        for part in _groups_of_images(x, width):
            # n = norm(x), v = W1 n + b1, u = conv(v): a second time, as in the forward pass
            normed, mean, rstd = torch.native_layer_norm(x[part], [c], *norm, ctx.eps)
            normed = normed.to(dtype)
            before = linear(normed, w.weight1, w.bias1)  # v (b, H, W, E)
            wide = _depthwise(before, w.conv_weight, w.conv_bias)  # u (b, H, W, E)

            # y = W2 g + b2 with g = gelu(u): dW2 = dyᵀ g, dg = dy W2
            grad_out = grad[part].to(dtype).reshape(-1, c)  # (M, C)
            grad_weight2 = weight_gradient(grad_out, F.gelu(wide).reshape(-1, width)) if train else None
            grad_wide = linear(grad_out, w.weight2.t()).view_as(wide)
            # du = dg ⊙ gelu'(u), with gelu'(u) = Φ(u) + u φ(u)
            grad_wide = torch.ops.aten.gelu_backward(grad_wide, wide)
            del wide
            # dv is du convolved with the flipped kernel; the kernel's gradient at an offset o is Σ du ⊙ v shifted by o
            grad_before, grad_conv_weight, grad_conv_bias = torch.ops.aten.convolution_backward(
                grad_wide.permute(0, 3, 1, 2),
                before.permute(0, 3, 1, 2),
                w.conv_weight,
                [width],  # of the bias
                [1, 1],  # stride
                [1, 1],  # padding
                [1, 1],  # dilation
                False,
                [0, 0],
                width,  # groups
                [True, train, train],
            )
            del grad_wide, before
            # dn = dv W1, and dx of dn through the norm
            grad_before = grad_before.permute(0, 2, 3, 1).reshape(-1, width)  # (M, E)
            grad_normed = linear(grad_before, w.weight1.t()).view_as(x[part]).to(x.dtype)  # (b, H, W, C)
            grad_x[part], *grads_norm = torch.ops.aten.native_layer_norm_backward(
                grad_normed, x[part], [c], mean, rstd, *norm, [True, train, train]
            )
            # dW1 = dvᵀ n, and of each bias the sum over pixels; parts of the batch add up
            if train:
                grad_conv_weight = grad_conv_weight.flatten(1).view(w.conv_weight.shape)  # in the strides of the weight
                linear1 = (weight_gradient(grad_before, normed.view(-1, c)), grad_before.sum(0))
                linear2 = (grad_weight2, grad_out.sum(0))
                sums = _add(sums, *grads_norm, *linear1, grad_conv_weight, grad_conv_bias, *linear2)
        return grad_x.to(ctx.dtype), None, *(sums if train else [None] * len(w))


def mix_ffn(x: Tensor, eps: float, w: MixFFNWeights) -> Tensor:
    """The same without autograd: over strips, whose wide maps stay in the cache.

    A strip sees one row more on each side, as the convolution does.
    """
    height = x.shape[1]
    rows = strip_rows(x.shape[2] * len(w.weight1), x.device)
    if rows >= len(x) * height:
        normed = F.layer_norm(x, x.shape[-1:], w.norm_weight, w.norm_bias, eps)
        wide = _depthwise(linear(normed, w.weight1, w.bias1), w.conv_weight, w.conv_bias)  # (B, H, W, E)
        return linear(F.gelu(wide), w.weight2, w.bias2)
    device = x.device.type
    out = torch.empty_like(x, dtype=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
    weight2, bias2 = w.weight2.to(out.dtype), w.bias2.to(out.dtype)
    for i in range(len(x)):
        for first in range(0, height, rows):
            last = min(first + rows, height)
            top, bottom = max(first - 1, 0), min(last + 1, height)
            normed = F.layer_norm(x[i : i + 1, top:bottom], x.shape[-1:], w.norm_weight, w.norm_bias, eps)
            wide = _depthwise(linear(normed, w.weight1, w.bias1), w.conv_weight, w.conv_bias)  # (1, rows + 2, W, E)
            # the convolution padded the outer rows with zeros: right at the border of the map, elsewhere cut off
            wide = F.gelu(wide[0, first - top : last - top]).flatten(0, 1)  # (rows W, E)
            linear_into(out[i, first:last].flatten(0, 1), wide, weight2, bias2)
    return out


def _groups_of_images(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the batch `(B, H, W, C)`: the images whose maps of `width` channels fill one strip, at least one."""
    images = strip_rows(x.shape[1] * x.shape[2] * width, x.device)
    return (slice(start, start + images) for start in range(0, len(x), images))


def _add(sums: list[Tensor], *terms: Any) -> list[Tensor]:
    return [total.add_(term) for total, term in zip(sums, terms, strict=True)] if sums else list(terms)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A zero-padded 3x3 depthwise convolution of a map `(B, H, W, E)`."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)
