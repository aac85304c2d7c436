"""Stages of a model as ONNX graphs, for runtimes other than PyTorch."""
