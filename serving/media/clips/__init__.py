"""Clips: video files that others made, read as pictures, and their audio."""
