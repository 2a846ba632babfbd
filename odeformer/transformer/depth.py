"""Weights over depth: L layers in G groups, scanned, each group solved as an ODE of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from odeformer.ode.problem import Solution, State
from odeformer.transformer import lora
from odeformer.transformer.bases import init_coefficients, weights_over_depth
from odeformer.transformer.checks import check_causal, check_place
from odeformer.transformer.config import DepthConfig, as_depth
from odeformer.transformer.counts import unsolved
from odeformer.transformer.field import (
    TransformerField,
    init_params,
    make_vector_field,
)
from odeformer.transformer.groups import Groups, Inputs, Place, make_solve, random_lengths
from odeformer.transformer.mesh import sample_numbers
from odeformer.transformer.module import DepthModule, output_is_dropped
from odeformer.transformer.pairs import through_pairs
from odeformer.transformer.sharding import by_shard, solves_locally
from odeformer.transformer.state import Context, begin, tokens

# Collections that a stack fills where they are mutable: its states along depth, and the error with
# which a reversible pair recovers the state before the first group.
STATES, RECOVERED = "states", "recovered"


class ODEStack(DepthModule):
    """The depth of a transformer: G groups, each an ODE with its own parameters.

    The parameters are stacked over the groups, or over the coefficients of a basis, and the groups
    are scanned, so that the program does not grow with depth. The same parameters serve every
    solver.

    Attributes:
      config: how the depth is integrated; a mapping of DepthConfig's fields is accepted too.
      field: the vector field's module, unbound; its `layers` become the stack's.
      start: the depth-time at which the stack begins: the number of layers in earlier stacks.
      total: the number of layers in all stacks, over which drop-path grows; None: this stack is the
        last.

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
          state: the tokens y, [B, N, D] float32 or float64; streams that terms add begin as copies
            of y. Or a dict of all streams, each with the batch as its leading axis.
          train: whether dropout and drop-path act; they use the rng stream 'dropout'.
          context: how the tokens lie in their sequences, [B, N, ...], and what terms read in
            addition; None: each token sees all others.
          weights: of the tokens in the error norm of adaptive steps, [B, N, 1], 0 for padding. One
            array for every stream, or a dict of arrays by stream.

        Returns:
          A Solution. y1 is the state after the last group, an array where the state was one. nfe is
          int32 [G, terms], and accepted, rejected and result are int32 [G] ([G, B, terms] and
          [G, B] per sample). A reversible pair has its gap at the end, [B].

          With mutable=['states'] the collection has the states before the first and after each
          group as 'y', [G + 1, B, N, D]. With mutable=['recovered'] that of a pair has, as 'error',
          |y_0' - y_0| / |y_0| of the state y_0' that is recovered backwards, [].

        Raises:
          ValueError: a state that does not have the streams of the field's terms, no source where
            a term reads one, or adapters of what they cannot adapt.
        """
        field = self.field.clone(parent=None, layers=self._total)
        as_given = _as_given(state)
        state, weights = self._streams(state), self._streams(weights)

        stacked = self.param("groups", self._init_groups, field, state, context)
        if self.is_initializing() and output_is_dropped.get():
            return unsolved(self.config.groups, as_given(state), len(field.terms))

        # Weights as a function of depth, which the field evaluates at each stage's own time.
        theta = weights_over_depth(self.config, self._with_adapters(stacked), self.start)
        local = solves_locally(self.config.group_settings)
        vector_field = make_vector_field(field, train, local=local, at=theta.at)

        context, places, keys = self._randomness(state, train, context)
        groups = Groups(vector_field, theta, places, keys)
        solve_all = self._solve if self.config.reversible is None else self._solve_pair

        solution = solve_all(groups, state, Inputs(context, weights))
        return solution._replace(y1=as_given(solution.y1))

    def _solve(self, groups: Groups, state: State, inputs: Inputs) -> Solution:
        """Solves the groups one after another, as a scan of one solve."""
        settings, kept = self.config.group_settings, self._keeps(STATES)
        solve_group = make_solve(groups.field, settings, self.config.length, self.config.flow.sums)

        # Adapters are merged inside the solve of their group: no merged kernel outlives it.
        if self._has_adapters:
            solve_group = lora.merging(solve_group)

        # On a mesh each shard of the batch solves its own part; nothing is communicated inside.
        y0_BND = tokens(state)
        solve_group, state, inputs, merge = by_shard(
            solve_group, state, inputs, settings, recompute=self._has_adapters
        )

        def through_group(state, xs) -> Any:
            scanned, place, key = xs
            theta = groups.theta.of_group(scanned, groups.theta.common)
            solution = solve_group(theta, place, key, state, inputs)
            y1_BND = merge(tokens(solution.y1)) if kept else None
            return solution.y1, solution._replace(y1=y1_BND)

        xs = groups.theta.scanned, groups.places, groups.keys
        y1, solutions = jax.lax.scan(through_group, state, xs)
        if kept:
            self._keep_states(y0_BND, solutions.y1)

        return solutions._replace(y1=merge(y1))

    def _solve_pair(self, groups: Groups, state: State, inputs: Inputs) -> Solution:
        """Solves all groups as one reversible pair, whose gradient spans them all."""
        kept = self._keeps(STATES)
        solution, recovered = through_pairs(
            groups, self.config, state, inputs.context, adapted=self._has_adapters, kept=kept
        )
        if kept:
            self._keep_states(tokens(state), recovered.states)
        if self._keeps(RECOVERED):
            error: Any = recovered.error()
            self.sow(RECOVERED, "error", error, reduce_fn=lambda _, new: new)

        return solution

    def _keeps(self, collection: str) -> bool:
        return self.is_mutable_collection(collection) and not self.is_initializing()

    def _keep_states(self, first_BND: jax.Array, others_GBND: Any) -> None:
        states: Any = jnp.concatenate([first_BND[None], others_GBND])
        self.sow(STATES, "y", states, reduce_fn=lambda _, new: new)

    @property
    def _total(self) -> int:
        """The layers of all stacks."""
        return self.total or self.start + self.config.layers

    def _streams(self, state: Any) -> Any:
        """A state, or weights, by the field's streams: an array that is no dict serves them all."""
        if state is None or isinstance(state, Mapping):
            return state

        return begin(self.field.streams, state)

    @property
    def _has_adapters(self) -> bool:
        return self.has_variable(lora.COLLECTION, "groups")

    def _with_adapters(self, theta: Any) -> Any:
        """The parameters, with their low-rank adapters next to them if the variables hold any."""
        if not self._has_adapters:
            return theta

        return lora.attach(theta, self.get_variable(lora.COLLECTION, "groups"))

    def _randomness(
        self, state: State, train: bool, context: Context | None
    ) -> tuple[Context | None, Place, jax.Array | None]:
        """The context with the samples' numbers, the groups' places, and a key per group.

        Only the offsets of the places are needed outside of training; the rest is for masks and for
        a random end.
        """
        config, y_BND = self.config, tokens(state)
        offsets = config.length * jnp.arange(config.groups, dtype=y_BND.dtype)
        offsets = self.start + offsets if self.start else offsets
        if not train:
            return context, Place(offsets), None

        keys = None
        if self.field.dropout or self.field.drop_path:
            keys = jax.random.split(self.make_rng("dropout"), config.groups)

            # Numbered here, before a mesh splits the batch: a shard sees only its own samples.
            samples_B = sample_numbers(y_BND.shape[0])
            context = (context or Context())._replace(samples=samples_B)

        # Drawn after the keys of dropout, whose masks do not depend on a random end.
        lengths = random_lengths(config, self.make_rng, y_BND.dtype)
        return context, Place(offsets, lengths), keys

    def _init_groups(
        self, key: jax.Array, field: TransformerField, state: State, context: Context | None
    ):
        # No parameter's shape depends on the batch or the layout of the tokens: one sample will do.
        source = None if context is None else context.source
        inputs = (state, None if source is None else Context(source=source))
        sample, context = jax.tree.map(lambda x: x[:1], inputs)

        def init(key):
            return init_params(field, key, sample, context)

        return init_coefficients(self.config.basis, self.config.sets, init, key)


def _as_given(state: State) -> Callable[[State], State]:
    """Returns a function from a dict of streams to what `state` is: a dict, or the tokens alone."""
    return (lambda state: state) if isinstance(state, Mapping) else tokens
