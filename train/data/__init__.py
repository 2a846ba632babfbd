"""Data on the host: splits of images and texts, and the batches that are read from them."""
