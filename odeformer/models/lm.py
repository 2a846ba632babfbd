"""The language model: tokens -> causal ODE over depth -> the next token."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from odeformer.checks import FLAG, setting
from odeformer.errors import check_kind
from odeformer.models.tokens import TokenConfig, TokenTransformer, embedding_init
from odeformer.transformer.mesh import constrain
from odeformer.transformer.norms import param_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig(TokenConfig):
    """A causal language model.

    The other fields are those of `TokenConfig`.

    Attributes:
      tied: whether the head's weights are those of the token embedding.

    Raises:
      ValueError: sizes that do not fit one another, a name that is not accepted, or adaptive
        steps, under which a token's output would depend on later tokens.
    """

    tied: bool = setting(FLAG, True)

    causal: ClassVar[bool] = True


class LM(TokenTransformer[LMConfig]):
    """A causal language model whose depth is an ODE.

    Attributes:
      config: its sizes and its depth.

    Source: Radford et al., 'Language Models are Unsupervised Multitask Learners', 2019; Su et al.
    2021, arXiv 2104.09864 (rotary positions).

    Examples:
      >>> import jax, odeformer
      >>> model = odeformer.LM(odeformer.presets.lm("gpt_nano", width=96, mlp=384))
      >>> tokens = jax.numpy.zeros((2, 16), "int32")
      >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
      >>> model.apply(variables, tokens).shape
      (2, 16, 257)
    """

    def __post_init__(self):
        check_kind("LM", self.config, LMConfig)
        super().__post_init__()

    def setup(self):
        super().setup()

        # Tied, the head has no parameters: the logits are products with the embeddings.
        if not self.config.tied:
            dtype = param_dtype(self.config.dtype)
            self.head = nn.Dense(
                self.config.vocabulary,
                use_bias=False,
                dtype=dtype,
                param_dtype=dtype,
                kernel_init=embedding_init,
            )

    def __call__(
        self,
        tokens_BN: jax.Array,
        segments_BN: jax.Array | None = None,
        positions_BN: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the logits of each next token.

        Args:
          tokens_BN: int [B, N], N at most the block's size.
          segments_BN: int [B, N], a number for each of several documents in a block: a token sees
            only those of its own document, up to itself. None: one document.
          positions_BN: int [B, N], of each token in its document; None: 0 to N - 1.
          train: whether dropout and drop-path act; then rngs={'dropout': key}.

        Returns:
          [B, N, V] float32, float64 with dtype float64; with mutable=['ode'] also the solve's
          counts, as `ViT` returns them.

        Raises:
          ValueError: tokens of another shape or dtype, more of them than the block holds, or (where
            they are known before tracing) out of the vocabulary's range.
        """
        return self.predict(self.states(tokens_BN, segments_BN, positions_BN, train=train))

    def predict(self, y_BND: jax.Array) -> jax.Array:
        """Normed states -> logits of the next token, [B, N, V]."""
        if self.config.tied:
            logits = y_BND @ self.table().T.astype(y_BND.dtype)
        else:
            logits = self.head(y_BND)
        return constrain(logits, ("batch", "tokens", "vocabulary"))
