"""Runs the examples of exported programs, FOLDER INPUTS.npy LOGITS.npy each, without this project.

What an import of odeformer, flax or diffrax would raise here is what it raises where they are not
installed.
"""

import runpy
import sys

BLOCKED = ("odeformer", "train", "flax", "diffrax", "equinox", "safetensors", "tokenizers")


class Blocker:
    """Finds no module of the blocked packages."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    for package in BLOCKED:
        try:
            __import__(package)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{package} can be imported")

    arguments = sys.argv[1:]
    for place in range(0, len(arguments), 3):
        folder, inputs, logits = arguments[place : place + 3]
        sys.argv = [f"{folder}/run.py", inputs, logits]
        runpy.run_path(sys.argv[0], run_name="__main__")
