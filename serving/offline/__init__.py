"""Films made without a server."""
