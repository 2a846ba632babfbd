"""What the models of text share: tokens -> embeddings and positions -> ODE over depth -> norm.

Arrays carry their axes in their names: B batch, N tokens, D width, V vocabulary.
"""

import dataclasses
import math
from typing import ClassVar, Generic, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import COUNT, FRACTION, POSITIVE, one_of, setting
from odeformer.models.checks import check_layout, check_rotary, check_tokens
from odeformer.models.config import TransformerConfig
from odeformer.transformer.counts import sow_counts
from odeformer.transformer.depth import ODEStack
from odeformer.transformer.field import transformer_field
from odeformer.transformer.heads import heads_of
from odeformer.transformer.layers import Dropout
from odeformer.transformer.mesh import constrain, sample_numbers
from odeformer.transformer.module import DepthModule
from odeformer.transformer.norms import make_norm, param_dtype
from odeformer.transformer.rotary import SCALINGS, Rotary, rotation
from odeformer.transformer.state import Context

POSITIONS = ("rotary", "learned")
embedding_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TokenConfig(TransformerConfig):
    """A transformer over tokens.

    The other fields are those of `TransformerConfig`.

    Attributes:
      vocabulary: V, number of tokens that there are.
      block_size: the most tokens a sequence may have.
      positions: 'rotary', turned queries and keys, or 'learned', added to the embedded tokens.
      rotary_base: the longest wavelength of rotary positions over 2 pi, in tokens.
      rotary_fraction: of a head's entries that are turned, its first ones; rounded down.
      rotary_scaling: 'none'; 'linear', all angles divided by rotary_factor; or 'llama3', those of
        long waves.
      rotary_factor: how many times longer texts are than those of training; with a scaling alone.
      rotary_low_turns: under 'llama3' waves of fewer turns in rotary_length tokens are scaled.
      rotary_high_turns: those of more turns are not; between the two, in part.
      rotary_length: of the texts of training, in tokens.

    Raises:
      ValueError: sizes or rotary settings that do not fit one another, or a name that is not
        accepted.
    """

    vocabulary: int = setting(COUNT, 257)
    block_size: int = setting(COUNT, 256)
    _: dataclasses.KW_ONLY
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    positions: str = setting(one_of(POSITIONS), "rotary")
    rotary_base: float = setting(POSITIVE, 10_000.0)
    rotary_fraction: float = setting(FRACTION, 1.0)
    rotary_scaling: str = setting(one_of(SCALINGS), "none")
    rotary_factor: float | None = setting(POSITIVE, None)
    rotary_low_turns: float = setting(POSITIVE, 1.0)
    rotary_high_turns: float = setting(POSITIVE, 4.0)
    rotary_length: int = setting(COUNT, 8192)

    def __post_init__(self):
        super().__post_init__()
        check_rotary(self)

    @property
    def rotary(self) -> Rotary:
        """How rotary positions turn."""
        return Rotary(
            base=self.rotary_base,
            fraction=self.rotary_fraction,
            scaling=self.rotary_scaling,
            factor=1.0 if self.rotary_factor is None else self.rotary_factor,
            low_turns=self.rotary_low_turns,
            high_turns=self.rotary_high_turns,
            length=self.rotary_length,
        )


Config = TypeVar("Config", bound=TokenConfig)


class TokenTransformer(DepthModule, Generic[Config]):
    """Tokens -> normed states after the last layer; what the models of text build on.

    Attributes:
      config: its sizes and its depth.
      scaled: whether embeddings are multiplied by the root of the width; a model's own.
    """

    config: Config
    scaled: ClassVar[bool] = False

    def setup(self):
        config = self.config
        dtype = param_dtype(config.dtype)
        options = dict(dtype=dtype, param_dtype=dtype, embedding_init=embedding_init)

        self.embedding = nn.Embed(config.vocabulary, config.width, **options)
        if config.positions == "learned":
            self.position_embedding = nn.Embed(config.block_size, config.width, **options)
        self.dropout = Dropout()
        self.depth = ODEStack(config.depth, transformer_field(config))
        self.norm = make_norm(config.norm, config.dtype, config.norm_epsilon)

    def states(
        self,
        tokens_BN: jax.Array,
        segments_BN: jax.Array | None = None,
        positions_BN: jax.Array | None = None,
        weights_BN1: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Integrates the embedded tokens, and records the solve's counts in 'ode'.

        Args:
          tokens_BN: int [B, N].
          segments_BN: int [B, N]; a token sees only those of its own segment. None: one segment.
          positions_BN: int [B, N] of each token in its sequence; None: 0 to N - 1.
          weights_BN1: of the tokens in the error norm of adaptive steps, [B, N, 1].
          train: whether dropout and drop-path act.

        Returns:
          The normed states, [B, N, D] float32 or float64.

        Raises:
          ValueError: tokens of another shape or dtype, more of them than the block holds, or (where
            they are known before tracing) out of the vocabulary's range.
        """
        config = self.config
        check_tokens(tokens_BN, config.vocabulary, config.block_size)
        if positions_BN is None:
            positions_BN = jnp.broadcast_to(jnp.arange(tokens_BN.shape[1]), tokens_BN.shape)
        check_layout(tokens_BN, segments_BN, positions_BN, config.block_size)

        y_BND = self.embed(tokens_BN, positions_BN)
        if train and config.dropout:
            y_BND = self.dropout(y_BND, config.dropout, sample_numbers(y_BND.shape[0]))

        # The angles are the same at every depth, and so are computed once, outside the solve.
        context = Context(segments_BN, self.rotation(positions_BN))
        solution = self.depth(y_BND, train, context, weights_BN1)
        sow_counts(self, solution)

        return self.norm(solution.y1)

    def embed(self, tokens_BN: jax.Array, positions_BN: jax.Array) -> jax.Array:
        """Tokens and their positions -> the state at depth 0, [B, N, D]."""
        # The state is float32 or above, whatever the parameters were cast to.
        state_dtype = param_dtype(self.config.dtype)
        y_BND = constrain(self.table()[tokens_BN], ("batch", "tokens", "width")).astype(state_dtype)
        if self.scaled:
            y_BND *= math.sqrt(self.config.width)

        if self.config.positions == "learned":
            # Gathered first, like the token embeddings: the state is not split along D.
            positions = constrain(self.position_embedding.embedding, (None, None))[positions_BN]
            y_BND += positions.astype(state_dtype)

        return y_BND

    def table(self) -> jax.Array:
        """The embeddings of all tokens, [V, D], not split along D."""
        return constrain(self.embedding.embedding, ("vocabulary", None))

    def rotation(self, positions_BN: jax.Array) -> jax.Array | None:
        """What turns queries and keys at these positions; None where positions are learned."""
        if self.config.positions != "rotary":
            return None
        config = self.config
        size, dtype = heads_of(config).size, param_dtype(config.dtype)
        return rotation(positions_BN, size, dtype, config.rotary)
