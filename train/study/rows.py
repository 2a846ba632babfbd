"""The rows of a study: those of its grid, those matched to them in cost, and what they cost."""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from odeformer import ModelConfig, example_inputs, flops, make_model
from train.checkpoint.restore import count_parameters
from train.config.border import Given, flatten, from_config_dict
from train.config.run import RunConfig
from train.config.study import MatchedConfig
from train.study.checks import check_fixed_steps

_MAX_LAYERS = 512  # of a matched row


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a row costs; work is per example (an image, a block of tokens).

    Attributes:
      parameters: number of parameters.
      nfe: evaluations of all terms in one forward pass.
      inference_flops: model FLOPs of a forward pass: its matrix products, 2 per multiply-add.
      training_flops: model FLOPs of a training step, forwards and backwards.
      recomputed_flops: additional FLOPs that the adjoint recomputes.
    """

    parameters: int
    nfe: int
    inference_flops: int
    training_flops: int
    recomputed_flops: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a study's table: a config that is trained once per replica.

    Attributes:
      name: e.g. 'rk4, share 6'.
      config: the config of its runs, before fold and seed are set.
      costs: what it costs.
      match: (by, name) of the row whose cost it was made to match; None for a row of the grid.
    """

    name: str
    config: RunConfig
    costs: Costs
    match: tuple[str, str] | None = None

    @property
    def slug(self) -> str:
        """The name of the row's folder."""
        return self.name.replace(", ", "_").replace(" ", "")


def grid_rows(base: Given, changes: Mapping[str, Any], grid: Mapping[str, Any]) -> list[Row]:
    """Returns a row for each combination of the grid's values.

    Args:
      base: the config of a run.
      changes: values that replace the config's, as {'seed': 1}.
      grid: values to try of its keys, as {'depth': {'solver': (...), 'share': (...)}}.
    """
    axes = flatten(grid)
    choices = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))

    # The grid has the last word: a flag for one of its keys would make all rows equal.
    return [_grid_row(from_config_dict(base, {**changes, **c}), c) for c in choices]


def matched_rows(rows: Sequence[Row], matched: MatchedConfig | None) -> list[Row]:
    """Returns the rows that are added to those of the grid, nearest to them in cost."""
    if matched is None:
        return []

    targets = [row for row in rows if row.config.model.depth.solver == matched.row]
    return [
        _matched_row(target, solver, matched.by) for target in targets for solver in matched.solvers
    ]


def _grid_row(config: RunConfig, choice: Mapping[str, Any]) -> Row:
    """The row of one choice, as {'depth.solver': ..., 'depth.share': ...}."""
    depth = config.model.depth
    check_fixed_steps(depth.rtol)

    others = [
        f"{key.rpartition('.')[2]} {value}"
        for key, value in choice.items()
        if key not in ("depth.solver", "depth.share")
    ]
    name = ", ".join([depth.solver, f"share {depth.share}", *others])
    return Row(name, config, compute_costs(config.model))


def _matched_row(target: Row, solver: str, by: str) -> Row:
    """The row of that solver whose depth brings it nearest to the target's cost."""
    depth = target.config.model.depth

    def model(layers: int) -> ModelConfig:
        share = layers // depth.groups if depth.share > 1 else 1
        changed = dataclasses.replace(depth, solver=solver, layers=layers, share=share, steps=None)
        return dataclasses.replace(target.config.model, depth=changed)

    def cost(layers: int) -> int:
        return _cost(model(layers), by)

    # A shared row keeps its number of groups, so that as many sets of weights are compared.
    stride = depth.groups if depth.share > 1 else 1
    depths = range(stride, _MAX_LAYERS + 1, stride)

    # Bisected, as no cost falls with the depth; the nearest one is on either side.
    wanted = _cost(target.config.model, by)
    above = bisect.bisect_left(depths, wanted, key=cost)
    layers = min(depths[max(above - 1, 0) : above + 1], key=lambda n: abs(cost(n) - wanted))

    chosen = model(layers)
    name = f"{solver}, share {chosen.depth.share}, layers {layers}"
    config = dataclasses.replace(target.config, model=chosen)
    return Row(name, config, compute_costs(chosen), match=(by, target.name))


def compute_costs(config: ModelConfig) -> Costs:
    """Returns what a model with fixed steps costs, from shapes alone."""
    return Costs(
        parameters=_cost(config, "parameters"),
        nfe=_cost(config, "nfe"),
        inference_flops=_cost(config, "flops"),
        training_flops=flops.training(config),
        recomputed_flops=flops.recomputed(config),
    )


def _cost(config: ModelConfig, by: str) -> int:
    """A cost that rows can be matched by."""
    if by == "nfe":
        return int(flops.evaluations(config).sum())
    if by == "flops":
        return flops.forward(config)

    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0), *example_inputs(config))
    return count_parameters(shapes)
