"""Who owns which session, carried out: replicas called, leases renewed, sessions placed and taken over."""
