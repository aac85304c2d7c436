"""The stages of a block beside the denoiser: prompts to embeddings, latents to chunks."""
