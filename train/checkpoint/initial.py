"""The first weights of a run: random, of another run, or of a pretrained model."""

import functools
from typing import Any

import jax
import optax
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh

import odeformer.interop as interop
from train.checkpoint.initial_checks import check_tokenizer, warn_of_classes, warn_of_new_head
from train.checkpoint.metadata import Initial
from train.checkpoint.pretrained import published_tokenizer
from train.checkpoint.transfer import Source, describe, find_source, is_of_head, plan_initial, take
from train.checkpoint.weights import Base, read_weights
from train.checkpoint.workdir import read_inputs, read_tokenizer, saved_steps
from train.config.run import RunConfig
from train.data.text.tokenizer import Tokenizer
from train.devices.processes import is_primary
from train.startup import note
from train.state import TrainState, make_state, state_shardings

EMBEDDING = "embedding/embedding"


def check_initial(workdir: epath.Path, config: RunConfig, data: Any) -> None:
    """Refuses weights that a run cannot start from, or adapt; nothing is allocated or written.

    Args:
      workdir: of the run; one with checkpoints is resumed from them.
      config: of the run; without config.init.path it starts from random weights.
      data: its training split.

    Raises:
      BadInput: there are no weights at the path, they are of another task, parameters do not fit,
        patterns match nothing, or embeddings belong to another tokeniser.
    """
    # A resumed run has its own weights, unless they are adapters: their base is read every time.
    if config.init.path is None or (config.lora.rank is None and saved_steps(workdir)):
        return

    source = find_source(config)
    plan = plan_initial(config, source)
    if EMBEDDING in plan.loaded:
        check_tokenizer(config, _tokenizer_of(source), data.tokenizer)


def _tokenizer_of(source: Source) -> Tokenizer | None:
    """The tokeniser that weights were trained with; None for a pretrained model without one."""
    if source.is_run:
        return read_tokenizer(source.path)

    return published_tokenizer(interop.find_folder(source.path))


def first_state(
    workdir: epath.Path,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    state: TrainState,
    base: Base | None,
) -> tuple[TrainState, Initial | None]:
    """Returns a run's first state, and where its weights come from; None if they are random.

    Args:
      state: as it was initialised: at random, except for a head that adapted weights bring along.
      base: the frozen weights that adapters adapt; None without adapters.

    Raises:
      BadInput: weights that cannot be read, or do not fit.
    """
    if base is not None:
        warn_of_new_head(config, base)
        if base.is_run and base.head is not None and is_primary():
            path = base.initial.path
            warn_of_classes(path, read_inputs(path), read_inputs(workdir), is_adapted=True)
        return state, base.initial

    if config.init.path is None:
        return state, None

    note(f"reading the first weights, {config.init.path}")
    return load_initial(workdir, config, optimizer, mesh, state)


def origin_lines(initial: Initial | None, base: Base | None, is_new: bool) -> list[str]:
    """Returns what to print about a run's first weights when it starts or is resumed.

    Args:
      initial: where they come from; None if they were random.
      base: the frozen weights that adapters adapt, which are read on every start.
      is_new: whether the run starts for the first time.
    """
    if base is not None:
        return base.initial.lines(is_new=True)
    return [] if initial is None else initial.lines(is_new)


def load_initial(
    workdir: epath.Path,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
) -> tuple[TrainState, Initial]:
    """Returns a run's first state with the weights of config.init, and where they come from.

    Args:
      workdir: of the run, with the names of its classes.
      optimizer: of the run, whose state begins with these weights.
      state: the first state, at random.

    Raises:
      BadInput: weights that cannot be read, or do not fit.
    """
    source = find_source(config)
    plan = plan_initial(config, source)
    weights, step = read_weights(source, config, mesh)
    ours: dict[str, Any] = dict(traverse_util.flatten_dict(state.params, sep="/"))
    ours |= take(plan, source, weights, config.model, ours)

    # The optimiser's state may start as a copy of the weights, as their average does.
    make = jax.jit(
        functools.partial(make_state, config, optimizer),
        out_shardings=state_shardings(config, optimizer, mesh),
    )
    params = traverse_util.unflatten_dict(ours, sep="/")
    if source.is_run and is_primary() and any(map(is_of_head, plan.loaded)):
        warn_of_classes(source.path, read_inputs(source.path), read_inputs(workdir))
    return make(params), describe(source, plan, config, step)
