"""Weights over depth: L layers in G = L / share groups, each group one ODE."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.errors import check_flag, check_whole, unknown
from odeformer.ode import settings
from odeformer.ode.field import Solution, VectorField
from odeformer.ode.integrate import STATE, integrate
from odeformer.transformer.attention import Layout
from odeformer.transformer.field import (
    FieldParams,
    TransformerField,
    init_params,
    make_vector_field,
)
from odeformer.transformer.sharding import (
    batch_axes,
    merge_batch,
    sample_numbers,
    split_batch,
    spread,
    without_batch,
)


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """How a stack of layers is integrated.

    Attributes:
      layers: L, the depth; group g of L / share groups is the ODE on [g share, (g + 1) share].
      share: how many successive layers share one set of weights; it divides layers.
      solver: a name of `solvers.NAMES`.
      steps: fixed steps a group, None for `share`: one step a layer.
      rtol: relative tolerance; chooses adaptive steps.
      atol: absolute tolerance of adaptive steps (default 1e-6).
      max_steps: bound on a group's adaptive steps (default 64).
      per_sample: adaptive steps of its own for each sample, whose answer is then the same in
        every batch, to float32 rounding.
      adjoint: 'checkpoint', 'store', 'recursive', 'direct' or 'backsolve'; see `integrate`.
      policy: the name of one of `jax.checkpoint_policies`, for adjoint 'checkpoint' and fixed
        steps.

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    layers: int = 12
    share: int = 1
    solver: str = "euler"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    per_sample: bool = False
    adjoint: str = "checkpoint"
    policy: str | None = None

    def __post_init__(self):
        check_whole(layers=self.layers, share=self.share)
        check_flag(per_sample=self.per_sample)
        if self.layers % self.share:
            raise ValueError(
                f"share={self.share} does not divide layers={self.layers}: take share from "
                f"{', '.join(map(str, _divisors(self.layers)))}, or other layers"
            )
        settings.check_solve(
            self.solver,
            self.steps,
            self.adjoint,
            self.rtol,
            self.atol,
            self.max_steps,
            self.policy,
        )

    @property
    def groups(self) -> int:
        """G, the number of sets of weights."""
        return self.layers // self.share

    @property
    def fixed_steps(self) -> int | None:
        """Fixed steps a group; None under adaptive steps."""
        return self.share if self.steps is None and self.rtol is None else self.steps


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
          A Solution: y1 the state behind the last group; nfe int32 [G, terms], and accepted,
          rejected, result int32 [G] ([G, B, terms] and [G, B] per sample).
        """
        config = self.config
        field = self.field.clone(parent=None, layers=config.layers)
        theta = self.param("groups", lambda key: self._init_groups(field, key, y_BND))
        vector_field = make_vector_field(field, train)
        if self.is_initializing() and _output_is_dropped.get():
            none = jnp.zeros(config.groups, jnp.int32)
            nfe = jnp.zeros((config.groups, len(vector_field.terms)), jnp.int32)
            return Solution(y_BND, None, nfe, none, none, none)
        random = train and (field.dropout or field.drop_path)
        keys = jax.random.split(self.make_rng("dropout"), config.groups) if random else None
        if random:
            layout = (layout or Layout())._replace(samples=sample_numbers(y_BND.shape[0]))

        axes = batch_axes() if config.rtol is None else ()  # adaptive steps are the batch's
        if axes or config.per_sample:  # a vmap's axis is the batch then
            vector_field = VectorField(
                tuple(map(_of_one_shard, vector_field.terms)), _of_one_shard(vector_field)
            )

        solve = self._make_solve(vector_field)
        if axes:
            solve = self._in_shards(solve, axes)
            y_BND, layout, weights_BN1 = split_batch((y_BND, layout, weights_BN1), axes)

        def group(y_BND, xs):
            theta, offset, key = xs
            solution = solve(theta, offset, key, (y_BND, layout, weights_BN1))
            return solution.y1, solution._replace(y1=None)

        offsets = config.share * jnp.arange(config.groups, dtype=y_BND.dtype)
        y1_BND, solutions = jax.lax.scan(group, y_BND, (theta, offsets, keys))
        return solutions._replace(y1=merge_batch(y1_BND) if axes else y1_BND)

    def _make_solve(self, vector_field: VectorField) -> Callable[..., Any]:
        """Returns the solve of one group, (theta, offset, key, arrays) -> Solution."""
        config = self.config

        def solve(theta, offset, key, arrays) -> Any:
            y_BND, layout, weights_BN1 = arrays
            return integrate(
                vector_field,
                y_BND,
                FieldParams(theta, offset, layout),
                t1=float(config.share),
                solver=config.solver,
                steps=config.fixed_steps,
                adjoint=config.adjoint,
                rtol=config.rtol,
                atol=config.atol,
                max_steps=config.max_steps,
                per_sample=config.per_sample,
                key=key,
                policy=config.policy,
                params_axes=FieldParams(None, None, 0),  # pyright: ignore[reportArgumentType]
                weights=weights_BN1,
                prevent_cse=False,  # the groups are scanned
            )

        return solve

    def _in_shards(self, solve: Callable[..., Any], axes: tuple[str, ...]) -> Callable[..., Any]:
        """A group's solve by each shard of the batch for itself, its parameters gathered once.

        Nothing is then communicated inside the solver's loop over steps, and gradients are summed
        over the shards once a group. Under 'checkpoint' the backward pass gathers the parameters
        again rather than keep them; else they are kept with everything else.
        """
        config = self.config

        def run(theta, offset, key, arrays):
            each = jax.vmap(solve, in_axes=(0, None, None, 0), spmd_axis_name=axes)
            solution = each(spread(theta, axes), offset, key, arrays)
            counts = jax.tree.map(
                merge_batch if config.per_sample else lambda x: x.max(axis=0),
                solution._replace(y1=None),
            )
            return counts._replace(y1=solution.y1)

        if config.adjoint != "checkpoint":
            return run
        policies: Any = jax.checkpoint_policies
        kept = policies.save_only_these_names(STATE)
        if config.policy:
            kept = policies.save_from_both_policies(kept, getattr(policies, config.policy))
        return jax.checkpoint(run, policy=kept, prevent_cse=False)

    def _init_groups(self, field: TransformerField, key: jax.Array, y_BND: jax.Array):
        keys = jax.random.split(key, self.config.groups)
        return jax.vmap(lambda key: init_params(field, key, y_BND[:1]))(keys)


def _of_one_shard(term: Callable[..., Any]) -> Callable[..., Any]:
    """The term, whose activations are those of one shard; an adjoint may trace it again later."""

    def slope(*args: Any) -> Any:
        with without_batch():
            return term(*args)

    return slope


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
