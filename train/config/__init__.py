"""What a run is configured by: frozen dataclasses, and the border to a ConfigDict."""
