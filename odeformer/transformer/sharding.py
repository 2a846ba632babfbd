"""Logical axes: what each axis of a parameter or an activation is, to be mapped onto a mesh.

The library names axes and knows no mesh. Whoever runs it on one maps the names to the mesh's axes:

    rules = flax.linen.logical_axis_rules([("batch", ("data", "fsdp")), ("heads", "tensor"), ...])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), rules:
        jax.jit(step, in_shardings=..., out_shardings=...)(...)

(`jax.set_mesh(mesh)` does for fixed steps, too.) Without rules, or on one device, nothing here does
anything. The names: batch, tokens, width, heads, mlp, vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import get_logical_axis_rules, logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec

from odeformer.ode.problem import Solution, SolveSettings
from odeformer.ode.steps import STATE
from odeformer.transformer.checks import check_shards

# Kernels and embeddings, by the last two names of their paths; N is an axis that is never split.
# Vectors are not listed, except for those along heads or mlp: gathering the others would take more
# time than the memory they need is worth.
N: Any = None
_AXES: dict[tuple[str, str], tuple[str | None, ...]] = {
    ("qkv", "kernel"): ("width", N, "heads", N),
    ("qkv", "bias"): (N, "heads", N),
    ("out", "kernel"): ("heads", N, "width"),
    ("up", "kernel"): ("width", "mlp"),
    ("up", "bias"): ("mlp",),
    ("down", "kernel"): ("mlp", "width"),
    ("embedding", "embedding"): ("vocabulary", "width"),
    ("position_embedding", "embedding"): (N, "width"),
    ("head", "kernel"): ("width", "vocabulary"),
}

# The stacked parameters of a depth, which have a leading axis of their own.
GROUPS = "groups"


def parameter_axes(params: Any) -> Any:
    """Returns the names of each parameter's axes.

    Args:
      params: a model's parameters, or their shapes.

    Returns:
      A tree of params' structure; a `PartitionSpec` of names, or None for an axis that is never
      split, stands for each parameter: what `flax.linen.logical_to_mesh` takes.

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
        return PartitionSpec(*stacked, *_AXES.get((names[-2], names[-1]), unsplit))

    return jax.tree_util.tree_map_with_path(axes, params)


def constrain(x: jax.Array, names: Iterable[str | None]) -> jax.Array:
    """Returns x, laid out over the mesh as the rules say for axes of these names.

    Args:
      x: an activation.
      names: one for each of its axes; None for an axis that is not split.
    """
    # Inside shard_map the caller decides where things are, and a constraint would be an error.
    if _manual() or not _rules():
        return x

    # Names of None only are a constraint too: x is then replicated.
    return jax.lax.with_sharding_constraint(x, _mesh_axes(names))


def batch_axes() -> tuple[str, ...]:
    """Returns the mesh axes over which the compiler splits a batch; none without a mesh."""
    sizes, manual = jax.sharding.get_abstract_mesh().shape, _manual()
    return tuple(axis for axis in _of("batch") if axis not in manual and sizes[axis] > 1)


def sample_numbers(batch: int) -> jax.Array:
    """Returns the number of each sample in the whole batch, int32 [B].

    Args:
      batch: B, the number of samples, inside `shard_map` of the shard's.
    """
    numbers = jnp.arange(batch, dtype=jnp.int32)
    split = [axis for axis in _of("batch") if axis in _manual()]
    if not split:
        return numbers

    # Inside shard_map a shard's samples follow those of the shards before it.
    return numbers + batch * jax.lax.axis_index(tuple(split))


def solves_locally(settings: SolveSettings) -> bool:
    """Returns whether each shard of the batch, or each sample, is solved independently."""
    return settings.per_sample or bool(_solve_axes(settings))


def by_shard(
    solve: Callable[..., Solution], y_BND: jax.Array, inputs: Any, settings: SolveSettings
) -> tuple[Callable[..., Solution], jax.Array, Any, Callable[[jax.Array], jax.Array]]:
    """Returns the solve of one group, independently per shard of the batch.

    Each shard gathers the parameters once per group. Nothing is then communicated inside the
    solver's loop over steps, and gradients are summed over the shards once per group. Under
    'checkpoint' the backward pass gathers the parameters again instead of storing them.

    Args:
      solve: (theta, offset, key, y_BND, inputs) -> Solution.
      y_BND: the state.
      inputs: arrays with the batch as their leading axis.
      settings: of the solve.

    Returns:
      The solve, the state and the inputs, [S, B / S, ...] each; and a function that merges a state
      again. Without a mesh, and under adaptive steps, all are returned unchanged.

    Raises:
      ValueError: a batch that the shards do not divide.
    """
    axes = _solve_axes(settings)
    if not axes:
        return solve, y_BND, inputs, lambda y_BND: y_BND

    def solve_shards(theta, offset, key, y_BND, inputs) -> Solution:
        each = jax.vmap(solve, in_axes=(0, None, None, 0, 0), spmd_axis_name=axes)
        solution = each(_replicate(theta, axes), offset, key, y_BND, inputs)

        # All shards take the same number of fixed steps; per sample, each lists its own samples.
        merge = _merge_batch if settings.per_sample else lambda x: x.max(axis=0)
        counts = jax.tree.map(merge, solution._replace(y1=None))
        return counts._replace(y1=solution.y1)

    # Without this the gathered parameters of every group would be stored for the backward pass.
    if settings.adjoint == "checkpoint":
        policies: Any = jax.checkpoint_policies
        kept = policies.save_only_these_names(STATE)
        if settings.policy:
            kept = policies.save_from_both_policies(kept, getattr(policies, settings.policy))
        solve_shards = jax.checkpoint(solve_shards, policy=kept, prevent_cse=False)

    y_BND, inputs = _split_batch((y_BND, inputs), axes)
    return solve_shards, y_BND, inputs, _merge_batch


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
    specs = jax.tree.map(_mesh_axes, parameter_axes(params), is_leaf=is_spec)

    # The transpose of a gather sums the gradients over the shards and scatters the sum: once, each
    # part to the device of its parameter.
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


def without_batch() -> Any:
    """Returns a context in which activations are those of one shard: 'batch' has no mesh axis."""
    return logical_axis_rules([rule for rule in get_logical_axis_rules() if rule[0] != "batch"])


def _mesh_axes(names: Iterable[str | None]) -> PartitionSpec:
    """The mesh axes of named ones; none inside `shard_map`, whose mesh axes are the caller's."""
    return logical_to_mesh_axes(tuple(names), [] if _manual() else _rules()) or PartitionSpec()


def _of(name: str) -> tuple[str, ...]:
    """The mesh axes of one name."""
    axes = dict(_rules()).get(name) or ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _rules() -> Any:
    """The active rules; none without a mesh, or on one of a single device."""
    return get_logical_axis_rules() if jax.sharding.get_abstract_mesh().size > 1 else ()


def _manual() -> frozenset[str]:
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)
