"""Models on one device and the state of their streams: what turns prompts into latents and pictures."""
