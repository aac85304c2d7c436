"""Fused tensor operations. Each file holds one op: its shapes, its PyTorch reference and its checked wrapper."""
