"""How the pocket model is trained, from its world."""
