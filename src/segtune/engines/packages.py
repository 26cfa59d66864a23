"""Packages of the extras that engines and files for other runtimes need: told before the work that ends in them."""

from __future__ import annotations

from importlib.util import find_spec

from segtune.errors import UsageError

_EXTRAS = {
    "coremltools": "coreml",
    "nncf": "quantize",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
}


def require(what: str, *packages: str) -> None:
    """Raise UsageError, with the extra that brings it, for the first package that is not installed; imports none.

    Args:
        what: that needs them, for the message.
    """
    for name in packages:
        if find_spec(name) is None:
            raise UsageError(f"{what} needs the package {name}: pip install 'segtune[{_EXTRAS[name]}]'")
