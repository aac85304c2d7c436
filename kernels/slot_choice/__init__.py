"""The choice of the slots of a window into which a pass writes, where it follows from the keys."""
