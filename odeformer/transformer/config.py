"""What the configs of all models say of the vector field."""

import dataclasses
from typing import ClassVar

from odeformer.checks import COUNT, FINITE, FLAG, POSITIVE, RATE, Accepted, one_of, setting
from odeformer.transformer import term_checks, terms
from odeformer.transformer.checks import ATTENTIONS, DTYPES, TIME
from odeformer.transformer.layers import ACTIVATIONS, EPSILON

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
      heads: number of attention heads; they divide the width.
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
      norm_epsilon: what every norm adds to the variance.
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
    norm_epsilon: float = setting(POSITIVE, EPSILON)
    layer_scale: float | None = setting(POSITIVE, None)

    # Whether a token sees only itself and those before it: of a model, and no setting.
    causal: ClassVar[bool] = False
