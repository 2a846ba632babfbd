"""What is solved, and how."""

from typing import Any, NamedTuple

import jax

from odeformer.ode.field import Params, State, VectorField
from odeformer.ode.settings import SolveSettings


class Problem(NamedTuple):
    """What is solved, and how; see `integrate`."""

    field: VectorField
    y0: State
    params: Params
    key: jax.Array | None
    settings: SolveSettings
    params_axes: Any = None
    weights: State | None = None
    prevent_cse: bool = True

    @property
    def args(self) -> tuple[Any, ...]:
        """What a term takes after t and y."""
        return (self.params,) if self.key is None else (self.params, self.key)
