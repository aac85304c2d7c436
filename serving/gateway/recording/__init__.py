"""Recordings: files on the server's disk that a session's chunks are written to."""
