"""A trained run for other programs: its weights in two layouts, or the whole program."""
