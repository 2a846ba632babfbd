"""The table of architectures whose weights are read and written."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from odeformer.errors import check_kind
from odeformer.interop import dinov2, gpt2, llama, positions, timm_vit, vit
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
from odeformer.transformer.config import DepthConfig, as_depth


class Family(NamedTuple):
    """How the models of one kind are read and written.

    Attributes:
      config: the class of the models' configs.
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


def _family(config: Callable[..., Any], module: Any, needs: Callable[[Any], Needs]) -> Family:
    """The family whose functions a module of this folder has."""
    return Family(
        config=config,
        read=module.read,
        write=module.write,
        needs=needs,
        layout=module.layout,
        stored_as=module.stored_as,
    )


_VIT, _DINOV2 = _family(ViTConfig, vit, vit.needs), _family(ViTConfig, dinov2, dinov2.needs)
_GPT2 = _family(LMConfig, gpt2, plain_needs)
_LLAMA = _family(LMConfig, llama, llama.needs)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(vit.DISTILLATION, _VIT),
    **dict.fromkeys(dinov2.ARCHITECTURES, _DINOV2),
    gpt2.ARCHITECTURE: _GPT2,
    **dict.fromkeys(llama.DEFAULTS, _LLAMA),
}


class Reading(NamedTuple):
    """How the tensors of a folder make a model.

    Attributes:
      config: the model's config.
      layout: which tensors make up which parameters.
      stored_as: a stored tensor's name -> its name in the layout, None for no weight.
      resample: how learned positions are resampled to another grid of patches.
    """

    config: Any
    layout: Layout
    stored_as: Callable[[str], str | None]
    resample: positions.Rule


def read_family(raw: Raw, depth: DepthConfig | Mapping[str, Any] | None, dtype: str) -> Reading:
    """Returns how to make the model that a config.json describes.

    Raises:
      ValueError: an architecture or a value that our models do not have, or a depth that does not
        fit the weights.
    """
    is_timm = timm_vit.is_named(raw)
    family = _VIT if is_timm else FAMILIES[check_architecture(raw, FAMILIES)]
    fields = timm_vit.read(raw) if is_timm else family.read(raw)
    layers = fields.pop("layers")

    # A pre-norm transformer is a solve by Lie-Trotter, one step per layer.
    depth = {} if depth is None else depth
    if isinstance(depth, Mapping):
        depth = {"layers": layers, "solver": "lie_trotter", **depth}
    depth = as_depth(depth)
    check_layers(depth, layers)

    config = family.config(**fields, dtype=dtype, depth=depth)
    if is_timm:
        return Reading(config, timm_vit.layout(config, raw), str, positions.antialiased)

    # The only model of transformers that is resampled as timm does.
    smooths = raw.get("model_type") == dinov2.WITH_REGISTERS
    return Reading(
        config,
        family.layout(config),
        stored_as=lambda name: family.stored_as(name, config),
        resample=positions.antialiased if smooths else positions.plain,
    )


def family_of(config: ModelConfig) -> Family:
    """Returns the family that a model can be written as.

    Raises:
      ValueError: a model that fits none of them.
    """
    check_kind("save_pretrained", config, ViTConfig, LMConfig)
    if isinstance(config, ViTConfig):
        family = _DINOV2 if dinov2.is_meant(config) else _VIT
    else:
        family = _LLAMA if config.norm == "rms" else _GPT2

    check_writable(config, family.needs(config))
    return family
