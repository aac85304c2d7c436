"""What a replica knows of its sessions, and counts."""
