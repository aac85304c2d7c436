"""The protocol of `proto/` in terms of the other rooms."""
