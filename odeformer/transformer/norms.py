"""Norms of the state, and of queries and keys, by the name in a config."""

import flax.linen as nn

from odeformer.errors import check_name
from odeformer.transformer.layers import Dtype, layer_norm, param_dtype

NORMS = ("layer", "rms")


def make_norm(kind: str, dtype: Dtype, epsilon: float, name: str | None = None) -> nn.Module:
    """Returns a norm over the last axis, computed in float32 or above.

        layer: see `layer_norm`;    rms: norm(x) = scale x / sqrt(mean(x^2) + epsilon)

    Args:
      kind: 'layer' or 'rms'.
      dtype: of the matrix products around it; sets the parameters' dtype.
      epsilon: added to the variance, or to the mean square.
      name: the submodule's name.

    Returns:
      A flax module, [..., D] -> [..., D].

    Raises:
      ValueError: another kind.

    Source: Zhang, Sennrich, 'Root Mean Square Layer Normalization', 2019, arXiv 1910.07467.
    """
    check_name("norm", kind, NORMS)
    if kind == "layer":
        return layer_norm(dtype, name=name, epsilon=epsilon)

    return nn.RMSNorm(epsilon=epsilon, param_dtype=param_dtype(dtype), name=name)
