"""A run whose weights over depth are refined while it trains: its config, step by step."""

import dataclasses
from typing import Any

from odeformer import resolution
from train.errors import BadInput


def at_step(config: Any, step: int) -> Any:
    """Returns a run's config after that many steps.

    Its depth is refined as often as config.depth.refine_at asked for up to then, and refine_at
    holds the steps that are still to come.

    Args:
      config: of the run, a RunConfig.
      step: a number of steps.
    """
    depth = config.model.depth
    later = tuple(other for other in depth.refine_at if other > step)
    if len(later) == len(depth.refine_at):
        return config

    for _ in range(len(depth.refine_at) - len(later)):
        depth = resolution.refined_depth(depth)

    depth = dataclasses.replace(depth, refine_at=later)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=depth))


def check_refine_at(config: Any) -> None:
    """Raises BadInput for refinements after a run's end, or of what cannot be refined as often.

    And for rates by layer, where the weights are not those of layers.
    """
    depth, steps = config.model.depth, config.train_steps
    if depth.basis != "constant" and config.optimizer.layer_decay is not None:
        raise BadInput(
            f"config.optimizer.layer_decay={config.optimizer.layer_decay} goes by layers, which "
            f"the coefficients of config.depth.basis={depth.basis!r} are not: leave either out"
        )

    if depth.refine_at and depth.refine_at[-1] >= steps:
        raise BadInput(
            f"config.depth.refine_at={list(depth.refine_at)} does not lie below train_steps="
            f"{steps}: refine earlier or train longer"
        )

    for step in depth.refine_at:
        try:
            depth = resolution.refined_depth(depth)
        except ValueError as error:
            raise BadInput(f"config.depth.refine_at: at step {step}, {error}") from error


def not_refinable(optimizer: str, name: str, shape: tuple[int, ...]) -> BadInput:
    """Returns the error for an array of an optimiser's state of which no refinement is known."""
    return BadInput(
        f"config.depth.refine_at: of the optimiser {optimizer!r} it is not known how its "
        f"{name} {list(shape)} is refined over depth: take another optimiser, "
        "such as adamw, or leave refine_at out"
    )
