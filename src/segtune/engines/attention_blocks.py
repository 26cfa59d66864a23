"""Attention a block of queries at a time, for engines that do not fuse it: ONNX Runtime, natively and in browsers.

There the scores of all queries with all keys are a tensor, and their softmax another: at 2048x2048 the first stage has
262,144 x 4,096 of them, 4.3 GB. The softmax of a query needs its own scores alone, so that a `Loop` over blocks of
queries computes the same numbers in bounded memory. OpenVINO fuses the three nodes by itself, and would not in a loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

BLOCK = 2**20  # scores of a block, 4 MB: what stays in a cache
DOMAIN, NAME = "segtune", "attention"


def attend_in_blocks(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that gives the same values; its products of queries and keys are at most `BLOCK` numbers, or one query's.

    Args:
        model: has `softmax(Q Kᵀ) V` as the nodes MatMul, Softmax and MatMul, of tensors with the axes batch, heads,
            tokens and channels, as `logits_model` makes it; what is quantised in between stays as it is.
    """
    import onnx
    from onnx import helper, inliner, parser

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph, inner = changed.graph, set()
    makers = {name: node for node in graph.node for name in node.output}
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        scores, sums = makers.get(softmax.input[0]), takers.get(softmax.output[0], [])
        if scores is None or [scores.op_type, *(node.op_type for node in sums)] != ["MatMul", "MatMul"]:
            continue
        call = helper.make_node(NAME, [*scores.input, sums[0].input[1]], sums[0].output, domain=DOMAIN)
        call.metadata_props.extend(sums[0].metadata_props)
        sums[0].CopyFrom(call)
        inner |= {*scores.output, *softmax.output}
    if not inner:
        return changed
    nodes = [node for node in graph.node if node.output[0] not in inner]
    values = [value for value in graph.value_info if value.name not in inner]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.value_info.extend(values)
    opset = next(found.version for found in changed.opset_import if found.domain == "")
    changed.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    changed.functions.append(parser.parse_function(_attention(opset)))
    flat = inliner.inline_local_functions(changed)
    del flat.opset_import[[found.domain for found in flat.opset_import].index(DOMAIN)]
    return flat


def _attention(opset: int) -> str:
    """A function of queries `(B, heads, N, d)`, keys `(B, heads, d, M)` and values `(B, heads, M, d)`."""
    return f"""
    <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {NAME} (queries, keys, values) => (y)
    {{
        axis_0 = Constant <value = int64[1] {{0}}> ()
        axis_2 = Constant <value = int64[1] {{2}}> ()
        minus_1 = Constant <value = int64[1] {{-1}}> ()
        one_1 = Constant <value = int64[1] {{1}}> ()
        none = Constant <value = int64 {{0}}> ()
        next = Constant <value = int64 {{1}}> ()
        yes = Constant <value = bool {{1}}> ()
        budget = Constant <value = int64[1] {{{BLOCK}}}> ()
        maps = Shape <start = 0, end = 2> (queries)
        n = Shape <start = 2, end = 3> (queries)
        d = Shape <start = 3, end = 4> (queries)
        m = Shape <start = 3, end = 4> (keys)
        many = ReduceProd <keepdims = 1> (maps, axis_0)
        of_query = Mul (many, m)
        fitting = Div (budget, of_query)
        at_least_1 = Max (fitting, one_1)
        step_1 = Min (at_least_1, n)
        padded = Add (n, step_1)
        padded_1 = Sub (padded, one_1)
        blocks_1 = Div (padded_1, step_1)
        blocks = Squeeze (blocks_1)
        step = Squeeze (step_1)
        within = Range (none, step, next)
        last = Sub (n, one_1)
        parts = Loop <body = block (int64 number, bool go) => (bool go_on, float[?, ?, ?, ?] part) {{
            go_on = Identity (go)
            first = Mul (number, step_1)
            from_first = Add (within, first)
            places = Min (from_first, last)
            some = Gather <axis = 2> (queries, places)
            scores = MatMul (some, keys)
            weights = Softmax <axis = -1> (scores)
            part = MatMul (weights, values)
        }}> (blocks, yes)
        in_order = Transpose <perm = [1, 2, 0, 3, 4]> (parts)
        shape = Concat <axis = 0> (maps, minus_1, d)
        joined = Reshape (in_order, shape)
        y = Slice (joined, axis_0, n, axis_2)
    }}
    """
