"""The parts of a transformer: MLP, damping, dropout; embeddings of patches, positions and time.

Arrays carry their axes in their names: B batch, N tokens, D width, M MLP width, P patch pixels.
"""

import functools
import math
import types
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from odeformer.errors import check_name
from odeformer.transformer.mesh import constrain
from odeformer.transformer.norms import Dtype, param_dtype
from odeformer.transformer.state import Context

# What may stand between an MLP's two products.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = types.MappingProxyType(
    {
        "gelu_tanh": nn.gelu,
        "gelu": functools.partial(nn.gelu, approximate=False),
        "relu": nn.relu,
        "silu": nn.silu,
    }
)
kernel_init = nn.initializers.lecun_normal()


class MLP(nn.Module):
    """Two dense layers with an activation between them, or three, one of which gates.

        down(activation(up(x))),    gated: down(activation(gate(x)) up(x))

    Attributes:
      width: size of the state's last axis.
      hidden: size of the hidden layer, M.
      dtype: dtype of the matrix products.
      activation: 'gelu_tanh', 'gelu', 'relu' or 'silu'; gated, 'silu' makes it SwiGLU and a GELU
        GeGLU.
      gated: whether a second product, activated, multiplies the hidden layer.
      bias: whether the products have biases.

    Source: Hendrycks, Gimpel, 'Gaussian Error Linear Units', 2016, arXiv 1606.08415 ('gelu' is
    exact, 'gelu_tanh' its approximation); Shazeer, 'GLU Variants Improve Transformer', 2020, arXiv
    2002.05202.
    """

    width: int
    hidden: int
    dtype: Dtype = jnp.float32
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True

    def __post_init__(self):
        check_name("activation", self.activation, ACTIVATIONS)
        super().__post_init__()

    def setup(self):
        options = dict(
            dtype=self.dtype, param_dtype=param_dtype(self.dtype), kernel_init=kernel_init
        )
        options["use_bias"] = self.bias
        if self.gated:
            self.gate = nn.Dense(self.hidden, **options)
        self.up = nn.Dense(self.hidden, **options)
        self.down = nn.Dense(self.width, **options)

    def __call__(self, x_BND: jax.Array, context: Context | None = None) -> jax.Array:
        """[B, N, D] -> [B, N, D] in the layer's dtype; the context has no effect."""
        if not self.gated:
            return self.activate(self.up(x_BND))

        axes = ("batch", "tokens", "mlp")
        gate_BNM = ACTIVATIONS[self.activation](constrain(self.gate(x_BND), axes))
        return self.down(gate_BNM * constrain(self.up(x_BND), axes))

    def activate(self, h_BNM: jax.Array) -> jax.Array:
        """The plain MLP after its first matrix product: [B, N, M] -> [B, N, D]."""
        activation = ACTIVATIONS[self.activation]
        return self.down(activation(constrain(h_BNM, ("batch", "tokens", "mlp"))))


class Damping(nn.Module):
    """Damps the state: each channel decays at a rate of its own, lambda > 0.

        out = -lambda y,    lambda = softplus(raw)

    Attributes:
      width: D, size of the state's last axis.
      rate: lambda at initialisation, per layer.
      dtype: dtype of the matrix products around it; sets the parameters' dtype.
    """

    width: int
    rate: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, y_BND: jax.Array, context: Context | None = None) -> jax.Array:
        """[B, N, D] -> [B, N, D] of the state's dtype; the context has no effect."""
        init = nn.initializers.constant(math.log(math.expm1(self.rate)))
        raw_D = self.param("raw", init, (self.width,), param_dtype(self.dtype))
        return -nn.softplus(raw_D.astype(y_BND.dtype))[None, None] * y_BND


class Dropout(nn.Module):
    """Drops entries, or whole samples, and scales the others up to keep the mean.

    The mask follows from the 'dropout' stream, with one key per apply. A sample's mask depends on
    the key and the sample's number only, not on its place in a batch or on a mesh.

    Attributes:
      whole: whether a sample is dropped or kept as a whole (stochastic depth).

    Sources: Srivastava et al., 'Dropout', 2014; Huang et al., 'Deep Networks with Stochastic
    Depth', 2016, arXiv 1603.09382.
    """

    whole: bool = False

    @nn.compact
    def __call__(
        self, x_BND: jax.Array, rate: float | jax.Array, samples_B: jax.Array
    ) -> jax.Array:
        """Drops with probability `rate`, which may be traced, in samples of these numbers."""
        key = self.make_rng("dropout")
        shape = (1,) * (x_BND.ndim - 1) if self.whole else x_BND.shape[1:]

        # One key per sample, not one for the batch: on any mesh the masks are the same.
        kept = jax.vmap(
            lambda sample: jax.random.uniform(jax.random.fold_in(key, sample), shape) >= rate
        )(samples_B)
        return jnp.where(kept, x_BND / jnp.asarray(1 - rate, x_BND.dtype), 0)


class PatchEmbedding(nn.Module):
    """Cuts images into patches and embeds each by one matrix product.

    Attributes:
      patch_size: side of a patch in pixels; it divides the image's sides.
      width: D, the size of an embedded patch.
      dtype: dtype of the matrix product.

    Source: Dosovitskiy et al., 'An Image is Worth 16x16 Words', 2021, arXiv 2010.11929.
    """

    patch_size: int
    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [B, height, width, channels] -> tokens [B, N, D], row by row."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        rows, columns = height // size, width // size

        # A transposition and a product do what a convolution of stride `size` would.
        patches = images.reshape((batch, rows, size, columns, size, channels))
        patches = patches.transpose((0, 1, 3, 2, 4, 5))
        patches_BNP = patches.reshape(batch, rows * columns, size * size * channels)

        return nn.Dense(
            self.width,
            dtype=self.dtype,
            param_dtype=param_dtype(self.dtype),
            kernel_init=kernel_init,
            name="projection",
        )(patches_BNP)


class TimeEmbedding(nn.Module):
    """Embeds a time in layers into a vector of the state's width, zero at initialisation.

    Attributes:
      width: D, the size of the state's last axis.
      frequencies: wavelengths, from 2 pi to 200 pi layers; each gives a sine and a cosine.
      dtype: dtype of the matrix products around it; sets the parameters' dtype. The embedding
        itself is computed in the time's.
    """

    width: int
    frequencies: int = 32
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """A scalar time -> [D] of the time's dtype."""
        # In the time's dtype throughout: bfloat16 holds only 8 bits of it.
        features = sinusoids(jnp.reshape(t, (1,)), 2 * self.frequencies, longest=100.0)
        return nn.Dense(
            self.width,
            dtype=t.dtype,
            param_dtype=param_dtype(self.dtype),
            kernel_init=nn.initializers.zeros,
            name="projection",
        )(features)[0]


def sinusoids(positions: jax.Array, width: int, longest: float = 10_000.0) -> jax.Array:
    """Encodes positions by sines and cosines of wavelengths that grow geometrically.

        [sin(p / w_i), cos(p / w_i)],    w_i = longest^(i / (width / 2 - 1)),    i < width / 2

    Args:
      positions: [N], of a floating dtype.
      width: even; half of it are sines, half cosines.
      longest: the longest wavelength over 2 pi, in the positions' unit; the shortest is 1.

    Returns:
      [N, width] of the positions' dtype, the sines first.

    Source: Vaswani et al. 2017, section 3.5.
    """
    # In JAX's widest dtype: the wavelengths are rounded once, to the positions' dtype.
    numbers = jnp.arange(width // 2, dtype=float)
    waves = jnp.exp(-math.log(longest) * numbers / max(width // 2 - 1, 1))
    angles = positions[:, None] * waves.astype(positions.dtype)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def grid_positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns fixed sine-cosine positions of a grid of patches.

    Args:
      rows: number of rows of patches.
      columns: number of columns of patches.
      width: D; 4 divides it.

    Returns:
      [rows * columns, width] float32, row by row: the first half of the width encodes the row, the
      second the column, each as `sinusoids` does.

    Source: Beyer, Zhai, Kolesnikov, 'Better plain ViT baselines', 2022, arXiv 2205.01580.
    """
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")

    # Computed now, though a model may be being traced: a constant of its program.
    with jax.ensure_compile_time_eval():
        halves = [
            sinusoids(jnp.asarray(axis.ravel(), jnp.float32), width // 2) for axis in (row, column)
        ]
        return np.concatenate([np.asarray(half) for half in halves], axis=-1)
