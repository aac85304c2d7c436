"""The networks of Wan2.1 and of its tiny autoencoder: maths only, no stream data."""
