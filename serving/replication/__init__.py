"""What must outlive a replica: who owns a session, and the standby copy of it."""
