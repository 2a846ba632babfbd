"""What the configs share."""

import ml_collections
from ml_collections import config_dict


def get_depth(**changes) -> ml_collections.ConfigDict:
    """Returns the keys of `depth`; None where the library's default or nothing applies."""
    depth = ml_collections.ConfigDict(
        dict(
            layers=12,
            share=1,
            solver="euler",
            steps=config_dict.placeholder(int),
            rtol=config_dict.placeholder(float),
            atol=config_dict.placeholder(float),
            max_steps=config_dict.placeholder(int),
            per_sample=False,
            adjoint="checkpoint",
            policy=config_dict.placeholder(str),
        )
    )
    depth.update(changes)
    return depth
