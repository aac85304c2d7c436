"""From a model's own weights to 8 bits."""
