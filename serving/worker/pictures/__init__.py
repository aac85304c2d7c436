"""The pictures of sessions that restyle a video: sampled, decoded, and encoded for their blocks."""
