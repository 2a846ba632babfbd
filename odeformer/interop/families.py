"""The table of architectures whose weights are read and written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from odeformer.errors import check_kind
from odeformer.interop import gpt2, llama, vit
from odeformer.interop.checks import (
    Needs,
    check_architecture,
    check_layers,
    check_writable,
    plain_needs,
)
from odeformer.interop.layout import Layout
from odeformer.interop.settings import Raw
from odeformer.models.lm import LMConfig
from odeformer.models.registry import ModelConfig
from odeformer.models.vit import ViTConfig
from odeformer.transformer.depth import DepthConfig, as_depth


class Family(NamedTuple):
    """What belongs to one kind of model.

    Attributes:
      config: the class of its configs.
      read: config.json -> fields of the config, and 'layers'.
      write: the config -> config.json.
      needs: the config -> by key, what the model has and what the layout accepts.
      layout: the config -> which tensors make up which parameters.
      stored_as: (a stored tensor's name, config) -> its name in the layout, None for no weight.
    """

    config: Callable[..., Any]
    read: Callable[[Raw], dict[str, Any]]
    write: Callable[[Any], Raw]
    needs: Callable[[Any], Needs]
    layout: Callable[[Any], Layout]
    stored_as: Callable[[str, Any], str | None]


def _family(config: Callable[..., Any], room: Any, needs: Callable[[Any], Needs]) -> Family:
    """The family whose functions a module of this room has."""
    return Family(
        config=config,
        read=room.read,
        write=room.write,
        needs=needs,
        layout=room.layout,
        stored_as=room.stored_as,
    )


_VIT = _family(
    ViTConfig, vit, lambda config: {**plain_needs(config), "model.pool": (config.pool, "token")}
)
_GPT2 = _family(LMConfig, gpt2, plain_needs)
_LLAMA = _family(LMConfig, llama, llama.needs)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(vit.DISTILLATION, _VIT),
    gpt2.ARCHITECTURE: _GPT2,
    **dict.fromkeys(llama.DEFAULTS, _LLAMA),
}


def read_family(
    raw: Raw, depth: DepthConfig | Mapping[str, Any] | None, dtype: str
) -> tuple[Family, Any]:
    """Returns the family that a config.json names, and the model's config.

    Raises:
      ValueError: an architecture or a value that the models do not have, or a depth of which the
        weights are not.
    """
    family = FAMILIES[check_architecture(raw, FAMILIES)]
    fields = family.read(raw)
    layers = fields.pop("layers")

    # A pre-norm transformer is a solve by Lie-Trotter, one step per layer.
    depth = {} if depth is None else depth
    if isinstance(depth, Mapping):
        depth = {"layers": layers, "solver": "lie_trotter", **depth}
    depth = as_depth(depth)
    check_layers(depth, layers)
    return family, family.config(**fields, dtype=dtype, depth=depth)


def family_of(config: ModelConfig) -> Family:
    """Returns the family that a model can be written as.

    Raises:
      ValueError: a model that none of them is.
    """
    check_kind("save_pretrained", config, ViTConfig, LMConfig)
    text = _LLAMA if config.norm == "rms" else _GPT2
    family = _VIT if isinstance(config, ViTConfig) else text
    check_writable(config, family.needs(config))
    return family
