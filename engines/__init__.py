"""Models on one device and the state of their streams: what turns prompts into latents and pictures.

The way of a block: `streaming.generator` (open, set prompt, generate, decode, close) asks `streaming.rollout` for
the passes of a block, and the runner (`runner.protocol`) for how each is run: plain (`runner.eager` lends the
transformer of `wan` each stream's part of `cache`) or on kernels and recorded graphs (`runner.fused`,
`device.cuda_graph`). Clean latents go to `vae`. All that a stream owns is one object, `streaming.stream`.

A room imports rooms named before it, never one of its own line or after:

    config    sizes and options, plain numbers; `errors` is beside it
    device    one device and no model           sampling   noise levels and noise
    text      words to prompts                  vae        latents to frames and back
    wan       the denoiser's maths              cache      slots, positions, bytes of keys and values
    export    stages as ONNX graphs             plans      graphs to TensorRT's plans
    loading   files to networks                 bindings   graphs and plans on onnxruntime and TensorRT
    runner    one pass over a batch
    streaming streams and what makes their blocks
    quantization  a model's weights to 8 bits
    pocket    a small model of our own: its world, its training

A model is added in `config.presets`, a new network as a room beside `wan`, a way to run passes in `runner`.
"""

import os

# OpenMP's threads wait asleep. Spinning, they would keep a core from whoever else wants it, and from the thread
# that they wait for: with one of two cores busy a film took six times as long. Read as torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
