"""What a denoiser does with its sessions."""
