"""Devices, processes, and how state and batches lie on them."""
