"""Weights over depth: L layers in G groups, scanned, each group solved as an ODE of its own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.checks import COUNT, one_of, setting
from odeformer.ode.integrate import solve
from odeformer.ode.problem import Solution, SolveSettings, State, VectorField
from odeformer.ode.problem_checks import warn_of_order
from odeformer.ode.solvers import Solver
from odeformer.transformer import lora
from odeformer.transformer.bases import BASES, init_coefficients, weights_over_depth
from odeformer.transformer.checks import (
    STEPS,
    check_basis,
    check_causal,
    check_mapping,
    check_place,
    check_reversible_basis,
    check_shared_layers,
)
from odeformer.transformer.context import Context
from odeformer.transformer.counts import unsolved
from odeformer.transformer.field import (
    FieldParams,
    TransformerField,
    init_params,
    make_vector_field,
)
from odeformer.transformer.flow import Flow, Place, random_lengths
from odeformer.transformer.lora_checks import check_adaptable
from odeformer.transformer.mesh import sample_numbers
from odeformer.transformer.module import DepthModule, output_is_dropped
from odeformer.transformer.pairs import Depth, through_groups
from odeformer.transformer.sharding import by_shard, solves_locally
from odeformer.transformer.streams import begin, tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig(SolveSettings):
    """How a stack of layers is integrated.

    The other fields are those of `SolveSettings`.

    Attributes:
      layers: L, the depth; group g of L / share groups is the ODE on [g share, (g + 1) share].
      share: how many successive layers share one set of weights; it divides layers.
      basis: theta(t) = sum_k phi_k(t) w_k: 'constant' over each group, 'hat' (linear between K
        nodes), 'legendre' or 'fourier'. Under the last three share is 1, and the groups are the
        layers; under 'hat' the K - 1 elements between two nodes.
      coefficients: K of the basis, the sets of weights; None for 'constant': one per group.
      refine_at: steps after which the trainer calls `odeformer.refine`; a model ignores them.
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
        check_reversible_basis(self.reversible, self.basis)
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
        """Of a group, in layers."""
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
        """What is done to the flow beyond integrating it: here nothing; see `RegularisedDepth`."""
        return Flow()

    @property
    def group_settings(self) -> SolveSettings:
        """How one group is solved."""
        names = [field.name for field in dataclasses.fields(SolveSettings)]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings["steps"] = self.fixed_steps
        return SolveSettings(**settings)


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


# The collection of a stack's states along depth, kept where it is mutable; and that of the error
# with which a reversible pair, run backwards, recovers the state before the first group.
STATES, RECOVERED = "states", "recovered"


class ODEStack(DepthModule):
    """The depth of a transformer: G groups, each an ODE with parameters of its own.

    The parameters are stacked over the groups, or over the coefficients of a basis, and the groups
    scanned, so that the program does not grow with depth. The same parameters serve every solver.

    Attributes:
      config: how the depth is integrated; a mapping of DepthConfig's fields is accepted too.
      field: the vector field's module, unbound; its `layers` become the stack's.
      start: the depth-time at which the stack begins, in layers: those of the stacks before it.
      total: the layers of all stacks, over which drop-path grows; None: this one is the last.

    Raises:
      ValueError: adaptive steps of a causal field, see `check_causal`; or a total that the stack
        exceeds.
    """

    config: DepthConfig
    field: TransformerField
    start: int = 0
    total: int | None = None

    def __post_init__(self):
        self.config = as_depth(self.config)
        check_place(self.start, self.config.layers, self.total)
        if self.field.causal:
            check_causal(self.config.rtol)

        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        state: State,
        train: bool = False,
        context: Context | None = None,
        weights: State | None = None,
    ) -> Solution:
        """Integrates the state through all groups.

        Args:
          state: the tokens y, [B, N, D] float32 or float64. Where terms add streams to it, each
            begins as a copy of y; or a dict of all streams, each with the batch as its leading
            axis.
          train: whether dropout and drop-path act; they use the rng stream 'dropout'.
          context: how the tokens lie in their sequences, [B, N, ...], and what terms read in
            addition; None: each token sees all others.
          weights: of the tokens in the error norm of adaptive steps, [B, N, 1]: 0 for padding. Of
            every stream; or a dict of weights by stream.

        Returns:
          A Solution: y1 the state after the last group, y alone where y alone was given; nfe int32
          [G, terms], and accepted, rejected, result int32 [G] ([G, B, terms] and [G, B] per
          sample). Of a reversible pair also its gap at the end, [B]. With mutable=['states'] also
          the states before the first and after each group, [G + 1, B, N, D], as 'y'; with
          mutable=['recovered'] of a pair |y_0' - y_0| / |y_0| of the state y_0' that is recovered
          backwards, [], as 'error'.

        Raises:
          ValueError: a state that does not have the streams of the field's terms, no source where
            a term reads one, or adapters of what they cannot adapt.
        """
        config, layers = self.config, self.total or self.start + self.config.layers
        field = self.field.clone(parent=None, layers=layers)
        returned: Any = (lambda state: state) if isinstance(state, Mapping) else tokens
        state, weights = self._streams(state), self._streams(weights)
        theta = self.param("groups", self._init_groups, field, state, context)
        if self.is_initializing() and output_is_dropped.get():
            return unsolved(config.groups, returned(state), len(field.terms))

        keys, context = self._randomness(train, context, tokens(state).shape[0])
        inputs, settings = Inputs(context, weights), config.group_settings
        adapters = self.get_variable(lora.COLLECTION, "groups")
        if adapted := adapters is not None:
            check_adaptable(config.reversible, config.basis)
            theta = lora.attach(theta, adapters)

        scanned, of_group, at = weights_over_depth(config, theta, self.start)
        vector_field = make_vector_field(field, train, local=solves_locally(settings), at=at)
        dtype = tokens(state).dtype
        offsets = config.length * jnp.arange(config.groups, dtype=dtype)
        offsets = self.start + offsets if self.start else offsets
        if config.reversible is not None:
            groups = (theta, offsets, keys)
            pairs = Depth(vector_field, settings, config.length, groups, context)
            return self._solve_pairs(pairs, state, returned)

        solve_group = make_solve(vector_field, settings, config.length, config.flow.sums)
        if adapted:
            # Merged inside the solve of their group: no merged kernel outlives it.
            solve_group = lora.merging(solve_group)

        # On a mesh each shard of the batch solves its own part; nothing is communicated inside.
        y0_BND, kept = tokens(state), self._keeps(STATES)
        solve_group, state, inputs, merge = by_shard(solve_group, state, inputs, settings, adapted)

        def through_group(state, xs) -> Any:
            theta, *others = xs
            solution: Any = solve_group(of_group(theta), *others, state, inputs)
            y1_BND = merge(tokens(solution.y1)) if kept else None
            return solution.y1, solution._replace(y1=y1_BND)

        places = Place(offsets, random_lengths(config, self.make_rng, dtype) if train else None)
        y1, solutions = jax.lax.scan(through_group, state, (scanned, places, keys))
        if kept:
            self._keep_states(y0_BND, solutions.y1)

        return solutions._replace(y1=returned(merge(y1)))

    def _solve_pairs(self, pairs: Depth, state: State, returned: Callable) -> Solution:
        """The same of a reversible pair."""
        kept = self._keeps(STATES)
        solution, recovered = through_groups(pairs, state, kept)
        if kept:
            self._keep_states(tokens(state), recovered.states)
        if self._keeps(RECOVERED):
            error: Any = recovered.error()
            self.sow(RECOVERED, "error", error, reduce_fn=lambda _, new: new)

        return solution._replace(y1=returned(solution.y1))

    def _keeps(self, collection: str) -> bool:
        return self.is_mutable_collection(collection) and not self.is_initializing()

    def _keep_states(self, first_BND: jax.Array, others_GBND: Any) -> None:
        states: Any = jnp.concatenate([first_BND[None], others_GBND])
        self.sow(STATES, "y", states, reduce_fn=lambda _, new: new)

    def _streams(self, state: Any) -> Any:
        """A state, or weights, of the field's streams; what is no dict is that of each stream."""
        if state is None or isinstance(state, Mapping):
            return state

        return begin(self.field.streams, state)

    def _randomness(
        self, train: bool, context: Context | None, batch: int
    ) -> tuple[jax.Array | None, Context | None]:
        """A key per group, and the context with the samples' numbers, where masks need them."""
        if not train or not (self.field.dropout or self.field.drop_path):
            return None, context

        keys = jax.random.split(self.make_rng("dropout"), self.config.groups)

        # Numbered here, before a mesh splits the batch: a shard sees only its own samples.
        return keys, (context or Context())._replace(samples=sample_numbers(batch))

    def _init_groups(
        self, key: jax.Array, field: TransformerField, state: State, context: Context | None
    ):
        # No parameter's shape depends on the batch, or on the tokens' layout: one sample is enough.
        source = None if context is None else context.source
        inputs = (state, None if source is None else Context(source=source))
        sample, context = jax.tree.map(lambda x: x[:1], inputs)

        def init(key):
            return init_params(field, key, sample, context)

        return init_coefficients(self.config.basis, self.config.sets, init, key)


class Inputs(NamedTuple):
    """What all groups receive in addition to the state, with the batch as the leading axis."""

    context: Context | None
    weights: State | None


def make_solve(
    field: VectorField, settings: SolveSettings, length: float, sums: tuple[str, ...] = ()
) -> Callable[..., Solution]:
    """Returns the solve of one group, (theta, place, key, state, inputs) -> Solution.

    Args:
      field: of `make_vector_field`.
      settings: of a group.
      length: of a group, in layers, unless its place says another one.
      sums: of `integrate`.
    """
    axes: Any = FieldParams(None, None, 0)  # pyright: ignore[reportArgumentType]

    def solve_group(theta, place, key, state, inputs) -> Solution:
        # On local time: in float32 small steps late in depth would lose digits.
        return solve(
            field,
            state,
            FieldParams(theta, place.offset, inputs.context),
            settings,
            t1=length if place.length is None else place.length,
            key=key,
            params_axes=axes,
            weights=inputs.weights,
            sums=sums,
            # The groups are scanned, and a scan's body needs no guard against merging.
            prevent_cse=False,
        )

    return solve_group
