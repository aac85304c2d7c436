"""Films made here, from timelines and clips, without a server."""
