"""Norms by the name in a config, the scale of a slope, and the dtype of all parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_name
from odeformer.transformer.checks import check_float64

Dtype = Any

NORMS = ("layer", "rms")

# What a norm adds to the variance, unless a config says otherwise.
EPSILON = 1e-6


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


def layer_norm(
    dtype: Dtype, name: str | None = None, affine: bool = True, epsilon: float = EPSILON
) -> nn.LayerNorm:
    """Returns a layer norm over the width, computed in float32 or above.

        norm(x) = scale (x - mean(x)) / sqrt(var(x) + epsilon) + bias

    Args:
      dtype: of the matrix products around it; sets the parameters' dtype.
      name: the submodule's name.
      affine: whether it has a scale and a bias of its own.
      epsilon: added to the variance.

    Returns:
      A flax module, [..., D] -> [..., D].

    Source: Ba, Kiros, Hinton, 'Layer Normalization', 2016, arXiv 1607.06450.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        param_dtype=param_dtype(dtype),
        name=name,
    )


class LayerScale(nn.Module):
    """Multiplies each channel of a term's slope by a factor that is learnt.

        f_j -> gamma_j f_j

    Attributes:
      width: D, size of the state's last axis.
      value: gamma at initialisation, small in a deep model, say 1e-5; None: there is no gamma, and
        the slope is returned as it is.
      dtype: dtype of the matrix products around it; sets the parameters' dtype.

    Source: Touvron et al., 'Going deeper with Image Transformers', 2021, arXiv 2103.17239.
    """

    width: int
    value: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, slope_BND: jax.Array) -> jax.Array:
        """[B, N, D] -> [B, N, D] of the same dtype."""
        if self.value is None:
            return slope_BND

        init = nn.initializers.constant(self.value)
        gamma_D = self.param("gamma", init, (self.width,), param_dtype(self.dtype))
        return slope_BND * gamma_D.astype(slope_BND.dtype)[None, None]


def param_dtype(dtype: Dtype) -> Dtype:
    """Returns the dtype of parameters and state: float64 under float64, else float32.

    Args:
      dtype: of the matrix products.

    Raises:
      ValueError: float64 while jax_enable_x64 is off, where JAX would compute in float32.
    """
    if jnp.dtype(dtype) != jnp.float64:
        return jnp.float32

    check_float64()
    return jnp.float64
