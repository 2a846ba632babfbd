"""Stacks alone, on a state: DeiT-Ti's (width 192, 3 heads, MLP 768, 65 tokens), and a small one."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from odeformer import DepthConfig, ODEStack, ViTConfig, presets
from odeformer.ode.problem import ADJOINTS
from odeformer.transformer.field import transformer_field

TOKENS = 65


def deit(fused: bool = False, **depth: Any) -> ViTConfig:
    """Returns the config of DeiT-Ti on 32 x 32 pixels, with a depth of these settings."""
    sizes = dict(image_size=32, patch_size=4, classes=10)
    return presets.vit("deit_ti", **sizes, fused=fused, depth=depth)


def make_stack(config: ViTConfig) -> measure.Apply:
    """Returns the stack of a config as a function of its parameters and the state."""
    module = ODEStack(config.depth, transformer_field(config))
    return lambda params, y: module.apply({"params": {"groups": params}}, y).y1  # pyright: ignore


def init_stack(groups: int, batch: int) -> tuple[measure.Params, jax.Array]:
    """Returns parameters of that many groups, and a state [batch, TOKENS, D]."""
    config = deit(layers=groups)
    y_BND = jax.random.normal(jax.random.key(0), (batch, TOKENS, config.width))
    module = ODEStack(config.depth, transformer_field(config))
    return module.init(jax.random.key(1), y_BND)["params"]["groups"], y_BND


def stack_shapes(groups: int, batch: int) -> tuple[measure.Params, Any]:
    """Returns the shapes alone of `init_stack`."""
    return jax.eval_shape(lambda: init_stack(groups, batch))


def compare(
    apply: measure.Apply, reference: measure.Apply, batch: int, pairs: int, groups: int = 12
) -> tuple[measure.Ratio, float, float]:
    """Compares a step of gradient descent with that of a reference.

    Returns:
      Time ratio, relative difference of the losses, and ratio of temporary memory.
    """
    arrays = init_stack(groups, batch)
    programs = [
        measure.compile_program(measure.descent_step(f), *arrays) for f in (apply, reference)
    ]
    ratio, difference = measure.time_ratio(programs[0], programs[1], *arrays, pairs)
    numerator, denominator = (measure.temporary_bytes(program) for program in programs)
    return ratio, difference, numerator / denominator


def small_gradients(solver: str, steps: int) -> dict[str, Any]:
    """Returns the gradient of a small float64 stack of one group of 12 layers, by each adjoint."""
    y_BND = jax.random.normal(jax.random.key(0), (2, 17, 32), jnp.float64)
    gradients = {}
    for adjoint in ADJOINTS:
        depth = DepthConfig(layers=12, share=12, solver=solver, steps=steps, adjoint=adjoint)
        config = ViTConfig(width=32, heads=2, mlp=128, dtype="float64", depth=depth)
        module = ODEStack(depth, transformer_field(config))
        params = module.init(jax.random.key(1), y_BND)["params"]["groups"]
        gradient = jax.jit(measure.loss_and_gradient(make_stack(config)))
        _, gradients[adjoint] = gradient(params, y_BND)
    return gradients
