"""Augmentation on the device, inside the train step."""
