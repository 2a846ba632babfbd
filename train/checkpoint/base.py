"""The weights that a run trains adapters of: taken from elsewhere, and known by their digest."""

import dataclasses
import hashlib
import json
from typing import Any

from flax import traverse_util
from jax.sharding import Mesh

from train.adapters import split_head
from train.checkpoint.checksums import checksums
from train.checkpoint.initial_params import take
from train.checkpoint.initial_plan import Plan, Source, describe, is_of_head
from train.checkpoint.metadata import Initial
from train.checkpoint.parameters import abstract_parameters
from train.config.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Base:
    """Weights that adapters are trained of.

    Attributes:
      params: all that is not trained.
      head: a classifier's head, where its classes are as many as the run's; None: a new one.
      digest: SHA-256 of the checksums of what is not trained, before it is resampled.
      initial: where they are, and what was done to them.
      is_run: whether they are another run's, and no pretrained model's.
    """

    params: dict[str, Any]
    head: dict[str, Any] | None
    digest: str
    initial: Initial
    is_run: bool


def make_base(
    config: RunConfig, source: Source, plan: Plan, weights: Any, *, step: int | None, mesh: Mesh
) -> Base:
    """Returns a run's base.

    Args:
      config: of the run.
      source: where the weights are from.
      plan: what becomes of each parameter of the run's model.
      weights: all parameters of the source's model.
      step: of the checkpoint that they are from; None of a pretrained model.
      mesh: the devices to lay them out on.
    """
    like = traverse_util.flatten_dict(abstract_parameters(config.model, mesh), sep="/")
    taken = take(plan, source, weights, config.model, like)
    head, params = split_head(config, traverse_util.unflatten_dict(taken, sep="/"))

    return Base(
        params=params,
        head=head if head and not any(map(is_of_head, plan.new)) else None,
        digest=_digest(params, plan, source, weights),
        initial=describe(source, plan, config, step),
        is_run=source.is_run,
    )


def _digest(params: Any, plan: Plan, source: Source, weights: Any) -> str:
    """The digest of a base, which must be the same on every device."""
    known = dict(traverse_util.flatten_dict(params, sep="/"))
    theirs = traverse_util.flatten_dict(weights, sep="/")

    # Resampled by another device, or another version of jax, their last bits may differ. A
    # pretrained model's are resampled where they are read: its other weights must do.
    for name in plan.resampled:
        del known[name]
        if source.is_run:
            known[name] = theirs[name]

    sums = json.dumps(checksums(traverse_util.unflatten_dict(known, sep="/")), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()
