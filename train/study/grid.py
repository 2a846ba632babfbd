"""Studies: a grid of runs over folds and seeds, and rows matched in cost to those of the grid."""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from odeformer import example_inputs, flops, make_model
from odeformer.errors import unknown
from odeformer.models.registry import ModelConfig
from train.checkpoint.restore import count_parameters
from train.config.border import Given, flatten, from_config_dict
from train.config.data import ImageDataConfig
from train.config.run import RunConfig
from train.config.study import MatchedConfig, read_study
from train.errors import BadInput

DEEPEST = 512  # layers that are tried for a matched row
KEYS = ("config", "grid", "matched", "folds", "seeds")


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a row costs, per example (an image, a block of tokens) where it is work.

    Attributes:
      parameters: number of parameters.
      nfe: evaluations of all terms in one forward pass.
      inference_flops: model FLOPs of a forward pass: its matrix products, 2 a multiply-add.
      training_flops: model FLOPs of a training step, forwards and backwards.
      recomputed_flops: what the adjoint recomputes on top.
    """

    parameters: int
    nfe: int
    inference_flops: int
    training_flops: int
    recomputed_flops: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a study's table: a config that is trained once a replica.

    Attributes:
      name: e.g. 'rk4, share 6'.
      config: of its runs, but for fold and seed.
      costs: what it costs.
      match: (by, name) of the row it was made to match, for a matched row.
    """

    name: str
    config: RunConfig
    costs: Costs
    match: tuple[str, str] | None = None

    @property
    def slug(self) -> str:
        """The row's name as a folder's."""
        return self.name.replace(", ", "_").replace(" ", "")


@dataclasses.dataclass(frozen=True)
class Replica:
    """One training of a row.

    Attributes:
      fold: the fifth that is tested on in cross-validation; None where the test split is fixed.
      seed: of the run.
    """

    fold: int | None
    seed: int

    @property
    def slug(self) -> str:
        """The replica's folder."""
        return (f"fold{self.fold}_" if self.fold is not None else "") + f"seed{self.seed}"

    @property
    def key(self) -> tuple[int, int]:
        """(fold, seed), 0 where there are no folds."""
        return (self.fold or 0, self.seed)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper: that a row is better than a baseline (or, of sharing, worse)."""

    text: str
    row: str
    baseline: str


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows and replicas of a study; every row has every replica."""

    rows: tuple[Row, ...]
    replicas: tuple[Replica, ...]
    claims: tuple[Claim, ...]


def from_study_dict(study: Any, changes: Mapping[str, Any] | None = None) -> Study:
    """Returns the study that a file of configs/studies describes.

    Args:
      study: a ConfigDict of `config`, the ConfigDict of a run; `grid`, values to try of its keys,
        as {'depth': {'solver': (...), 'share': (...)}}; `matched`, {'row': solver, 'by': ...,
        'solvers': (...)}: for each row of that solver a deeper or shallower row of each of those
        solvers, nearest to it by 'parameters', 'nfe' or 'flops', with as many sets of weights where
        the row shares them and one per layer where it does not; `folds`, a number or None; `seeds`.
      changes: values that replace those, as {'folds': 3, 'config.seed': 1}.

    Raises:
      BadInput: a key, a name or a value that is not accepted.
    """
    changes = changes or {}
    _check_study_keys(study)
    own = read_study(study, changes)

    of_run = {k.removeprefix("config."): v for k, v in changes.items() if k.startswith("config.")}
    base = from_config_dict(study.config, of_run)
    if own.folds is not None and not isinstance(base.data, ImageDataConfig):
        raise BadInput(
            f"study: folds={own.folds}: a run of task {base.task!r} has a test split of its own; "
            "set folds to None, and give seeds"
        )

    rows = [_grid_row(study.config, of_run, choice) for choice in _choices(study.grid.to_dict())]
    rows += _matched_rows(rows, own.matched)
    folds = [None] if own.folds is None else range(own.folds)
    replicas = tuple(Replica(fold, seed) for seed in own.seeds for fold in folds)
    return Study(tuple(rows), replicas, tuple(_claims(rows)))


def _check_study_keys(study: Any) -> None:
    for key in study:
        if key not in KEYS:
            raise BadInput(f"study: {unknown('key', key, KEYS)}")

    missing = [key for key in KEYS if key not in study]
    if missing:
        raise BadInput(f"study: {', '.join(missing)} is missing; a study has {', '.join(KEYS)}")


def replica_config(row: Row, replica: Replica) -> RunConfig:
    """Returns the config of one run."""
    config = dataclasses.replace(row.config, seed=replica.seed)
    if replica.fold is None or not isinstance(config.data, ImageDataConfig):
        return config

    return dataclasses.replace(config, data=dataclasses.replace(config.data, fold=replica.fold))


def costs(config: ModelConfig) -> Costs:
    """Returns what a model of fixed steps costs; nothing is computed but shapes."""
    forward = flops.forward(config)
    return Costs(
        parameters=_cost(config, "parameters"),
        nfe=_cost(config, "nfe"),
        inference_flops=forward,
        training_flops=flops.training(config),
        recomputed_flops=flops.recomputed(config),
    )


def _cost(config: ModelConfig, by: str) -> int:
    """One of the costs that rows can be matched by."""
    if by == "nfe":
        return int(flops.evaluations(config).sum())
    if by == "flops":
        return flops.forward(config)
    shapes = jax.eval_shape(make_model(config).init, jax.random.key(0), *example_inputs(config))
    return count_parameters(shapes)


def _choices(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the grid's values, as {'depth.solver': ..., 'depth.share': ...}."""
    axes = flatten(grid)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _grid_row(base: Given, changes: Mapping[str, Any], choice: Mapping[str, Any]) -> Row:
    config = from_config_dict(base, {**changes, **choice})
    depth = config.model.depth
    if depth.rtol is not None:
        raise BadInput(
            f"study: rtol={depth.rtol} gives each input steps of its own, whose cost is not known "
            "before they are taken: rows have fixed steps; evaluate the finished runs under "
            "tolerances with python -m train.evaluate"
        )
    others = [
        f"{key.rpartition('.')[2]} {value}"
        for key, value in choice.items()
        if key not in ("depth.solver", "depth.share")
    ]
    name = ", ".join([depth.solver, f"share {depth.share}", *others])
    return Row(name, config, costs(config.model))


def _matched_rows(rows: Sequence[Row], matched: MatchedConfig | None) -> list[Row]:
    if matched is None:
        return []
    targets = [row for row in rows if row.config.model.depth.solver == matched.row]
    return [
        _matched_row(target, solver, matched.by) for target in targets for solver in matched.solvers
    ]


def _matched_row(target: Row, solver: str, by: str) -> Row:
    """The row of that solver whose depth brings it nearest to the target's cost."""

    def model(layers: int) -> ModelConfig:
        share = layers // depth.groups if depth.share > 1 else 1
        changed = dataclasses.replace(depth, solver=solver, layers=layers, share=share, steps=None)
        return dataclasses.replace(target.config.model, depth=changed)

    def cost(layers: int) -> int:
        return _cost(model(layers), by)

    depth = target.config.model.depth
    wanted = _cost(target.config.model, by)
    stride = depth.groups if depth.share > 1 else 1
    depths = range(stride, DEEPEST + 1, stride)
    above = bisect.bisect_left(depths, wanted, key=cost)  # costs do not fall with the depth
    layers = min(depths[max(above - 1, 0) : above + 1], key=lambda n: abs(cost(n) - wanted))
    chosen = model(layers)
    config = dataclasses.replace(target.config, model=chosen)
    name = f"{solver}, share {chosen.depth.share}, layers {layers}"
    return Row(name, config, costs(chosen), match=(by, target.name))


def _claims(rows: Sequence[Row]) -> list[Claim]:
    """The paper's claims, as far as the rows can test them."""
    by_place = {_place(row): row.name for row in rows if row.match is None}
    claims = []
    for (solver, share, rest), name in by_place.items():
        for text, other in (
            ("parallel beats sequential", ("euler", "lie_trotter")),
            ("higher order beats the parallel layer", ("midpoint", "euler")),
            ("higher order beats the parallel layer", ("rk4", "euler")),
        ):
            baseline = by_place.get((other[1], share, rest))
            if solver == other[0] and baseline:
                claims.append(Claim(text, name, baseline))
        unshared = by_place.get((solver, 1, rest))
        if share > 1 and unshared:
            claims.append(Claim("sharing weights costs accuracy", name, unshared))
    for row in rows:
        if row.match:
            by, target = row.match
            claims.append(Claim(f"the same at equal {by}", target, row.name))
    return claims


def _place(row: Row) -> tuple[str, int, str]:
    """Solver, share, and what else the row's name says."""
    depth = row.config.model.depth
    return depth.solver, depth.share, row.name.partition(f"share {depth.share}")[2]
