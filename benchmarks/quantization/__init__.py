"""What a model loses with its transformer in 8 bits: `python -m benchmarks.quantization`."""
