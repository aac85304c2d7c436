"""What runs on Ray Serve. Nothing outside this room imports Ray."""
