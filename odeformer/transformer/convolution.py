"""A convolution over the sequence of tokens, of three places.

Arrays carry their axes in their names: B batch, N tokens, C new tokens of a chunk, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.transformer.layers import kernel_init
from odeformer.transformer.norms import Dtype, param_dtype
from odeformer.transformer.state import Context

# Of a token, from the first of the three that it sees; causal, these are itself and the two before.
CENTRED, CAUSAL = (-1, 0, 1), (-2, -1, 0)


class Convolution(nn.Module):
    """A convolution of three tokens, full over the width: one matrix product.

        out_i = sum_s x_(i + s) W_s + b,    s = -1, 0, 1;  causal: s = -2, -1, 0

    Beyond the ends, and in other segments, x counts as 0. Neighbours are neighbours in the
    sequence: a class token has the first patch as its only one.

    Attributes:
      width: D, size of the state's last axis.
      dtype: dtype of the matrix product.
      causal: whether a token sees only itself and those before it.
    """

    width: int
    dtype: Dtype = jnp.float32
    causal: bool = False

    def setup(self):
        # A product of three shifted copies does what a convolution would: W is [3, D, D].
        self.shifted = nn.DenseGeneral(
            self.width,
            axis=(-2, -1),
            dtype=self.dtype,
            param_dtype=param_dtype(self.dtype),
            kernel_init=kernel_init,
        )

    def __call__(self, x_BND: jax.Array, context: Context | None = None) -> jax.Array:
        """[B, N, D] -> [B, N, D] in the layer's dtype."""
        segments = None if context is None else context.segments
        copies = []
        for offset in CAUSAL if self.causal else CENTRED:
            copy_BND = _shifted(x_BND, offset)
            if segments is not None:
                same_BN1 = (_shifted(segments, offset) == segments)[..., None]
                copy_BND = jnp.where(same_BN1, copy_BND, 0)
            copies.append(copy_BND)

        return self.shifted(jnp.stack(copies, axis=2))

    def extend(self, x_BCD: jax.Array, tail_B2D: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Convolves C new tokens, of one segment, of which the last two before them are known.

        Returns:
          [B, C, D] in the layer's dtype, and all inputs in order, [B, 2 + C, D].
        """
        inputs = jnp.concatenate([tail_B2D.astype(x_BCD.dtype), x_BCD], axis=1)
        copies = [inputs[:, place : place + x_BCD.shape[1]] for place in range(len(CAUSAL))]
        return self.shifted(jnp.stack(copies, axis=2)), inputs


def _shifted(x: jax.Array, offset: int) -> jax.Array:
    """x_(i + offset) at each place i of the second axis, and 0 beyond its ends."""
    before, after = max(-offset, 0), max(offset, 0)
    padded = jnp.pad(x, ((0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)))
    return padded[:, after : after + x.shape[1]]
