"""The weights that a run trains adapters of: taken from another run, and known by their digest."""

import dataclasses
import hashlib
import json
from typing import Any

from train.adapters import split_head
from train.checkpoint.base_checks import check_form, form
from train.checkpoint.checksums import checksums
from train.checkpoint.parameters import parameter_shapes
from train.config.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Base:
    """Weights that adapters are trained of.

    Attributes:
      params: all that is not trained.
      head: a classifier's head, where its classes are as many as the run's; None: a new one.
      digest: SHA-256 of the checksums of what is not trained.
    """

    params: dict[str, Any]
    head: dict[str, Any] | None
    digest: str


def make_base(config: RunConfig, weights: Any) -> Base:
    """Returns a run's base.

    Args:
      config: of the run.
      weights: all parameters of the model that config.init.path names.

    Raises:
      BadInput: weights of another form than the model's, its head excepted.
    """
    head, params = split_head(config, weights)
    check_form(config, params)

    wanted, _ = split_head(config, parameter_shapes(config.model))
    fits = form(head) == form(wanted)
    sums = json.dumps(checksums(params), sort_keys=True)
    return Base(params, head if fits and head else None, hashlib.sha256(sums.encode()).hexdigest())
