"""The text classifier: tokens -> ODE over depth, each token seeing all others -> classes."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import COUNT, one_of, setting
from odeformer.errors import check_kind
from odeformer.models.checks import check_mask
from odeformer.models.tokens import TokenConfig, TokenTransformer
from odeformer.transformer.norms import param_dtype

POOLS = ("mean", "first")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(TokenConfig):
    """A classifier of texts.

    The other fields are those of `TokenConfig`.

    Attributes:
      classes: C, number of classes.
      pool: 'mean' reads the classes from the mean over a text's tokens, 'first' from its first
        token that is not padding.

    Raises:
      ValueError: sizes that do not fit one another, or a name that is not accepted.
    """

    classes: int = setting(COUNT, 2)
    pool: str = setting(one_of(POOLS), "mean")


class TextClassifier(TokenTransformer[TextConfig]):
    """A text classifier whose depth is an ODE.

    Attributes:
      config: its sizes and its depth.

    Source: Vaswani et al. 2017, arXiv 1706.03762 (the encoder, its token embeddings multiplied by
    the root of the width, here with its norms before the sublayers).

    Examples:
      >>> import jax, odeformer
      >>> model = odeformer.TextClassifier(odeformer.presets.text("text_small", vocabulary=1000))
      >>> tokens = jax.numpy.ones((2, 16), "int32")
      >>> mask = jax.numpy.arange(16) < jax.numpy.array([[9], [16]])
      >>> variables = jax.jit(model.init)(jax.random.key(0), tokens, mask)
      >>> model.apply(variables, tokens, mask).shape
      (2, 2)
    """

    scaled: ClassVar[bool] = True

    def __post_init__(self):
        check_kind("TextClassifier", self.config, TextConfig)
        super().__post_init__()

    def setup(self):
        super().setup()
        dtype = param_dtype(self.config.dtype)
        self.head = nn.Dense(
            self.config.classes,
            dtype=dtype,
            param_dtype=dtype,
            kernel_init=nn.initializers.truncated_normal(0.02),
        )

    def __call__(
        self, tokens_BN: jax.Array, mask_BN: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Classifies texts.

        Args:
          tokens_BN: int [B, N], N at most the block's size.
          mask_BN: bool [B, N], True for a token and False for padding, which no token sees and
            which is left out of pooling and of the error norm of adaptive steps; a text has at
            least one token. None: no padding.
          train: whether dropout and drop-path act; then rngs={'dropout': key}.

        Returns:
          Logits [B, C] float32, float64 with dtype float64; with mutable=['ode'] also the solve's
          counts, as `ViT` returns them.

        Raises:
          ValueError: tokens or a mask of another shape or dtype, more tokens than the block holds,
            or (where they are known before tracing) out of the vocabulary's range.
        """
        if mask_BN is None:
            mask_BN = jnp.ones(tokens_BN.shape, bool)
        check_mask(mask_BN, tokens_BN)

        # Tokens and padding are two segments; padding weighs nothing in the error norm.
        segments_BN = mask_BN.astype(jnp.int32)
        weights_BN1 = mask_BN[..., None].astype(param_dtype(self.config.dtype))
        y_BND = self.states(tokens_BN, segments_BN, weights_BN1=weights_BN1, train=train)

        if self.config.pool == "first":
            # The first token need not be the first place: padding may be on the left.
            first_B11 = mask_BN.argmax(axis=1)[:, None, None]
            return self.head(jnp.take_along_axis(y_BND, first_B11, axis=1)[:, 0])

        return self.head((weights_BN1 * y_BND).sum(axis=1) / weights_BN1.sum(axis=1))
