"""What the configs of all models say of the vector field."""

import dataclasses
from typing import ClassVar

from odeformer.checks import COUNT, FINITE, FLAG, POSITIVE, RATE, Accepted, one_of, setting
from odeformer.transformer import term_checks, terms
from odeformer.transformer.checks import ATTENTIONS, DTYPES, TIME
from odeformer.transformer.layers import ACTIVATIONS, EPSILON
from odeformer.transformer.norms import NORMS

TERMS = ("attention", "mlp")
_TERMS = Accepted(
    lambda: f"one or more of {', '.join(terms.NAMES)}",
    lambda **names: term_checks.check_names(names["terms"], terms.NAMES),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """What the configs of all models say of the vector field.

    Attributes:
      width: D, size of the state's last axis.
      heads: number of attention heads; they divide the width, unless head_size is given.
      mlp: M, the MLP's hidden size.
      dropout: rate of dropout on the embedded tokens and on each term's slope.
      drop_path: rate of stochastic depth at the last layer, growing from 0 at the first.
      dtype: dtype of the matrix products of the embedded patches and of the field, 'float32',
        'bfloat16' or 'float64' (with jax_enable_x64); parameters, state, head and logits are
        float32, float64 with float64.
      time: 'none', or 'additive': the field knows the depth-time t.
      fused: one input product for attention and MLP in the parallel sum; for these two terms alone.
      attention: implementation of `jax.nn.dot_product_attention`: 'auto', 'xla' or 'cudnn'.
      centre: how much of the mean over the visible tokens attention subtracts from what it mixes;
        0 is plain attention, 1 makes the rows of its weights sum to 0.
      terms: what the field is the sum of, in the order of a splitting's sub-steps.
      activation: what stands between the MLP's two products: 'gelu_tanh', 'gelu' (exact), 'relu'
        or 'silu'.
      gated: whether the MLP has a second input product, which is activated and multiplies the
        first: SwiGLU with 'silu', GeGLU with 'gelu' or 'gelu_tanh'.
      mlp_bias: whether the MLP's products have biases.
      norm: 'layer', or 'rms', which subtracts no mean and has no bias; of every norm.
      norm_epsilon: what every norm adds to the variance, or to the mean square.
      kv_heads: heads of keys and values, each shared by heads / kv_heads successive heads; None: as
        many as heads.
      head_size: size of a head; None: width / heads.
      qk_norm: whether queries and keys are normed, each head by itself.
      qkv_bias: whether the products of queries, keys and values have biases.
      out_bias: whether attention's output product has one.
      layer_scale: what each channel of each term's slope is multiplied by at initialisation; the
        factors are learnt. None: there are none.
    """

    width: int = setting(COUNT)
    heads: int = setting(COUNT)
    mlp: int = setting(COUNT)
    dropout: float = setting(RATE, 0.0)
    drop_path: float = setting(RATE, 0.0)
    dtype: str = setting(one_of(DTYPES), "float32")
    time: str = setting(one_of(TIME), "none")
    fused: bool = setting(FLAG, False)
    attention: str = setting(one_of(ATTENTIONS), "auto")
    centre: float = setting(FINITE, 0.0)
    terms: tuple[str, ...] = setting(_TERMS, TERMS)
    activation: str = setting(one_of(tuple(ACTIVATIONS)), "gelu_tanh")
    gated: bool = setting(FLAG, False)
    mlp_bias: bool = setting(FLAG, True)
    norm: str = setting(one_of(NORMS), "layer")
    norm_epsilon: float = setting(POSITIVE, EPSILON)
    kv_heads: int | None = setting(COUNT, None)
    head_size: int | None = setting(COUNT, None)
    qk_norm: bool = setting(FLAG, False)
    qkv_bias: bool = setting(FLAG, True)
    out_bias: bool = setting(FLAG, True)
    layer_scale: float | None = setting(POSITIVE, None)

    # Whether a token sees only itself and those before it: of a model, and no setting.
    causal: ClassVar[bool] = False
