"""Sessions and their streams across the loss of replicas and of managers."""
