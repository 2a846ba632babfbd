"""Low-rank adapters in a run: what is trained in the place of the weights, and what is not.

A run with config.lora.rank trains adapters of the weights that config.init.path names, its base,
and a classifier's head. These alone are its state, and so its checkpoints.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from odeformer import lora
from train.config.run import RunConfig, base_task
from train.devices.mesh import abstract_parameters


def init_trained(
    config: RunConfig, seed: int | jax.Array, params: Any, head: Any = None
) -> dict[str, Any]:
    """Returns what is trained, as it begins: new adapters and a classifier's head.

    Args:
      params: all of the model's parameters, as they are initialised without a base.
      head: the base's head; None: a new one.
    """
    if head is None:
        head, _ = split_head(config, params)

    # A copy: the step donates what it trains, and the base is needed for another beginning.
    head = jax.tree.map(jnp.copy, head)

    # The model's own parameters have keys that are split from the seed's.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"lora"))
    assert config.lora.rank is not None
    return lora.init(key, params, config.lora.rank, config.lora.targets) | head


def split_head(config: RunConfig, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what of a model's parameters is trained next to adapters, and all others.

    A classifier's head is: its classes may be others than those that the weights were trained on.
    """
    names = () if base_task(config.task) == "language" else ("head", "distillation_head")
    head = {name: params[name] for name in names if name in params}
    return head, {name: params[name] for name in params if name not in head}


def abstract_base(config: RunConfig, mesh: Mesh) -> dict[str, Any] | None:
    """Returns shapes, dtypes and shardings of the weights that a run adapts; None without any."""
    if config.lora.rank is None:
        return None

    _, base = split_head(config, abstract_parameters(config.model, mesh))
    return base


def adapted(config: RunConfig, params: Any, base: Any) -> dict[str, Any]:
    """Returns what the model is applied to, in the place of {'params': params}.

    Args:
      params: what is trained: adapters, and a classifier's head.
      base: the frozen weights that adapters adapt.
    """
    adapters, head = lora.split(params)
    return {"params": {**base, **head}, "lora": lora.scale(adapters, config.lora.scale)}


def merge(config: RunConfig, params: Any, base: Any) -> Any:
    """Returns all of a model's parameters; the arguments are those of `adapted`."""
    variables = adapted(config, params, base)

    # Merged kernels lie as the kernels do; left alone, the compiler may place them elsewhere.
    shardings = jax.tree.map(lambda leaf: leaf.sharding, variables["params"])
    return jax.jit(lora.merge, out_shardings=shardings)(variables["params"], variables["lora"])
