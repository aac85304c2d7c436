"""From latents to frames and back, piece by piece."""
