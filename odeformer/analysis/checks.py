"""What the analysis accepts: states, masks, depths that can be cut at their layers."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from odeformer.transformer.config import DepthConfig


def check_states(states: Any, mask: Any) -> None:
    """Raises ValueError for states that are not [..., N, D], or a mask that does not fit."""
    shape, dtype = np.shape(states), jnp.result_type(states)
    if len(shape) < 2 or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"states are [..., N, D] of a floating dtype; {dtype}{list(shape)} was given"
        )

    if shape[-2] < 2:
        raise ValueError(
            f"states {list(shape)} hold {shape[-2]} tokens (the axis before the last): to be alike "
            "takes two"
        )

    if mask is None:
        return

    found, accepted = np.shape(mask), shape[:-1]
    fits = len(found) <= len(accepted) and all(
        n in (1, m) for n, m in zip(found[::-1], accepted[::-1], strict=False)
    )
    if not found or not fits or found[-1] != accepted[-1] or jnp.result_type(mask) != jnp.bool_:
        raise ValueError(
            f"the mask of states {list(shape)} is bool [..., {accepted[-1]}], which broadcasts to "
            f"{list(accepted)}; {jnp.result_type(mask)}{list(found)} was given"
        )


def check_cut(depth: DepthConfig) -> None:
    """Raises ValueError for groups that do not end at the ends of layers, or steps that do not."""
    if depth.groups > depth.layers:
        raise ValueError(
            f"the {depth.groups} elements of basis 'hat' are parts of the layers={depth.layers}: "
            "take the states at the ends of elements, layers=False"
        )

    steps, layers = depth.fixed_steps, depth.layers // depth.groups
    if steps is not None and steps % layers:
        of = f"share={layers}" if depth.basis == "constant" else f"{layers}"
        raise ValueError(
            f"steps={steps} do not end at each of the {of} layers of a group: take "
            f"a multiple of {layers}, or the states at the ends of groups, layers=False"
        )
