"""Encoded video: H.264, MP4, chunks and their clock."""
