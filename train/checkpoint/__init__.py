"""Checkpoints: saved, verified and restored; the workdir that holds them."""

from train.checkpoint.predictor import load_predictor
from train.checkpoint.weights import load_model

__all__ = ["load_model", "load_predictor"]
