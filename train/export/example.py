"""The example that is written next to a program, and runs it with jax, numpy and flatbuffers."""

EXAMPLE = "run.py"

_HEAD = '''"""Runs the program of this folder: python run.py INPUTS.npy LOGITS.npy

INPUTS.npy holds {holds}.
It needs jax, numpy and flatbuffers, and nothing else.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export

folder = pathlib.Path(__file__).parent
manifest = json.loads((folder / "manifest.json").read_text())
jax.config.update("jax_enable_x64", manifest["float64"])
program = export.deserialize(bytearray((folder / manifest["program"]).read_bytes()))
raw = np.load(sys.argv[1])
'''

_IMAGES = """
data = manifest["data"]
mean, std, peak = (np.asarray(data[key], np.float32) for key in ("mean", "std", "peak"))
inputs = ((raw.astype(np.float32) / peak - mean) / std,)
"""

_TOKENS = """
_, size = manifest["inputs"]["tokens"]["shape"]
padded = np.pad(raw, ((0, 0), (0, size - raw.shape[1])), constant_values=-1)
mask = padded >= 0
inputs = (np.where(mask, padded, 0).astype(np.int32){mask})
"""

_WEIGHTS = """
stored, dtypes = np.load(folder / manifest["weights"]["file"]), manifest["weights"]["dtypes"]
weights = jax.device_put({name: stored[name].view(dtype) for name, dtype in dtypes.items()})
"""

_RUN = """
logits = np.asarray(jax.jit(program.call)({weights}*inputs))
np.save(sys.argv[2], logits)
"""

_CLASSES = """print([manifest["data"]["classes"][place] for place in logits.argmax(-1)])
"""

_NEXT = """last = logits[np.arange(len(raw)), mask.sum(1) - 1]
print(last.argmax(-1).tolist())  # the token that follows each text
"""

_PIXELS = "pixels [batch, height, width, channels] as the data set has them"
_NUMBERS = "token numbers [batch, tokens], -1 for padding on the right"

_PARTS = {
    "images": (_PIXELS, _IMAGES, _CLASSES),
    "sentences": (_NUMBERS, _TOKENS.format(mask=", mask"), _CLASSES),
    "language": (_NUMBERS, _TOKENS.format(mask=","), _NEXT),
}


def example(task: str, weights: str) -> str:
    """Returns the text of the example.

    Args:
      task: 'images', 'sentences' or 'language'.
      weights: 'inside' the program or 'beside' it.
    """
    holds, inputs, answer = _PARTS[task]
    beside = weights == "beside"
    parts = (_HEAD.format(holds=holds), inputs, _WEIGHTS if beside else "")
    return "".join(parts) + _RUN.format(weights="weights, " if beside else "") + answer
