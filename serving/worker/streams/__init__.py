"""What leaves a replica of a session: events for subscribers, deltas for the standby."""
