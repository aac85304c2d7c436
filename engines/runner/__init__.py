"""One pass over a batch: where the denoiser meets the cache."""
