"""Streams that restyle a video: input, state, passes and the generator (StreamDiffusionV2)."""
