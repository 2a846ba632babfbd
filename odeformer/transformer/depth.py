"""Weights over depth: L layers in G = L / share groups, each group one ODE."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_positive_int, unknown
from odeformer.ode.field import Solution, VectorField
from odeformer.ode.integrate import solve
from odeformer.ode.settings import SolveSettings
from odeformer.transformer.attention import Layout
from odeformer.transformer.field import (
    TERMS,
    FieldParams,
    TransformerField,
    init_params,
    make_vector_field,
)
from odeformer.transformer.sharding import by_shard, sample_numbers, solves_locally


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig(SolveSettings):
    """How a stack of layers is integrated; the other fields are those of `SolveSettings`.

    Attributes:
      layers: L, the depth; group g of L / share groups is the ODE on [g share, (g + 1) share].
      share: how many successive layers share one set of weights; it divides layers.
      steps: number of fixed steps per group; None for `share`: one step per layer.
      max_steps: bound on adaptive steps per group, rejected ones included (default 64).

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    layers: int = 12
    share: int = 1
    solver: str = "euler"

    def __post_init__(self):
        super().__post_init__()
        check_positive_int(layers=self.layers, share=self.share)
        if self.layers % self.share:
            raise ValueError(
                f"share={self.share} does not divide layers={self.layers}: take share from "
                f"{', '.join(map(str, _divisors(self.layers)))}, or other layers"
            )

    @property
    def groups(self) -> int:
        """G, the number of sets of weights."""
        return self.layers // self.share

    @property
    def fixed_steps(self) -> int | None:
        """Number of fixed steps per group; None under adaptive steps."""
        return self.share if self.steps is None and not self.adaptive else self.steps

    @property
    def group(self) -> SolveSettings:
        """How one group is solved."""
        names = [field.name for field in dataclasses.fields(SolveSettings)]
        settings: Any = {name: getattr(self, name) for name in names}
        return SolveSettings(**(settings | {"steps": self.fixed_steps}))


def as_depth(depth: DepthConfig | Mapping[str, Any]) -> DepthConfig:
    """Returns the depth that a DepthConfig, or a mapping of its fields, describes.

    Raises:
      ValueError: anything else, a field that does not exist, or a value that is not accepted.
    """
    if isinstance(depth, DepthConfig):
        return depth
    if not isinstance(depth, Mapping):
        raise ValueError(
            "depth is a DepthConfig, or a mapping of its fields such as {'layers': 12, 'solver': "
            f"'rk4'}}; {depth!r} was given"
        )
    check_fields(DepthConfig, depth)
    return DepthConfig(**depth)


def check_fields(config: type, given: Mapping[str, Any], without: str | None = None) -> None:
    """Raises ValueError for a name that is no field of a config.

    Args:
      config: its class.
      given: by name.
      without: a field that may not be given.
    """
    accepted = [field.name for field in dataclasses.fields(config) if field.name != without]
    for name in given:
        if name not in accepted:
            raise unknown(f"field of {config.__name__}", name, accepted)


def _divisors(number: int) -> list[int]:
    """All divisors, in ascending order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


class DepthModule(nn.Module):
    """A module that integrates over depth; its `init`, which drops the output, does not.

    `init_with_output`, and `init` of a module that holds it, do.
    """

    @nn.nowrap
    def init(self, *args: Any, capture_intermediates: Any = False, **kwargs: Any) -> Any:
        """Returns the variables: parameters alone, without a solve's counts; see flax."""
        kwargs["capture_intermediates"] = capture_intermediates
        with contextlib.nullcontext() if capture_intermediates else _without_output():
            return super().init(*args, **kwargs)


_output_is_dropped = contextvars.ContextVar("output_is_dropped", default=False)


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
    """A context in which no stack that is being initialised need trace its solve."""
    token = _output_is_dropped.set(True)
    try:
        yield
    finally:
        _output_is_dropped.reset(token)


class ODEStack(DepthModule):
    """The depth of a transformer: G groups, each an ODE with parameters of its own.

    The parameters are stacked over the groups, and the groups scanned, so that the program does
    not grow with depth. The same parameters serve every solver.

    Attributes:
      config: how the depth is integrated; a mapping of DepthConfig's fields serves too.
      field: the vector field's module, unbound; its `layers` become the config's.

    Raises:
      ValueError: adaptive steps of a causal field; see `check_causal`.
    """

    config: DepthConfig
    field: TransformerField

    def __post_init__(self):
        self.config = as_depth(self.config)
        if self.field.causal:
            check_causal(self.config)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        y_BND: jax.Array,
        train: bool = False,
        layout: Layout | None = None,
        weights_BN1: jax.Array | None = None,
    ) -> Solution:
        """Integrates the state through all groups.

        Args:
          y_BND: the state, [B, N, D] float32 or float64.
          train: whether dropout and drop-path act; they draw from the rng stream 'dropout'.
          layout: how the tokens lie in their sequences, [B, N, ...]; None: each sees all others.
          weights_BN1: of the tokens in the error norm of adaptive steps, [B, N, 1]: 0 for padding.

        Returns:
          A Solution: y1 the state after the last group; nfe int32 [G, terms], and accepted,
          rejected, result int32 [G] ([G, B, terms] and [G, B] per sample).
        """
        config, field = self.config, self.field.clone(parent=None, layers=self.config.layers)
        theta = self.param("groups", self._init_groups, field, y_BND)
        if self.is_initializing() and _output_is_dropped.get():
            return _unsolved(config, y_BND)

        keys, layout = self._randomness(train, layout, y_BND)
        inputs = Inputs(layout, weights_BN1)
        solve = make_solve(config, make_vector_field(field, train, local=solves_locally(config)))

        # On a mesh each shard of the batch solves its own part; nothing is communicated inside.
        solve, y_BND, inputs, merge = by_shard(solve, y_BND, inputs, config)

        def group(y_BND, xs) -> Any:
            solution = solve(*xs, y_BND, inputs)
            return solution.y1, solution._replace(y1=None)

        offsets = config.share * jnp.arange(config.groups, dtype=y_BND.dtype)
        y1_BND, solutions = jax.lax.scan(group, y_BND, (theta, offsets, keys))
        return solutions._replace(y1=merge(y1_BND))

    def _randomness(
        self, train: bool, layout: Layout | None, y_BND: jax.Array
    ) -> tuple[jax.Array | None, Layout | None]:
        """A key per group, and the layout with the numbers of the samples, where masks need them.

        The samples are numbered here, where the whole batch is at hand.
        """
        if not train or not (self.field.dropout or self.field.drop_path):
            return None, layout

        keys = jax.random.split(self.make_rng("dropout"), self.config.groups)
        samples = sample_numbers(y_BND.shape[0])
        return keys, (layout or Layout())._replace(samples=samples)

    def _init_groups(self, key: jax.Array, field: TransformerField, y_BND: jax.Array):
        keys = jax.random.split(key, self.config.groups)
        return jax.vmap(lambda key: init_params(field, key, y_BND[:1]))(keys)


class Inputs(NamedTuple):
    """What all groups are given beside the state, with the batch as the leading axis."""

    layout: Layout | None
    weights: jax.Array | None


def make_solve(config: DepthConfig, field: VectorField) -> Callable[..., Solution]:
    """Returns the solve of one group, (theta, offset, key, y_BND, inputs) -> Solution."""
    settings, length = config.group, float(config.share)
    axes: Any = FieldParams(None, None, 0)  # pyright: ignore[reportArgumentType]

    def solve_group(theta, offset, key, y_BND, inputs) -> Solution:
        # On local time: in float32 small steps late in depth would lose digits.
        return solve(
            field,
            y_BND,
            FieldParams(theta, offset, inputs.layout),
            settings,
            t1=length,
            key=key,
            params_axes=axes,
            weights=inputs.weights,
            prevent_cse=False,  # the groups are scanned
        )

    return solve_group


def _unsolved(config: DepthConfig, y_BND: jax.Array) -> Solution:
    """The solution of a solve that nobody looks at."""
    none = jnp.zeros(config.groups, jnp.int32)
    nfe = jnp.zeros((config.groups, TERMS), jnp.int32)
    return Solution(y_BND, None, nfe, none, none, none)


def check_causal(config: DepthConfig) -> None:
    """Raises ValueError where a causal model is asked for adaptive steps.

    Args:
      config: of the model's depth.
    """
    if config.rtol is not None:
        raise ValueError(
            f"rtol={config.rtol} asks for adaptive steps of a causal model: their sizes follow "
            "from the error over all tokens, so that a token's output would depend on later ones; "
            "leave rtol out and give steps"
        )


def sow_counts(module: nn.Module, solution: Solution) -> None:
    """Records a solve's counts in the module's collection 'ode', where it is mutable.

    Args:
      module: the model; nothing is recorded while it is being initialised.
      solution: of its stack.
    """
    if not module.is_initializing():
        for name in ("nfe", "accepted", "rejected", "result"):
            module.sow("ode", name, getattr(solution, name), reduce_fn=lambda _, new: new)
