"""The table of architectures whose weights are read and written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from odeformer.interop import gpt2, vit
from odeformer.interop.checks import check_architecture, check_layers, check_writable
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
      layout: the config -> which tensors make up which parameters.
      stored_as: (a stored tensor's name, config) -> its name in the layout, None for no weight.
    """

    config: Callable[..., Any]
    read: Callable[[Raw], dict[str, Any]]
    write: Callable[[Any], Raw]
    layout: Callable[[Any], Layout]
    stored_as: Callable[[str, Any], str | None]


_VIT = Family(ViTConfig, vit.read, vit.write, vit.layout, vit.stored_as)
_GPT2 = Family(LMConfig, gpt2.read, gpt2.write, gpt2.layout, gpt2.stored_as)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(vit.DISTILLATION, _VIT),
    gpt2.ARCHITECTURE: _GPT2,
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
    check_writable(config)
    return _VIT if isinstance(config, ViTConfig) else _GPT2
