"""Ops on the frames between a video autoencoder's convolutions."""
