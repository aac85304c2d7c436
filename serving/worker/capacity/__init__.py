"""What a device has time for: what blocks cost, who is let in, whether paces are held. No tensors."""
