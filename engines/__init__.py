"""Models on one device and the state of their streams: what turns prompts into latents and pictures.

The way of a block: `generator` (open, set prompt, generate, decode, close) asks `rollout` for the passes of a
block, and `passes` for how each is run: plain (`memory` lends the transformer each stream's `kv_slab`) or on
kernels and recorded graphs (`kernel_passes`, `graphs`). Clean latents go to `wan.vae` or `wan.taehv`. All that
a stream owns is one object, `stream`.
"""
