"""The sessions as clients see them: one service over many denoisers."""
