"""What `make demo` shows: sessions from prompts, and one that restyles a video."""
