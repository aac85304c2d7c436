"""Commands for models: which there are, bringing them here, making them smaller."""
