"""Train steps of the library's models and of those written by hand, without the trainer.

The trainer's own step needs packages that a plain CUDA image lacks. This one does the same work:
loss, gradient, AdamW, and an update that can be refused.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import handwritten
from odeformer import LM, LMConfig, ViT, ViTConfig, presets

State = tuple[Any, Any]  # parameters, and the optimiser's
Forward = Callable[[Any, jax.Array], jax.Array]  # (params, inputs) -> logits
Batch = tuple[jax.Array, jax.Array]  # inputs, and the classes to be predicted
UPDATES = ("plain", "cond", "where")

BATCH = {"deit_ti": 512, "vit_b": 128, "vit_l": 128, "gpt_nano": 64, "gpt_small": 16}
TINY_BATCH = 4
SCALE = 0.02  # of random parameters

_SMALL_IMAGES = dict(image_size=32, patch_size=4, classes=10)
_TINY_IMAGES = dict(image_size=8, patch_size=4, classes=10, width=32, heads=2, mlp=64)
_TINY_TOKENS = dict(vocabulary=64, block_size=32, width=32, heads=2, mlp=64)
_TINY_LAYERS = 2


def vit(name: str, tiny: bool, depth: dict[str, Any] | None = None, **changes: Any) -> ViTConfig:
    """Returns a vision transformer's config in bfloat16; deit_ti's is that of 32 pixels, patch 4.

    Args:
      name: of `presets.VIT_NAMES`.
      tiny: whether its sizes are those of a rehearsal.
      depth: fields of its DepthConfig.
      **changes: further fields.
    """
    sizes = _SMALL_IMAGES if name == "deit_ti" else {}
    if tiny:
        sizes, depth = _TINY_IMAGES, {"layers": _TINY_LAYERS} | (depth or {})
    return presets.vit(name, depth=depth, **({"dtype": "bfloat16"} | sizes | changes))


def lm(name: str, tiny: bool, depth: dict[str, Any] | None = None, **changes: Any) -> LMConfig:
    """Returns a language model's config in bfloat16.

    Args:
      As those of `vit`, the name of `presets.LM_NAMES`.
    """
    sizes: dict[str, Any] = {}
    if tiny:
        sizes, depth = _TINY_TOKENS, {"layers": _TINY_LAYERS} | (depth or {})
    return presets.lm(name, depth=depth, **({"dtype": "bfloat16"} | sizes | changes))


def batch_size(name: str, tiny: bool) -> int:
    """Returns the examples of a batch."""
    return TINY_BATCH if tiny else BATCH[name]


def example(config: ViTConfig | LMConfig, batch: int) -> Batch:
    """Returns a batch of noise: images and classes, or tokens and the ones that follow them."""
    key = jax.random.key(0)
    if isinstance(config, ViTConfig):
        images = jax.random.normal(key, (batch, *config.image_shape))
        return images, jnp.arange(batch) % config.classes
    tokens = jax.random.randint(key, (batch, config.block_size), 0, config.vocabulary)
    return tokens, jnp.roll(tokens, -1, axis=1)


def forward(config: ViTConfig | LMConfig) -> Forward:
    """Returns the library's model as a function of its parameters."""
    model = ViT(config) if isinstance(config, ViTConfig) else LM(config)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, inputs)
        return logits

    return apply


def forward_by_hand(config: ViTConfig, layer: Callable[..., jax.Array], **options: Any) -> Forward:
    """Returns the same vision transformer without a solver.

    Args:
      config: whose sizes and dtype are taken, and whose parameters serve.
      layer: one of `handwritten.LAYERS`.
      **options: of the layer.
    """
    dtype = jnp.dtype(config.dtype)
    layer = functools.partial(layer, dtype=dtype, **options)
    return lambda params, images: handwritten.vit(layer, params, images, config.patch_size, dtype)


def optimizer() -> optax.GradientTransformation:
    """Returns the AdamW of every timed step."""
    return optax.adamw(1e-3, weight_decay=0.05)


def make_step(
    forward: Forward, update: str = "plain"
) -> Callable[[State, Batch], tuple[State, jax.Array]]:
    """Returns a train step (state, batch) -> (state, loss).

    Args:
      forward: the model.
      update: 'plain' always learns; 'cond' and 'where' keep the state where the loss is not finite,
        by `lax.cond` or by a selection between both.
    """

    def loss_fn(params: Any, batch: Batch) -> jax.Array:
        logits = forward(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(state[0], batch)

        def learn(state: State) -> State:
            updates, opt_state = optimizer().update(gradient, state[1], state[0])
            return optax.apply_updates(state[0], updates), opt_state

        if update == "plain":
            return learn(state), loss
        accepted = jnp.isfinite(loss)
        if update == "cond":
            return jax.lax.cond(accepted, learn, lambda state: state, state), loss
        select = lambda new, old: jnp.where(accepted, new, old)
        return jax.tree.map(select, learn(state), state), loss

    return step


def abstract_state(config: ViTConfig | LMConfig) -> State:
    """Returns the shapes and dtypes of a model's state; they are the same for all solvers."""
    model = ViT(config) if isinstance(config, ViTConfig) else LM(config)

    def init(key: jax.Array) -> State:
        inputs, _ = example(config, 1)
        params = model.init(key, jnp.zeros_like(inputs))["params"]
        return params, optimizer().init(params)

    return jax.eval_shape(init, jax.random.key(0))


def make_params(config: ViTConfig | LMConfig) -> Any:
    """Returns random parameters, none of them zero.

    They are drawn on the host: to compile a model's initialisation takes longer than to time it.
    """
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = SCALE * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise + 1 if path[-1].key == "scale" else noise)

    return jax.tree_util.tree_map_with_path(draw, abstract_state(config)[0])


def make_state(config: ViTConfig | LMConfig) -> State:
    """Returns a state of such parameters that has seen no step."""
    _, opt_state = abstract_state(config)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), opt_state)
    return make_params(config), zeros


def plain(config: ViTConfig | LMConfig) -> ViTConfig | LMConfig:
    """Returns the config of another solver that has the same parameters as this one."""
    depth = dataclasses.replace(
        config.depth, solver="euler", adjoint="checkpoint", policy=None, rtol=None
    )
    return dataclasses.replace(config, depth=depth, fused=False, attention="xla")
