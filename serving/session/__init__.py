"""The logic of one session, without tensors or network."""
