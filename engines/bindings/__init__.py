"""Stages run by onnxruntime or TensorRT instead of PyTorch, on the same tensors."""
