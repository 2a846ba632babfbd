"""How depth is integrated: L layers in G = L / share groups, each group one ODE."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from odeformer.ode.settings import SolveSettings
from odeformer.transformer.checks import check_fields, check_shared_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig(SolveSettings):
    """How a stack of layers is integrated; the other fields are those of `SolveSettings`.

    Attributes:
      layers: L, the depth; group g of L / share groups is the ODE on [g share, (g + 1) share].
      share: how many successive layers share one set of weights; it divides layers.
      steps: number of fixed steps per group; None for `share`: one step per layer.
      max_steps: bound on adaptive steps per group, rejected ones included (default 64).

    Raises:
      ValueError: a value, a name or a combination that is not accepted.
    """

    layers: int = 12
    share: int = 1
    solver: str = "euler"

    def __post_init__(self):
        super().__post_init__()
        check_shared_layers(self.layers, self.share)

    @property
    def groups(self) -> int:
        """G, the number of sets of weights."""
        return self.layers // self.share

    @property
    def fixed_steps(self) -> int | None:
        """Number of fixed steps per group; None under adaptive steps."""
        # One step per layer, so that Euler with share = 1 is the plain parallel stack.
        return self.share if self.steps is None and not self.adaptive else self.steps

    @property
    def group_settings(self) -> SolveSettings:
        """How one group is solved."""
        names = [field.name for field in dataclasses.fields(SolveSettings)]
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings["steps"] = self.fixed_steps
        return SolveSettings(**settings)


def as_depth(depth: DepthConfig | Mapping[str, Any]) -> DepthConfig:
    """Returns the depth that a DepthConfig, or a mapping of its fields, describes.

    Raises:
      ValueError: anything else, a field that does not exist, or a value that is not accepted.
    """
    if isinstance(depth, DepthConfig):
        return depth

    if not isinstance(depth, Mapping):
        raise ValueError(
            "depth is a DepthConfig, or a mapping of its fields such as {'layers': 12, 'solver': "
            f"'rk4'}}; {depth!r} was given"
        )

    check_fields("DepthConfig", depth, [field.name for field in dataclasses.fields(DepthConfig)])
    return DepthConfig(**depth)
