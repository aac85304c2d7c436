"""The file formats of timelines: Longtake's own, Scope's two, and plain text."""
