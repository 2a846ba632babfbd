"""Layer scale: a factor per channel that a term's slope is multiplied by."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.transformer.layers import Dtype, param_dtype


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
