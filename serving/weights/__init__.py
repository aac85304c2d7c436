"""Model files: what there is, how it comes here, how it is opened."""
