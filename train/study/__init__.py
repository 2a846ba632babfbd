"""Studies: grids of runs, and their tables."""
