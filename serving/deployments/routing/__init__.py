"""Which replica a request goes to, and how it is called."""
