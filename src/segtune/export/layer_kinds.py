"""The layers of a SegFormer in its exported graph, by kind: which parts of the paper's network a node belongs to."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from segtune.errors import DataError
from segtune.export.diagnosis import SCOPES

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS = {
    "embed": "patch embeddings",
    "reduce": "sequence reduction",
    "expand": "Mix-FFN dense 1",
    "depthwise": "depthwise convolutions",
    "contract": "Mix-FFN dense 2",
    "classifier": "classifier",
}
_PRODUCTS = {"query": "queries", "key_value": "keys and values", "output": "attention output"}
KINDS = (
    "patch embeddings",
    "sequence reduction",
    "queries",
    "keys and values",
    "attention scores",  # the product of queries and keys
    "softmax",
    "attention sums",  # the product of the softmax and the values
    "attention output",
    "Mix-FFN dense 1",
    "depthwise convolutions",
    "Mix-FFN activation",
    "Mix-FFN dense 2",
    "residual sums",
    "layer norms",
    "head projections",  # with the fusing convolution, which the export folds into them
    "head sums",  # upsampled and added: the rest of fusing
    "classifier",
)
PARTS = ("stage 1", "stage 2", "stage 3", "stage 4", "head")


class Layer(NamedTuple):
    """A node that a quantiser may take.

    Attributes:
        name: of the node.
        output: the name of its first output.
        kind: one of `KINDS`.
        part: "stage 1" and so on, or "head".
    """

    name: str
    output: str
    kind: str
    part: str


def layers_of(graph: onnx.ModelProto) -> list[Layer]:
    """The layers of a graph that `logits_model` made, in the order in which they run.

    Raises:
        DataError: the graph does not say which modules its nodes come of.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph).graph
    maps = {
        value.name
        for value in [*inferred.value_info, *inferred.output]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    found, softmax = [], set()
    for node in graph.graph.node:
        if node.op_type == "Softmax":
            softmax.add(node.output[0])
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
        if scopes is None or node.output[0] not in maps:
            continue
        module = ast.literal_eval(scopes)[-2]
        kind = _kind(node.op_type, module, sums=not softmax.isdisjoint(node.input))
        if kind:
            found.append(Layer(node.name, node.output[0], kind, _part(module)))
    if not found:
        raise DataError("the graph does not tell its layers: export it from the checkpoint once more")
    return found


def _kind(operation: str, module: str, *, sums: bool) -> str | None:
    """Of a node in a module of `LogitsNetwork`; None where it moves numbers and computes none."""
    leaf = module.rpartition(".")[2]
    if operation == "LayerNormalization":
        return "layer norms"
    if operation == "Softmax":
        return "softmax"
    if leaf == "activation":
        return "Mix-FFN activation"
    if operation == "Conv":
        return "head projections" if ".projections." in module else _CONVOLUTIONS.get(leaf)
    if operation == "MatMul" and leaf == "attention":
        return "attention sums" if sums else "attention scores"
    if operation in {"MatMul", "Add"} and leaf in _PRODUCTS:
        return _PRODUCTS[leaf]
    if module == "head" and operation in {"Add", "Relu", "Resize"}:
        return "head sums"
    return "residual sums" if operation == "Add" and ".blocks." in module else None


def _part(module: str) -> str:
    first, _, rest = module.partition(".")
    return "head" if first == "head" else f"stage {int(rest.partition('.')[0]) + 1}"
