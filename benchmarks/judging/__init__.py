"""Whether films show what their prompts say, and go on doing so."""
