"""The weights of a run: to evaluate with, to adapt, and to begin another run with."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

import odeformer.interop as interop
from odeformer import ModelConfig, make_model, refine
from train.adapters import merge, split_head
from train.checkpoint.checks import check_refined, check_saved, step_damaged
from train.checkpoint.checksums import checksums
from train.checkpoint.initial_checks import (
    check_adapters,
    check_base,
    check_no_loop,
    reading_pretrained,
)
from train.checkpoint.metadata import Damaged, Initial, Metadata
from train.checkpoint.restore import (
    evaluation_config,
    newest_sound,
    refuse_none,
    restore_weights,
)
from train.checkpoint.retention import find_best_step
from train.checkpoint.transfer import (
    Plan,
    Source,
    describe,
    find_source,
    is_of_head,
    plan_initial,
    size_to_read,
    take,
)
from train.checkpoint.workdir import checkpoint_folder, read_config, saved_steps
from train.config.refining import at_step
from train.config.run import RunConfig
from train.devices.mesh import abstract_parameters, axis_rules, one_device_mesh
from train.errors import BadInput
from train.state import expected_state

Step = int | Literal["best"] | None  # None: the newest sound one


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen weights that adapters adapt.

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


def load_model(
    workdir: str | epath.Path,
    overrides: Mapping[str, Any] | None = None,
    step: Step = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a trained model and its weights: the averaged ones if the run keeps them.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}; a
        tolerance replaces the run's fixed steps, and the reverse.
      step: of the checkpoint; 'best' for the best one by the run's config.checkpoint.best, None
        for the newest sound one.

    Returns:
      (model, variables), for `model.apply(variables, images)`, images standardised as the run's
      data set does (`train.data.sources.load_splits(config)['test'].standardise`); or for
      `model.apply(variables, tokens)`, tokens of the run's tokeniser (`read_tokenizer(workdir)`).

    Raises:
      BadInput: no run, no checkpoint, a key or a value that the config refuses, or weights that do
        not fit it.
    """
    config = evaluation_config(workdir, overrides or {})
    return make_model(config.model), {"params": load_params(workdir, config, step=step)}


def load_params(
    workdir: str | epath.Path,
    config: RunConfig,
    mesh: Mesh | None = None,
    step: Step = None,
) -> Any:
    """Returns the weights to evaluate with, from a run's checkpoint.

    Args:
      config: of a model that the weights fit.
      mesh: the devices to lay them out on; by default one device.
      step: of the checkpoint; 'best' for the best one by config.checkpoint.best, None for the
        newest sound one.

    Returns:
      The averaged weights if the run keeps them, else the newest: the tree of
      `model.init(...)['params']`. Adapters are merged into the weights that they adapt. If the
      run refines its weights over depth, they are refined to its final resolution.

    Raises:
      BadInput: no sound checkpoint, not this one, no best one, or one that does not fit the config.
    """
    return load_weights(workdir, config, mesh, step)[0]


def load_weights(
    workdir: str | epath.Path,
    config: RunConfig,
    mesh: Mesh | None = None,
    step: Step = None,
) -> tuple[Any, Metadata]:
    """Returns what `load_params` does, and the metadata of its checkpoint."""
    mesh = one_device_mesh() if mesh is None else mesh
    run, base = read_config(workdir), read_base(config, mesh)

    # The weights alone, whatever optimiser trained them.
    if base is None:
        target = abstract_parameters(config.model, mesh)
    else:
        target = expected_state(config, mesh).params

    def restore(step: int) -> tuple[Any, Metadata]:
        depth = at_step(run, step).model.depth
        if not depth.refine_at:
            return restore_weights(workdir, step, target)

        return _restore_refined(
            workdir, step, dataclasses.replace(config.model, depth=depth), target
        )

    if step is None:
        restored = newest_sound(workdir, restore)
    else:
        restored = _restore_only(workdir, step, restore, config.checkpoint.best)

    weights, metadata = restored or refuse_none(workdir)
    check_base(metadata, base, config, workdir)
    return (weights if base is None else merge(config, weights, base.params)), metadata


def read_base(config: RunConfig, mesh: Mesh) -> Base | None:
    """Returns the weights that a run trains adapters of, laid out on a mesh; None without any.

    Raises:
      BadInput: adapters that the model cannot have; config.init.path holds neither a run nor a
        pretrained model, or one whose weights are damaged or do not fit.
    """
    if config.lora.rank is None:
        return None

    # Before any weights are read: the configs alone say it.
    check_adapters(config)
    assert config.init.path is not None
    check_no_loop(config.init.path)

    source = find_source(config)
    plan = plan_initial(config, source)
    weights, step = read_weights(source, config, mesh)
    return make_base(config, source, plan, weights, step=step, mesh=mesh)


def make_base(
    config: RunConfig, source: Source, plan: Plan, weights: Any, *, step: int | None, mesh: Mesh
) -> Base:
    """Returns a run's base.

    Args:
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


def read_weights(source: Source, config: RunConfig, mesh: Mesh) -> tuple[Any, int | None]:
    """Returns weights that a run begins with or adapts, and the step of the checkpoint they are of.

    Args:
      source: where they are; a run of adapters gives merged weights.
      config: of the run that takes them.
      mesh: the devices, on which the weights are born where they lie.

    Raises:
      BadInput: they cannot be read.
    """
    if source.run is not None:
        try:
            weights, metadata = load_weights(source.path, source.run, mesh)
        except BadInput as error:
            raise BadInput(f"config.init.path={source.path}: {error}") from error
        return weights, metadata.position.step

    with reading_pretrained(source.path):
        size = size_to_read(source.trained, config.model)
        _, variables = interop.load_pretrained(
            source.path, image_size=size, mesh=mesh, rules=axis_rules(mesh, source.model)
        )
    return variables["params"], None


def _restore_refined(
    workdir: str | epath.Path, step: int, model: ModelConfig, target: Any
) -> tuple[Any, Metadata]:
    """The weights of a model that has refinements to come, after these."""
    coarse = abstract_parameters(model, one_device_mesh())
    weights, metadata = restore_weights(workdir, step, coarse)
    for _ in model.depth.refine_at:
        variables, model = refine({"params": weights}, model)
        weights = variables["params"]

    check_refined(weights, target, checkpoint_folder(workdir) / str(step))
    return jax.tree.map(lambda w, t: jax.device_put(w, t.sharding), weights, target), metadata


def _restore_only(
    workdir: str | epath.Path,
    step: int | Literal["best"],
    restore: Callable[[int], tuple[Any, Metadata]],
    best: str | None,
) -> tuple[Any, Metadata] | None:
    """The weights of a step, or the best ones by a metric, and no other; None if none exist."""
    steps = saved_steps(workdir)
    if not steps:
        return None

    if step == "best":
        step = find_best_step(workdir, best)
    check_saved(workdir, step, steps)

    try:
        return restore(step)
    except Damaged as error:
        raise step_damaged(workdir, step, steps, error) from error
