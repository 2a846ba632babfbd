"""Logical axes: what each axis of a parameter or an activation is, to be mapped onto a mesh.

The library names axes and knows no mesh. Whoever runs it on one maps the names to the mesh's axes:

    rules = flax.linen.logical_axis_rules([("batch", ("data", "fsdp")), ("heads", "tensor"), ...])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), rules:
        jax.jit(step, in_shardings=..., out_shardings=...)(...)

(With fixed steps, `jax.set_mesh(mesh)` works as well.) Without rules, or on one device, nothing of
this has any effect. The names are: batch, tokens, width, heads, mlp, vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from odeformer.ode.problem import Solution, SolveSettings, State
from odeformer.ode.steps import STATE
from odeformer.ode.sums import SUMMED
from odeformer.transformer import lora, terms
from odeformer.transformer.checks import check_shards
from odeformer.transformer.mesh import batch_axes, constrain, mesh_axes

__all__ = ["GROUPS", "by_shard", "constrain", "parameter_axes", "solves_locally"]

# The axes of embeddings and heads, by the last two names of their paths; those of a term's kernels
# are in the table of terms. N is an axis that is never split.
N: Any = None
_AXES: terms.Axes = {
    ("embedding", "embedding"): ("vocabulary", "width"),
    ("position_embedding", "embedding"): (N, "width"),
    ("head", "kernel"): ("width", "vocabulary"),
    ("distillation_head", "kernel"): ("width", "vocabulary"),
}

GROUPS = lora.GROUPS


def parameter_axes(params: Any) -> Any:
    """Returns the names of each parameter's axes.

    Args:
      params: a model's parameters, or their shapes.

    Returns:
      A tree of params' structure with a `PartitionSpec` per parameter, which holds a name per axis,
      or None for an axis that is never split: what `flax.linen.logical_to_mesh` takes.

    Examples:
      >>> import jax, odeformer
      >>> model = odeformer.ViT(odeformer.presets.vit("digits"))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1)))
      >>> axes = parameter_axes(shapes["params"])
      >>> tuple(axes["depth"]["groups"]["mlp_layer"]["up"]["kernel"])
      (None, 'width', 'mlp')
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        names = ["", *(key.key for key in path)]
        stacked = (N,) if GROUPS in names else ()
        unsplit: tuple[str | None, ...] = tuple(N for _ in leaf.shape[len(stacked) :])
        table = next(filter(None, map(terms.axes_of, names)), _AXES)

        if names[-1] in (lora.A, lora.B):
            kernel = table.get((names[-2], "kernel"), ())
            return PartitionSpec(*stacked, *lora.axes_of(names[-1], len(unsplit), kernel))

        return PartitionSpec(*stacked, *table.get((names[-2], names[-1]), unsplit))

    return jax.tree_util.tree_map_with_path(axes, params)


def solves_locally(settings: SolveSettings) -> bool:
    """Returns whether each shard of the batch, or each sample, is solved independently."""
    return settings.per_sample or bool(_solve_axes(settings))


def by_shard(
    solve: Callable[..., Solution],
    state: State,
    inputs: Any,
    settings: SolveSettings,
    recompute: bool = False,
) -> tuple[Callable[..., Solution], State, Any, Callable[[State], State]]:
    """Returns the solve of one group, independently per shard of the batch.

    Each shard gathers the parameters once per group. Nothing is then communicated inside the
    solver's loop over steps, and gradients are summed over the shards once per group. Under
    'checkpoint' the backward pass gathers the parameters again instead of storing them.

    Args:
      solve: (theta, place, key, state, inputs) -> Solution.
      state: an array, or a mapping of arrays, each with the batch as its leading axis.
      inputs: arrays with the batch as their leading axis.
      settings: of the solve.
      recompute: whether the solve derives something from theta, such as merged kernels, that the
        backward pass should compute again instead of storing it.

    Returns:
      The solve, the state and the inputs, [S, B / S, ...] each; and a function that merges a state
      to [B, ...] again. Without a mesh, and under adaptive steps, state and inputs are unchanged,
      and so is the solve, apart from the recomputation.

    Raises:
      ValueError: a batch that the shards do not divide.
    """
    axes = _solve_axes(settings)
    if not axes:
        # Adaptive solves have diffrax's own checkpoints: with these they would compute twice.
        wrapped = _recomputed(solve, settings) if recompute and not settings.adaptive else solve
        return wrapped, state, inputs, lambda state: state

    def solve_shards(theta, place, key, state, inputs) -> Solution:
        each = jax.vmap(solve, in_axes=(0, None, None, 0, 0), spmd_axis_name=axes)
        solution = each(_replicate(theta, axes), place, key, state, inputs)

        # All shards take the same number of fixed steps; per sample, each lists its own samples.
        merge = _merge_batch if settings.per_sample else lambda x: x.max(axis=0)
        counts = jax.tree.map(merge, solution._replace(y1=None, sums=None))
        sums = jax.tree.map(_merge_batch, solution.sums)
        return counts._replace(y1=solution.y1, sums=sums)

    # Without this the gathered parameters of every group would be stored for the backward pass.
    solve_shards = _recomputed(solve_shards, settings)

    state, inputs = _split_batch((state, inputs), axes)
    return solve_shards, state, inputs, lambda state: jax.tree.map(_merge_batch, state)


def _recomputed(solve: Callable[..., Solution], settings: SolveSettings) -> Callable[..., Solution]:
    """The solve; under 'checkpoint' it stores only states between steps and what sums read."""
    if settings.adjoint != "checkpoint":
        return solve

    policies: Any = jax.checkpoint_policies
    kept = policies.save_only_these_names(STATE, SUMMED)
    if settings.policy:
        kept = policies.save_from_both_policies(kept, getattr(policies, settings.policy))
    return jax.checkpoint(solve, policy=kept, prevent_cse=False)


def pull_by_shard(
    pull: Callable[..., tuple[Any, Any, Any, Any]], settings: SolveSettings
) -> Callable[..., tuple[Any, Any, Any, Any]]:
    """Returns the backward pass of one group of a pair, independently per shard of the batch.

    As in the gradient of a solve `by_shard`, each shard gathers the parameters once per group, and
    gradients are summed over the shards once per group.

    Args:
      pull: (theta, offset, key, (pair, cotangent), context) -> the pair before the group, and the
        cotangents of that pair, of theta and of the context.
      settings: of the solve.

    Returns:
      The same function, for pairs and contexts [S, B / S, ...]; `pull` itself without a mesh.
    """
    axes = _solve_axes(settings)
    if not axes:
        return pull

    def pull_shards(theta, offset, key, pairs, context):
        copies, sum_up = jax.vjp(lambda theta: _replicate(theta, axes), theta)
        each = jax.vmap(pull, in_axes=(0, None, None, 0, 0), spmd_axis_name=axes)
        pair, cotangent, g_copies, g_context = each(copies, offset, key, pairs, context)
        return pair, cotangent, *sum_up(g_copies), g_context

    return pull_shards


def _solve_axes(settings: SolveSettings) -> tuple[str, ...]:
    """The mesh axes over whose shards a solve is split."""
    # Adaptive steps share one error norm over the batch, and so cannot be split.
    return () if settings.adaptive else batch_axes()


def _split_batch(tree: Any, axes: tuple[str, ...]) -> Any:
    """Returns arrays [B, ...] as [S, B / S, ...], one entry per shard of the mesh's axes."""
    sizes = jax.sharding.get_abstract_mesh().shape
    shards = math.prod(sizes[axis] for axis in axes)

    def split(x: jax.Array) -> jax.Array:
        check_shards(x.shape[0], shards, axes)
        x = x.reshape(shards, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))

    return jax.tree.map(split, tree)


def _merge_batch(x: jax.Array) -> jax.Array:
    """Returns an array [S, B / S, ...] as [B, ...]."""
    return constrain(x.reshape(-1, *x.shape[2:]), ("batch", *(N,) * (x.ndim - 2)))


def _replicate(params: Any, axes: tuple[str, ...]) -> Any:
    """Returns a copy of parameters for each shard of the batch: [...] -> [S, ...].

    Args:
      params: of one layer, without the groups' axis.
      axes: the batch's.
    """
    is_spec = lambda x: isinstance(x, PartitionSpec)
    specs = jax.tree.map(mesh_axes, parameter_axes(params), is_leaf=is_spec)

    # Its transpose sums the gradients over the shards once, and scatters each part of the sum to
    # the device that holds its parameter.
    def gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        for place, axis in enumerate(spec):
            if axis in axes:
                x = jax.lax.all_gather(x, axis, axis=place, tiled=True)

        return x[None]

    def gathered(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(axes, *(None if axis in axes else axis for axis in spec))

    return jax.shard_map(
        lambda params: jax.tree.map(gather, params, specs),
        in_specs=(specs,),
        out_specs=jax.tree.map(gathered, specs, is_leaf=is_spec),
    )(params)
