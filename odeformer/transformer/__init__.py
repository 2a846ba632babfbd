"""The vector field of a transformer, and its weights over depth."""
