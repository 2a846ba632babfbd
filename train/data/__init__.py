"""Data on the host: sources of labelled images, and the batches made of them."""
