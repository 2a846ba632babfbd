"""Checkpoints: saved, verified and restored; the workdir that holds them."""
