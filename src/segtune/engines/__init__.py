"""Engines: the network outside of PyTorch, in OpenVINO and ONNX Runtime."""
