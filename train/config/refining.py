"""A run whose weights over depth are refined while it trains: its config, step by step."""

import dataclasses
from typing import Any

from odeformer import resolution
from train.errors import BadInput


def at_step(config: Any, step: int) -> Any:
    """Returns a run's config after that many steps.

    Its depth is refined once for each step of config.depth.refine_at up to then; refine_at keeps
    the steps that are still to come.

    Args:
      config: a RunConfig, as the run began with it.
      step: the number of steps.
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
    """Raises BadInput for refinements after a run's end, or more than its depth allows.

    Also for learning rates by layer, if the sets of weights do not belong to layers.
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
    """Returns the error for an array of an optimiser's state that cannot be refined."""
    return BadInput(
        f"config.depth.refine_at: of the optimiser {optimizer!r} it is not known how its "
        f"{name} {list(shape)} is refined over depth: take another optimiser, "
        "such as adamw, or leave refine_at out"
    )
