"""The vision transformer: patches -> ODE over depth -> classes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import COUNT, COUNT_OR_ZERO, one_of, setting
from odeformer.errors import check_kind
from odeformer.models.checks import (
    SIDES,
    check_distillation,
    check_images,
    check_patches,
    check_sincos,
)
from odeformer.models.config import TransformerConfig
from odeformer.transformer.counts import sow_counts
from odeformer.transformer.depth import ODEStack
from odeformer.transformer.field import transformer_field
from odeformer.transformer.layers import Dropout, PatchEmbedding, grid_positions
from odeformer.transformer.mesh import sample_numbers
from odeformer.transformer.module import DepthModule
from odeformer.transformer.norms import make_norm, param_dtype

POOLS = ("token", "mean", "token_mean")
POSITIONS = ("learned", "sincos")
DISTILLATIONS = ("none", "token", "mean")


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A vision transformer.

    The other fields are those of `TransformerConfig`.

    Attributes:
      image_size: height and width in pixels, or a pair (height, width).
      patch_size: side of a patch in pixels; it divides the image's sides.
      channels: channels of an image.
      classes: C, number of classes; 0 for a model without a head, which returns the normed tokens.
      pool: 'token' reads the classes off a class token, 'mean' off the mean over the patches,
        'token_mean' off both of them joined.
      positions: 'learned', or 'sincos': fixed sines and cosines.
      distillation: 'none'; 'token', a second token after the class token, which no head reads; or
        'mean', a second token with a head of its own: the logits are the mean of the two heads'.
      registers: R, number of tokens that are read by attention and by no head, and that have no
        place in the grid; they stand before the patches.

    Raises:
      ValueError: sizes that do not fit one another, or a name that is not accepted.
    """

    image_size: int | tuple[int, int] = setting(SIDES, 32)
    patch_size: int = setting(COUNT, 4)
    channels: int = setting(COUNT, 3)
    classes: int = setting(COUNT_OR_ZERO, 10)
    _: dataclasses.KW_ONLY
    width: int = 192
    heads: int = 3
    mlp: int = 768
    pool: str = setting(one_of(POOLS), "token")
    positions: str = setting(one_of(POSITIONS), "learned")
    distillation: str = setting(one_of(DISTILLATIONS), "none")
    registers: int = setting(COUNT_OR_ZERO, 0)

    def __post_init__(self):
        # JSON has no tuples; as a list the config could not be hashed.
        if isinstance(self.image_size, list):
            object.__setattr__(self, "image_size", tuple(self.image_size))

        super().__post_init__()
        check_patches(self.image_size, self.image_shape[:2], self.patch_size)
        if self.positions == "sincos":
            check_sincos(self.width)
        check_distillation(self.distillation, self.pool, self.classes)

    @property
    def placed_tokens(self) -> int:
        """How many tokens precede the patches and have positions: those that heads may read."""
        return (self.pool != "mean") + (self.distillation != "none")

    @property
    def extra_tokens(self) -> int:
        """How many tokens precede the patches."""
        return self.placed_tokens + self.registers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        size = self.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return height, width, self.channels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.patch_size, width // self.patch_size


class ViT(DepthModule):
    """A vision transformer whose depth is an ODE.

    Attributes:
      config: its sizes and its depth.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv 2012.12877;
    registers: Darcet et al. 2023, arXiv 2309.16588.

    Examples:
      >>> import jax, odeformer
      >>> model = odeformer.ViT(odeformer.presets.vit("digits"))
      >>> images = jax.numpy.zeros((2, 8, 8, 1))
      >>> variables = jax.jit(model.init)(jax.random.key(0), images)
      >>> model.apply(variables, images).shape
      (2, 10)
    """

    config: ViTConfig

    def __post_init__(self):
        check_kind("ViT", self.config, ViTConfig)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
          images: [B, height, width, channels], of a floating dtype.
          train: whether dropout and drop-path act; then rngs={'dropout': key}.

        Returns:
          Logits [B, C] float32, float64 with dtype float64; with classes=0 the normed tokens
          [B, N, D], the class token first. With mutable=['ode'] also the solve's
          counts, aux['ode'] with 'nfe' int32 [G, terms], 'accepted', 'rejected' and 'result' int32
          [G] (per sample [G, B, terms] and [G, B]); a result other than 0 marks a solve that did
          not reach its end.

        Raises:
          ValueError: images of another shape or of a dtype that is not floating; or a config that
            this process cannot compute: dtype float64 without jax_enable_x64, attention 'cudnn'
            without an NVIDIA GPU.
        """
        config = self.config
        check_images(images, config.image_shape)
        dtype, state_dtype = jnp.dtype(config.dtype), param_dtype(config.dtype)

        # The state is float32 or above, whatever the matrix products are.
        patches_BND = PatchEmbedding(config.patch_size, config.width, dtype, name="patches")(images)
        y_BND = self._embed_positions(patches_BND.astype(state_dtype))
        if train and config.dropout:
            y_BND = Dropout()(y_BND, config.dropout, sample_numbers(y_BND.shape[0]))

        solution = ODEStack(config.depth, transformer_field(config), name="depth")(y_BND, train)
        sow_counts(self, solution)

        y_BND = make_norm(config.norm, dtype, config.norm_epsilon, name="norm")(solution.y1)
        if not config.classes:
            return y_BND

        logits = self._head(self._pooled(y_BND), "head")
        if config.distillation != "mean":
            return logits

        return (logits + self._head(y_BND[:, 1], "distillation_head")) / 2

    def _pooled(self, y_BND: jax.Array) -> jax.Array:
        """What the head reads, [B, D], and of two vectors joined [B, 2 D]."""
        pool, first = self.config.pool, self.config.extra_tokens
        if pool == "token":
            return y_BND[:, 0]

        mean_BD = (y_BND[:, first:] if first else y_BND).mean(axis=1)
        return mean_BD if pool == "mean" else jnp.concatenate([y_BND[:, 0], mean_BD], axis=-1)

    def _head(self, y_BD: jax.Array, name: str) -> jax.Array:
        """The logits of what a head reads, [B, C]."""
        dtype = param_dtype(self.config.dtype)
        head = nn.Dense(
            self.config.classes,
            dtype=dtype,
            param_dtype=dtype,
            kernel_init=nn.initializers.truncated_normal(0.02),
            name=name,
        )
        return head(y_BD).astype(dtype)

    def _embed_positions(self, y_BND: jax.Array) -> jax.Array:
        """Prepends the class token and the others that there are; adds positions."""
        config, init = self.config, nn.initializers.truncated_normal(0.02)
        batch, _, width = y_BND.shape

        # Before the other tokens, which have no place in the grid...
        if config.positions == "sincos":
            positions = jnp.asarray(grid_positions(*config.grid, width), y_BND.dtype)
            y_BND = y_BND + positions[None]

        names = ("class_token", "distillation_token")[: config.placed_tokens]
        before = []
        for name in names:
            token = self.param(name, init, (1, 1, width), y_BND.dtype)
            before.append(jnp.broadcast_to(token, (batch, 1, width)).astype(y_BND.dtype))
        if before:
            y_BND = jnp.concatenate([*before, y_BND], axis=1)

        # ... and after them, as learned positions give them some too.
        if config.positions == "learned":
            positions = self.param("positions", init, (1, y_BND.shape[1], width), y_BND.dtype)
            y_BND = y_BND + positions.astype(y_BND.dtype)

        if not config.registers:
            return y_BND

        shape = (1, config.registers, width)
        tokens = self.param("registers", init, shape, y_BND.dtype).astype(y_BND.dtype)
        tokens = jnp.broadcast_to(tokens, (batch, *shape[1:]))
        placed, patches = jnp.split(y_BND, [config.placed_tokens], axis=1)
        return jnp.concatenate([placed, tokens, patches], axis=1)
