"""Trees of arrays: made, and compared."""

import jax
import jax.numpy as jnp


def relative_error(tree, reference) -> float:
    """Norm of the difference over the norm of the reference, both over the whole tree."""
    difference = jax.tree.map(jnp.subtract, tree, reference)
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
    return float(norm(difference) / norm(reference))


@jax.jit
def noisy(variables, scale=0.1):
    """The variables, none of them zero, so that no part of a model is without effect."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)
