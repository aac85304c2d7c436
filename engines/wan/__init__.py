"""The denoiser: maths only, no stream."""
