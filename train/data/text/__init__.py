"""Texts: read, made into tokens, and cut into the blocks that a model is trained on."""
