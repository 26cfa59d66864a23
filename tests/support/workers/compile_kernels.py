"""Compiles Triton's kernels of segtune for a GPU that need not be there; prints the PTX of each as JSON.

Arguments: compute capability as in 75, type of the logits as in fp16, type of the labels as in u8.
"""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from segtune.segformer import triton_kernels

POINTERS = ("weight", "spread", "share", "lse", "sums", "gradient", "probability")
SIDES = {"PIXELS": triton_kernels._PIXELS, "COLUMNS": triton_kernels._COLUMNS, "LABELS": triton_kernels._LABELS}

capability, logits, labels = sys.argv[1:]
types = {"logits": f"*{logits}", "labels": f"*{labels}", "ids": "*i64", **dict.fromkeys(POINTERS, "*fp32")}
types |= {**dict.fromkeys(("scale_h", "scale_w", "confidence"), "fp32"), **dict.fromkeys(SIDES, "constexpr")}
found = {}
for name in ("_loss_kernel", "_gradient_kernel", "_prediction_kernel"):
    kernel = getattr(triton_kernels, name)
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={argument: types.get(argument, "i32") for argument in names},
        constexprs={(names.index(side),): value for side, value in SIDES.items() if side in names},
    )
    target = GPUTarget("cuda", int(capability), 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 4})
    assert compiled.asm["cubin"]  # assembled as well
    found[name] = compiled.asm["ptx"]
json.dump(found, sys.stdout)
