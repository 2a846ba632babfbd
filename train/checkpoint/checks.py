"""Whether a checkpoint can be used (with its files, on this data, in this model), or written."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from train.checkpoint.checksums import leaf_name
from train.checkpoint.metadata import (
    Metadata,
    inputs_digest,
    other_versions,
    tokenizer_digest,
    versions,
)
from train.checkpoint.workdir import checkpoint_folder, has_vanished, read_config
from train.config.refining import at_step
from train.config.run import RunConfig
from train.config.stored import differences, from_stored
from train.devices.processes import all_agree, is_primary
from train.errors import BadInput, warn
from train.files import is_local
from train.optimizer import make_schedule
from train.state import TrainState


def check_origin(metadata: Metadata, workdir: str | epath.Path, examples: int) -> None:
    """Makes sure that a run is resumed with its own config and data; warns of other versions.

    Args:
      metadata: of the checkpoint to resume from.
      examples: number of training examples, as of now.

    Raises:
      BadInput: another config, another tokeniser, or another number of training examples.
    """
    check_files(metadata, workdir)

    # Another number of examples would shuffle into other batches from here on.
    if metadata.examples != examples:
        raise BadInput(
            f"the training split has {examples} examples, and {workdir} was trained on one of "
            f"{metadata.examples}: give it the data it had, or take another --workdir"
        )

    other = other_versions(metadata)
    if other and is_primary():
        warn(
            f"{workdir} was saved with {', '.join(other)}: what follows may differ from an "
            "uninterrupted run"
        )


def warn_of_learning_rate(workdir: epath.Path, *, config: RunConfig, metadata: Metadata) -> None:
    """Warns of a learning rate that jumps, as most schedules span all steps of a run."""
    step, steps = metadata.position.step, metadata.config["train_steps"]
    was, now = (
        np.asarray(make_schedule(config.optimizer, n)(step)) for n in (steps, config.train_steps)
    )
    if step == config.train_steps or was == now:
        return

    warn(
        f"{workdir}: config.train_steps was {steps} and is {config.train_steps}, and the schedule "
        f"{config.optimizer.schedule!r} of the learning rate spans all of them: at step {step}, "
        f"where it was {was:.3g}, it is {now:.3g} now. For the schedule of one long run, start it "
        "in another --workdir"
    )


def check_files(metadata: Metadata, workdir: str | epath.Path) -> None:
    """Refuses a config.json or a tokenizer.json that the checkpoint was not made with."""
    config = at_step(read_config(workdir), metadata.position.step)
    changed = differences(from_stored(metadata.config), config)
    lines = [
        f"{key}: {was!r} in checkpoint {metadata.position.step}, {now!r} in config.json"
        for key, (was, now) in changed.items()
    ]
    if lines:
        raise BadInput(
            f"{workdir}/config.json is not what the run was trained with:\n  "
            + "\n  ".join(lines)
            + "\nPut these values back, or take another --workdir"
        )

    # Other versions of the library may write the same tokeniser in another way.
    same_library = metadata.versions.get("tokenizers") == versions()["tokenizers"]
    if same_library and metadata.tokenizer not in (None, tokenizer_digest(workdir)):
        raise BadInput(
            f"{workdir}/tokenizer.json is not what the run was trained with: put it back from a "
            f"copy whose SHA-256 is {metadata.tokenizer}, or take another --workdir"
        )

    # One that is missing is written again from the data, and may differ in a last digit.
    found = inputs_digest(workdir)
    if found is not None and metadata.inputs not in (None, found):
        raise BadInput(
            f"{workdir}/inputs.json is not what the run was trained with: put it back from a copy "
            f"whose SHA-256 is {metadata.inputs}, or take another --workdir"
        )


def check_arrays_fit(
    metadata: Metadata, target: TrainState | Mapping[str, Any], where: str, part: str = ""
) -> None:
    """Refuses a checkpoint; names the first array whose presence, shape or dtype differs.

    Args:
      target: shapes and dtypes of the arrays that are needed.
      where: the checkpoint's folder, for the message.
      part: what the names of these arrays begin with.
    """
    stored = {name: _form(leaf) for name, leaf in metadata.leaves.items() if name.startswith(part)}
    wanted = {
        leaf_name(path): _form(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(target)
    }

    for name in wanted | stored:
        if stored.get(name) != wanted.get(name):
            raise BadInput(
                f"the checkpoint {where} does not fit the model: {name} is "
                f"{stored.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} "
                "in the model; give the config that the run was trained with"
            )


def check_refined(weights: Any, target: Any, where: str | epath.Path) -> None:
    """Refuses refined weights of a checkpoint that are not those of the model to evaluate."""
    found, wanted = (jax.tree.map(_form, tree) for tree in (weights, target))
    if found != wanted:
        raise BadInput(
            f"the checkpoint {where}, refined as its run will be, does not fit the model: evaluate "
            "it with the depth that the run has at its end"
        )


def _form(leaf: Any) -> str:
    return f"{leaf.dtype} {list(leaf.shape)}"


def check_none_damaged(folder: epath.Path, damaged: Mapping[int, str]) -> None:
    """Refuses a folder of checkpoints all of which are damaged: {step: what is wrong}."""
    if damaged:
        reasons = "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
        raise BadInput(
            f"{folder} holds no sound checkpoint:{reasons}\nPut one back from a copy, or take "
            "another --workdir; none of them was changed"
        )


def check_saved(workdir: str | epath.Path, step: int, steps: Sequence[int]) -> None:
    """Refuses a step that is not among those that were saved."""
    if step not in steps:
        listed = ", ".join(map(str, steps))
        raise BadInput(
            f"{workdir} holds no checkpoint of step {step}: take a saved step ({listed})"
        )


def no_best(workdir: str | epath.Path, best: str | None) -> BadInput:
    """Returns the error for a run without a best checkpoint by a metric, or without the metric."""
    if best is None:
        return BadInput(
            f"{workdir} keeps no best checkpoint (config.checkpoint.best=None): leave the step out "
            "for the newest, or name one; a run that is trained, or resumed, with "
            "config.checkpoint.best=val/loss keeps it"
        )

    return BadInput(
        f"{workdir} has no best checkpoint: none was saved at a step at which {best} was "
        "evaluated (config.checkpoint.every_steps, config.eval.every_steps); leave the step "
        "out for the newest"
    )


def step_damaged(
    workdir: str | epath.Path, step: int, steps: Sequence[int], error: Exception
) -> BadInput:
    """Returns the error for the one checkpoint that was asked for, of several, and is damaged."""
    return BadInput(
        f"the checkpoint of step {step} in {workdir} is damaged ({error}): take another of "
        f"{', '.join(map(str, steps))}"
    )


def check_disk(workdir: epath.Path, size: int) -> None:
    """Refuses, in every process, a local workdir that has no room for a state.

    Args:
      size: of the state, bytes.

    Raises:
      OSError: it cannot be written, or its disk is too full.
    """
    trouble: OSError | None = None
    if is_primary() and is_local(workdir):
        try:
            _probe(workdir, size)
        except OSError as error:
            trouble = error

    if not all_agree(trouble is None):
        raise trouble or OSError(f"the first process cannot write into {workdir}")


def _probe(workdir: epath.Path, size: int) -> None:
    # A workdir that has vanished is not made again: its disk may be unmounted, and the run would
    # write into the mount point.
    if has_vanished(workdir):
        raise FileNotFoundError(f"{workdir} has vanished")

    folder = checkpoint_folder(workdir)
    probe = folder / ".probe"
    folder.mkdir(exist_ok=True)
    probe.write_text("can this be written?")
    probe.unlink()

    # On a full disk the threads of orbax wait for one another for minutes until they fail.
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"the disk has {free:,} bytes left, and the state takes {size:,}")
