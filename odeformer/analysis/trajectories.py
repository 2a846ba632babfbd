"""The states of a model along its depth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from odeformer.analysis.checks import check_cut
from odeformer.errors import check_flag, check_kind
from odeformer.models.registry import MODELS
from odeformer.transformer.bases import combine, functions
from odeformer.transformer.depth import STATES
from odeformer.transformer.lora_checks import check_merged
from odeformer.transformer.sharding import GROUPS


def trajectory(model: Any, variables: Any, *inputs: Any, layers: bool = False) -> jax.Array:
    """Returns the state of a model at the start and at the end of each group of layers.

    Args:
      model: a ViT, an LM or a TextClassifier.
      variables: its parameters.
      *inputs: what the model is called with: images; tokens, and segments or a mask.
      layers: the states at the end of each layer instead: inside of a group, too. Adaptive steps
        then begin again at each layer, and agree with the model's within the tolerance.

    Returns:
      States [T, B, N, D] float32, float64 with dtype float64, before the last norm: T = G + 1 of
      G groups, at depth-times 0, L / G, 2 L / G, ...; with `layers` T = L + 1, at 0, 1, 2, ...

    Raises:
      ValueError: anything but a model, inputs that it does not take, or with `layers` fixed steps
        that do not end at the ends of the layers.

    Examples:
      >>> import jax, odeformer
      >>> model = odeformer.ViT(odeformer.presets.vit("digits"))
      >>> images = jax.numpy.zeros((2, 8, 8, 1))
      >>> variables = jax.jit(model.init)(jax.random.key(0), images)
      >>> trajectory(model, variables, images).shape  # 4 layers, 16 patches, width 64
      (5, 2, 16, 64)
    """
    kinds: Any = [entry.model for entry in MODELS.values()]
    check_kind("trajectory", model, *kinds)
    check_flag(layers=layers)
    if layers:
        check_merged(variables)
        model, variables = _cut(model, variables)

    _, kept = model.apply(variables, *inputs, mutable=[STATES])
    (states_TBND,) = jax.tree.leaves(kept)
    return states_TBND


def _cut(model: Any, variables: Any) -> tuple[Any, Any]:
    """The same flow as groups of one layer each, with the same weights at each time."""
    config, depth = model.config, model.config.depth
    check_cut(depth)

    # Groups of one layer each already, of whatever coefficients.
    if depth.groups == depth.layers:
        return model, variables

    layers = depth.layers // depth.groups
    steps = None if depth.fixed_steps is None else depth.fixed_steps // layers
    single = dataclasses.replace(depth, share=1, steps=steps)
    stack = variables["params"]["depth"]

    # Between two nodes theta is linear, and so it is with nodes at the layers between them.
    if depth.basis == "hat":
        single = dataclasses.replace(single, coefficients=depth.layers + 1)
        phi = functions("hat", depth.sets, depth.layers, jnp.arange(depth.layers + 1.0))
        groups = jax.vmap(combine, in_axes=(0, None))(phi, stack[GROUPS])
    else:
        groups = jax.tree.map(lambda x: jnp.repeat(x, layers, axis=0), stack[GROUPS])

    model = model.clone(config=dataclasses.replace(config, depth=single))
    params = {**variables["params"], "depth": {**stack, GROUPS: groups}}
    return model, {**variables, "params": params}
