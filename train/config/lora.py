"""Low-rank adapters: the group `lora` of a run's config."""

import dataclasses
from typing import Any

from train.config.setting import COUNT, POSITIVE, Range, setting
from train.errors import BadInput

_TARGETS = Range(
    "a list of names, as qkv,mlp_layer or attention_layer/out",
    lambda names: all(isinstance(name, str) and all(name.split("/")) for name in names),
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, which are trained instead of the weights; docs/lora.md."""

    rank: int | None = setting(
        None, "Rank of the adapters; None: no adapters, all weights are trained.", COUNT
    )
    alpha: float | None = setting(
        None, "Adapters are scaled by alpha / rank; None: by 1, as with alpha=rank.", POSITIVE
    )
    targets: tuple[str, ...] = setting(
        (), "Parts of the names of the kernels to adapt; empty: all of the terms.", _TARGETS
    )

    @property
    def scale(self) -> float:
        """The factor of A B in an adapted kernel."""
        if self.rank is None or self.alpha is None:
            return 1.0
        return self.alpha / self.rank


def check_lora(lora: LoraConfig, init: Any, depth: Any) -> None:
    """Refuses adapters without weights to adapt, and keys that act on adapters without any."""
    if lora.rank is not None:
        if init.path is None:
            raise BadInput(
                f"config.lora.rank={lora.rank} adapts weights that there are already: name the run "
                "or the pretrained model that holds them in config.init.path, or set the rank to "
                "None"
            )
        for key in ("include", "exclude"):
            if getattr(init, key):
                raise BadInput(
                    f"config.init.{key}={list(getattr(init, key))} has no effect with adapters, "
                    "which always adapt all the weights: leave it out, or set config.lora.rank "
                    "to None"
                )
        if depth.refine_at:
            raise BadInput(
                f"config.depth.refine_at={list(depth.refine_at)} does not go with adapters, "
                f"config.lora.rank={lora.rank}, whose base is never changed: leave it out, or set "
                "config.lora.rank to None"
            )
        return

    for key, value in (("alpha", lora.alpha), ("targets", list(lora.targets) or None)):
        if value is not None:
            raise BadInput(
                f"config.lora.{key}={value} has no effect without adapters: set config.lora.rank, "
                "too"
            )
