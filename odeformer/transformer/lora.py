"""Low-rank adapters: kernels that are fine-tuned by the product of two thin matrices.

    W' = W + A B,    W [inputs, outputs],    A [inputs, rank],    B [rank, outputs]

Adapters are a collection of their own, and only they need a gradient:

    adapters = odeformer.lora.init(key, variables["params"], rank=8)
    logits = model.apply({"params": params, "lora": odeformer.lora.scale(adapters, 2.0)}, images)
    params = odeformer.lora.merge(params, odeformer.lora.scale(adapters, 2.0))    # afterwards

Only kernels of terms are adapted. They are stacked over the groups, and so are their adapters.

Source: Hu et al., 'LoRA: Low-Rank Adaptation of Large Language Models', 2021, arXiv 2106.09685.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from odeformer.transformer import lora_checks, terms

# The collection of a model's variables that holds its adapters.
COLLECTION = "lora"

# Their names, next to the kernel's.
A, B = "lora_a", "lora_b"

# The stacked parameters of a depth, which have a leading axis of their own.
GROUPS = "groups"

_Path = tuple[str, ...]


def kernels(params: Any, rank: int = 1, targets: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """Returns the kernels to adapt, as {'depth/groups/mlp_layer/up': (rows, columns)}.

    Args:
      params: a model's parameters, or their shapes.
      rank: of the adapters.
      targets: as for `init`.

    Raises:
      ValueError: a rank that a kernel is too small for, or a target that is a part of no path.
    """
    return {path: kernel.sides for path, kernel in _chosen(params, rank, targets).items()}


def init(key: jax.Array, params: Any, rank: int, targets: Sequence[str] = ()) -> dict[str, Any]:
    """Returns new adapters: A normal with variance 1 / inputs, B zero, so that W' = W.

    Args:
      key: of the random numbers.
      params: a model's parameters, or their shapes.
      rank: the number of columns of A; at most the smaller side of each kernel.
      targets: names such as 'qkv', 'mlp_layer' or 'mlp_layer/up': a kernel is adapted if one of
        them is a part of its path. Without any, all kernels of the terms are.

    Returns:
      {'depth': {'groups': {'attention_layer': {'qkv': {'lora_a': A [G, inputs, rank], 'lora_b': B
      [G, rank, outputs]}}}}} and the like, of the kernels' dtypes; several axes of inputs or
      outputs stay as they are.

    Raises:
      ValueError: a rank that a kernel is too small for, or a target that is a part of no path.
    """
    adapters = {}
    for path, (groups, inputs, outputs, dtype) in _chosen(params, rank, targets).items():
        # The key follows from the kernel's name, whichever other kernels are adapted.
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        normal = jax.random.normal(own_key, (groups, *inputs, rank), dtype)
        adapters[f"{path}/{A}"] = normal / jnp.asarray(math.sqrt(math.prod(inputs)), dtype)
        adapters[f"{path}/{B}"] = jnp.zeros((groups, rank, *outputs), dtype)

    return traverse_util.unflatten_dict(adapters, sep="/")


def scale(adapters: Any, factor: float) -> Any:
    """Returns adapters whose product is factor A B: the same A, and factor B."""
    flat = _flat(adapters)
    scaled = {path: jnp.asarray(factor, b.dtype) * b for path, b in flat.items() if path[-1] == B}
    return traverse_util.unflatten_dict({**flat, **scaled})


def merge(params: Any, adapters: Any) -> Any:
    """Returns the parameters with W + A B in the place of each adapted kernel W.

    Args:
      params: a model's parameters.
      adapters: of `init`, or of `scale`.

    Raises:
      ValueError: adapters of a kernel that is not there, or of another shape.
    """
    lora_checks.check_adapters(_flat(params), _flat(adapters), (A, B))
    return merge_attached(attach(params, adapters))


def split(trained: Any) -> tuple[Any, Any]:
    """Returns the adapters of a tree, and its other parameters."""
    flat = _flat(trained)
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in (A, B)}
    others = {path: leaf for path, leaf in flat.items() if path not in adapters}
    return traverse_util.unflatten_dict(adapters), traverse_util.unflatten_dict(others)


def attach(params: Any, adapters: Any) -> Any:
    """Returns the parameters with each adapter next to its kernel."""
    return traverse_util.unflatten_dict({**_flat(params), **_flat(adapters)})


def merge_attached(params: Any) -> Any:
    """Returns parameters that `attach` returned, with each kernel and its adapter merged."""
    flat = _flat(params)
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in (A, B)}
    for path in flat:
        if path[-1] == A:
            kernel = (*path[:-1], "kernel")
            merged[kernel] = _merged(flat[kernel], flat[path], flat[(*path[:-1], B)])

    return traverse_util.unflatten_dict(merged)


def merging(solve: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the solve (parameters with adapters, ...), which merges them first."""
    return lambda params, *args: solve(merge_attached(params), *args)


def axes_of(name: str, ndim: int, kernel: Sequence[str | None]) -> tuple[str | None, ...]:
    """Returns the names of an adapter's axes: those of its kernel, and None for the rank.

    Args:
      name: 'lora_a' or 'lora_b'.
      ndim: the number of the adapter's axes, without that of groups.
      kernel: the names of the kernel's axes, without that of groups; empty if they have no names.
    """
    if not kernel:
        return (None,) * ndim
    return (*kernel[: ndim - 1], None) if name == A else (None, *kernel[1 - ndim :])


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """W + A B, for one group, or for all groups, stacked."""

    # In full precision: a TPU would round float32 to bfloat16, and a merged model would differ.
    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)

    for _ in range(a.ndim + b.ndim - kernel.ndim - 2):
        product = jax.vmap(product)
    return kernel + product(a, b)


class _Kernel(NamedTuple):
    """A term's kernel as a matrix per group, whose rows are all inputs, and columns all outputs."""

    groups: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: Any

    @property
    def sides(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return math.prod(self.inputs), math.prod(self.outputs)


def _chosen(params: Any, rank: int, targets: Sequence[str]) -> dict[str, _Kernel]:
    """The kernels to adapt, by the path of their module."""
    found = {"/".join(path): kernel for path, kernel in _kernels(params).items()}
    lora_checks.check_targets(targets, list(found))

    chosen = {
        path: kernel
        for path, kernel in found.items()
        if not targets or any(f"/{target}/" in f"/{path}/" for target in targets)
    }
    lora_checks.check_rank(rank, {path: kernel.sides for path, kernel in chosen.items()})
    return chosen


def _kernels(params: Any) -> dict[_Path, _Kernel]:
    """The kernels of the terms, by the path of their module."""
    flat, found = _flat(params), {}
    for (*module, name), leaf in flat.items():
        if name == "kernel" and GROUPS in module and any(p.endswith("_layer") for p in module):
            path = tuple(module)
            groups, *shape = leaf.shape
            inputs = len(shape) - _count_outputs(path, len(shape), flat.get((*path, "bias")))
            found[path] = _Kernel(groups, tuple(shape[:inputs]), tuple(shape[inputs:]), leaf.dtype)

    return found


def _count_outputs(path: _Path, ndim: int, bias: Any) -> int:
    """How many of a kernel's axes are outputs."""
    if bias is not None:
        return bias.ndim - 1

    # Without a bias the names of the axes tell: the only input of most kernels is the width.
    table = next(filter(None, map(terms.axes_of, path)), {})
    names = table.get((path[-1], "kernel"), ())
    return ndim - 1 if names[:1] == ("width",) else 1


def _flat(tree: Any) -> dict[_Path, Any]:
    return traverse_util.flatten_dict(tree)
