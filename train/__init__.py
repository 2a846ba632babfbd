"""The training program: `python -m train --config=... --workdir=...`. Run from a checkout."""
