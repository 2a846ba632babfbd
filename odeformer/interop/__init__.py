"""Other people's weights, in and out; `import odeformer` does not import it."""

from odeformer.interop.hub import find_folder
from odeformer.interop.own import load_safetensors, save_safetensors
from odeformer.interop.positions import resample_positions
from odeformer.interop.preparation import ImagePreparation, has_preparation, load_preparation
from odeformer.interop.pretrained import load_config, load_pretrained, save_pretrained

__all__ = [
    "ImagePreparation",
    "find_folder",
    "has_preparation",
    "load_config",
    "load_preparation",
    "load_pretrained",
    "load_safetensors",
    "resample_positions",
    "save_pretrained",
    "save_safetensors",
]
