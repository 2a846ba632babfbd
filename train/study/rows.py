"""The rows of a study: those of its grid, those matched to them in cost, and what they cost."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from odeformer import DepthConfig, ModelConfig, flops, solvers
from train.checkpoint.parameters import count_parameters
from train.config.border import Cfg, flatten, from_config_dict
from train.config.run import RunConfig
from train.config.study import MatchedConfig
from train.devices.mesh import parameter_shapes
from train.study.checks import check_fixed_steps, check_matched

_MAX_LAYERS = 512  # of a matched row, or steps over all its groups


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
      match: (by, name) of the row whose cost it was made to match; None for a row of the grid.
    """

    name: str
    config: RunConfig
    match: tuple[str, str] | None = None

    @property
    def slug(self) -> str:
        """The name of the row's folder."""
        return self.name.replace(", ", "_").replace(" ", "")

    @functools.cached_property
    def costs(self) -> Costs:
        """What it costs; computed when it is asked for, as that takes a trace."""
        return compute_costs(self.config.model)


def grid_rows(base: Cfg, changes: Mapping[str, Any], grid: Mapping[str, Any]) -> list[Row]:
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

    check_matched(matched)
    make = {"steps": _row_of_more_steps, "layers": _row_of_more_layers}
    targets = [row for row in rows if row.config.model.depth.solver == matched.row]
    return [
        make[means](target, solver, matched.by)
        for means in matched.means
        for target in targets
        for solver in matched.solvers
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
    solver = solvers.name_of(depth.solver)
    return Row(", ".join([solver, f"share {depth.share}", *others]), config)


def _row_of_more_steps(target: Row, solver: str, by: str) -> Row:
    """The same ODE with the same weights, in the number of steps nearest to the target's cost."""
    depth = target.config.model.depth
    steps = _nearest(
        target,
        by,
        range(1, _MAX_LAYERS // depth.groups + 1),
        lambda steps: dataclasses.replace(depth, solver=solver, steps=steps),
    )
    name = f"{solver}, share {depth.share}, steps {steps.steps}"
    return Row(name, _with_depth(target, steps), match=(by, target.name))


def _row_of_more_layers(target: Row, solver: str, by: str) -> Row:
    """A deeper model: each layer with weights of its own, or as many sets of them as the target.

    It is another ODE, on [0, layers], and where weights are shared the field moves over more time.
    """
    depth = target.config.model.depth

    def deeper(layers: int) -> DepthConfig:
        share = layers // depth.groups if depth.share > 1 else 1
        return dataclasses.replace(depth, solver=solver, layers=layers, share=share, steps=None)

    # A shared row keeps its number of groups, so that as many sets of weights are compared.
    stride = depth.groups if depth.share > 1 else 1
    chosen = _nearest(target, by, range(stride, _MAX_LAYERS + 1, stride), deeper)
    name = f"{solver}, share {chosen.share}, layers {chosen.layers}"
    return Row(name, _with_depth(target, chosen), match=(by, target.name))


def _nearest(
    target: Row, by: str, numbers: Sequence[int], depth: Callable[[int], DepthConfig]
) -> DepthConfig:
    """The depth, of those of a range of numbers, that is nearest to the target in cost."""

    def cost(number: int) -> int:
        return _cost(_with_depth(target, depth(number)).model, by)

    wanted = _cost(target.config.model, by)

    # Bisected, as no cost falls with the number; the nearest one is on either side.
    above = bisect.bisect_left(numbers, wanted, key=cost)
    candidates = numbers[max(above - 1, 0) : above + 1]
    return depth(min(candidates, key=lambda number: abs(cost(number) - wanted)))


def _with_depth(row: Row, depth: DepthConfig) -> RunConfig:
    model = dataclasses.replace(row.config.model, depth=depth)
    return dataclasses.replace(row.config, model=model)


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

    return count_parameters(parameter_shapes(config))
