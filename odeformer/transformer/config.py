"""The configs of what all models share: the vector field, and how it is integrated over depth."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from odeformer.checks import COUNT, FINITE, FLAG, POSITIVE, RATE, Accepted, one_of, setting
from odeformer.ode.checks import check_sums, check_sums_of
from odeformer.ode.problem import SUMS, SolveSettings
from odeformer.ode.problem_checks import warn_of_order
from odeformer.ode.solvers import Solver
from odeformer.transformer import term_checks, terms
from odeformer.transformer.bases import BASES
from odeformer.transformer.checks import (
    ATTENTIONS,
    DTYPES,
    STEPS,
    TIME,
    check_basis,
    check_end_time,
    check_mapping,
    check_shared_layers,
)
from odeformer.transformer.layers import ACTIVATIONS
from odeformer.transformer.norms import EPSILON, NORMS

TERMS = ("attention", "mlp")
_TERMS = Accepted(
    lambda: f"one or more of {', '.join(terms.NAMES)}",
    lambda **names: term_checks.check_names(names["terms"], terms.NAMES),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The vector field of a model; the part that the configs of all models share.

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
      fused: whether attention and MLP share one input product in the parallel sum; these two only.
      attention: implementation of `jax.nn.dot_product_attention`: 'auto', 'xla' or 'cudnn'.
      centre: how much of the mean over the visible values attention subtracts from its output;
        0 is plain attention, 1 makes the rows of its weights sum to 0.
      terms: names of the terms that the field sums, in the order of a splitting's sub-steps.
      activation: the MLP's nonlinearity: 'gelu_tanh', 'gelu' (exact), 'relu' or 'silu'.
      gated: whether the MLP has a second input product, which is activated and multiplies the
        first: SwiGLU with 'silu', GeGLU with 'gelu' or 'gelu_tanh'.
      mlp_bias: whether the MLP's products have biases.
      norm: the kind of every norm: 'layer', or 'rms', which subtracts no mean and has no bias.
      norm_epsilon: what every norm adds to the variance, or to the mean square.
      kv_heads: number of heads of keys and values, each shared by heads / kv_heads successive
        heads; None: as many as heads.
      head_size: size of each head; None: width / heads.
      qk_norm: whether queries and keys are normalised per head.
      qkv_bias: whether the products of queries, keys and values have biases.
      out_bias: whether attention's output product has a bias.
      layer_scale: initial value of learnt factors, one per channel of each term's slope; None:
        there are no such factors.
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

    # Whether a token sees only itself and earlier ones: a property of the model, not a setting.
    causal: ClassVar[bool] = False


class Flow(NamedTuple):
    """What a stack does to its flow beyond integrating it; by default nothing.

    Attributes:
      sums: what each group's solve sums along the solution, as for `integrate`.
      end_time: b, in layers: in training the last group, of length T, ends at U(T - b, T + b).
    """

    sums: tuple[str, ...] = ()
    end_time: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig(SolveSettings):
    """How a stack of layers is integrated.

    The other fields are those of `SolveSettings`.

    Attributes:
      layers: L, the depth; group g of L / share groups is the ODE on [g share, (g + 1) share].
      share: how many successive layers share one set of weights; it divides layers.
      basis: theta(t) = sum_k phi_k(t) w_k: 'constant' over each group, 'hat' (linear between K
        nodes), 'legendre' or 'fourier'. For the last three share must be 1; the groups are then the
        layers, or under 'hat' the K - 1 elements between two nodes.
      coefficients: K, the number of sets of weights of the basis; None under 'constant', which has
        one per group.
      refine_at: training steps after which the trainer calls `odeformer.refine`; a model ignores
        them.
      steps: number of fixed steps per group; None: one step per layer, and one at least.
      max_steps: bound on adaptive steps per group, rejected ones included (default 64).

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    layers: int = setting(COUNT, 12)
    share: int = setting(COUNT, 1)
    basis: str = setting(one_of(BASES), "constant")
    coefficients: int | None = setting(COUNT, None)
    refine_at: tuple[int, ...] = setting(STEPS, ())
    solver: Solver = "euler"

    def __post_init__(self):
        # JSON has no tuples; as a list the config could not be hashed.
        if isinstance(self.refine_at, list):
            object.__setattr__(self, "refine_at", tuple(self.refine_at))
        super().__post_init__()
        check_shared_layers(self.layers, self.share)
        check_basis(self.basis, self.coefficients, self.layers, self.share)
        warn_of_order(self.reversible, self.solver)

    @property
    def groups(self) -> int:
        """G, the number of intervals that are solved one after another."""
        if self.basis == "hat":
            return self.sets - 1
        return self.layers // self.share

    @property
    def sets(self) -> int:
        """K, the number of sets of weights: those of the groups, or the basis's coefficients."""
        return self.coefficients or self.layers // self.share

    @property
    def length(self) -> float:
        """Length of a group, in layers."""
        return self.layers / self.groups

    @property
    def fixed_steps(self) -> int | None:
        """Number of fixed steps per group; None under adaptive steps."""
        # One step per layer, so that Euler with share = 1 is the plain parallel stack.
        if self.steps is None and not self.adaptive:
            return max(self.layers // self.groups, 1)
        return self.steps

    @property
    def flow(self) -> Flow:
        """What is done to the flow beyond integrating it: nothing; see `RegularisedDepth`."""
        return Flow()

    @property
    def group_settings(self) -> SolveSettings:
        """How one group is solved."""
        names = [field.name for field in dataclasses.fields(SolveSettings)]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings["steps"] = self.fixed_steps
        return SolveSettings(**settings)


def _check_end(**values: Any) -> None:
    for end_time in values.values():
        check_end_time(end_time)


_SUMS = Accepted(f"a tuple of names of {', '.join(SUMS)}", check_sums)
_END = Accepted("a finite number, 0 or more", _check_end)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularisedDepth(DepthConfig):
    """A depth that also returns sums along its flow, and may end at a random time in training.

    A model returns the sums as `aux["ode"]["kinetic"]` and `aux["ode"]["error"]`, [G, B], of the
    state's dtype; adding them to a loss is left to you.
    The other fields are those of `DepthConfig`.

    Attributes:
      sums: what is summed: 'kinetic', the integral of f^2, averaged over a sample's tokens and
        width (without the padding of a `TextClassifier`), and 'error', the sum over steps of |h|
        times the root mean square of the error estimate; see `integrate`.
      end_time: b, in layers, less than the length T of a group. In training the last group ends at
        U(T - b, T + b), drawn from the rng stream 'dropout' for the whole batch, in the same number
        of steps. 0: it always ends at T.

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    sums: tuple[str, ...] = setting(_SUMS, ())
    end_time: float = setting(_END, 0.0)

    def __post_init__(self):
        # JSON has no tuples; as a list the config could not be hashed.
        if isinstance(self.sums, list):
            object.__setattr__(self, "sums", tuple(self.sums))

        super().__post_init__()
        check_sums_of(self, self.sums)
        check_end_time(self.end_time, self.length, self.reversible)

    @property
    def flow(self) -> Flow:
        """What is done to the flow beyond integrating it."""
        return Flow(self.sums, self.end_time)


def as_depth(depth: DepthConfig | Mapping[str, Any]) -> DepthConfig:
    """Returns the depth that a DepthConfig, or a mapping of its fields, describes.

    Raises:
      ValueError: anything else, a field that does not exist, or a value that is not accepted.
    """
    if isinstance(depth, DepthConfig):
        return depth

    names = [field.name for field in dataclasses.fields(DepthConfig)]
    check_mapping("depth", depth, "DepthConfig", names)
    return DepthConfig(**depth)
