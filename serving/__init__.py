"""Sessions, video encoding and the command line."""
