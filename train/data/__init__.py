"""Data: sources of examples, the order they are read in, and what is done to them on the device."""
