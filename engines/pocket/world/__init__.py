"""A procedural world, and captions that tell what it shows."""
