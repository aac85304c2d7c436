"""TensorRT plans of a model's stages: what builds them, and where they are kept."""
