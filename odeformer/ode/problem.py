"""One solve: the field, its start, its parameters and its settings."""

from typing import Any, NamedTuple

import jax

from odeformer.ode.field import Params, State, VectorField
from odeformer.ode.settings import SolveSettings


class Problem(NamedTuple):
    """The arguments of `integrate` that all ways of solving share, checked."""

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
        """The arguments of a term after t and y."""
        return (self.params,) if self.key is None else (self.params, self.key)
