"""The models that one trains."""
