"""Training the transformer: stretches of streams, flow matching on true pasts, rollouts on its own."""
