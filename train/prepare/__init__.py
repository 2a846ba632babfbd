"""Preparation of tensorflow-datasets sets, without TensorFlow."""
