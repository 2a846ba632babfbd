"""Texts: read, tokenized, and cut into the blocks that a model is trained on."""
