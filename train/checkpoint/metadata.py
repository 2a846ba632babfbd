"""What a checkpoint says of itself, and whether the files beside it are still those of its run.

checkpoints/<step>/state/ is orbax's, and holds the arrays; checkpoints/<step>/record/record.json
says what they must be.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from train.checkpoint.checksums import checksums, leaf_name
from train.checkpoint.workdir import checkpoint_folder, read_config, saved_steps
from train.config import names
from train.config.run import RunConfig
from train.config.stored import differences, from_stored
from train.data.pipeline import Position
from train.devices.processes import is_primary
from train.errors import BadInput, first_line, warn
from train.files import as_path
from train.state import TrainState

STATE, METADATA, METADATA_FILE = "state", "record", "record.json"
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "diffrax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "tokenizers",
)


class Damaged(Exception):
    """A checkpoint that is not what was saved; the text says in what."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What an array of the state must be."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str  # of `checksums`: the same on every mesh


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint holds beside the arrays of the state.

    Random keys and the data of every process are functions of it: of the seed, which the config
    holds, of the state's step, and of the position.
    """

    position: Position  # in the data
    examples: int  # of the training split
    config: dict[str, Any]  # of the run
    versions: dict[str, str]  # of Python and of the packages
    metrics: dict[str, float]  # of the validation split, where it was scored behind this step
    leaves: dict[str, Leaf]  # by name
    tokenizer: str | None = None  # `tokenizer_digest` of the workdir
    former: Mapping[str, str] = dataclasses.field(default_factory=dict)  # stored names, by name

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON values, with a digest of all of them."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["former"]
        return values | {"digest": _digest(values)}


def make_metadata(
    state: TrainState,
    position: Position,
    examples: int,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    tokenizer: str | None = None,
) -> Metadata:
    """Returns the record of a state, whose checksums are taken here.

    Args:
      state: to be saved.
      position: of the run in its data.
      examples: of the training split.
      config: of the run, as a nested dict.
      metrics: of the validation split; none where it was not scored behind this step.
      tokenizer: `tokenizer_digest` of the workdir.
    """
    found = checksums(state)
    leaves = {
        leaf_name(path): Leaf(tuple(leaf.shape), str(leaf.dtype), found[leaf_name(path)])
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return Metadata(position, examples, dict(config), _versions(), dict(metrics), leaves, tokenizer)


def tokenizer_digest(workdir: str | epath.Path) -> str | None:
    """Returns the SHA-256 of a workdir's tokenizer.json; None where there is none."""
    path = as_path(workdir) / "tokenizer.json"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_metadata(workdir: str | epath.Path, step: int) -> Metadata:
    """Returns the record of a checkpoint.

    Raises:
      Damaged: it is missing, or not what was saved.
    """
    path = checkpoint_folder(workdir) / str(step) / METADATA / METADATA_FILE
    try:
        values = json.loads(path.read_text())
        digest = values.pop("digest")
    except FileNotFoundError as error:
        raise Damaged(f"its {METADATA_FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its {METADATA_FILE} cannot be read: {first_line(error)}") from error
    if digest != _digest(values):
        raise Damaged(f"its {METADATA_FILE} is not what was saved")

    try:
        stored = values.pop("leaves")
        leaves = {
            names.STATE.get(name, name): Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
            for name, leaf in stored.items()
        }
        position = {
            names.POSITION.get(name, name): value for name, value in values["position"].items()
        }
        values |= {"position": Position(**position), "leaves": leaves}
        record = Metadata(
            **values, former={names.STATE[name]: name for name in stored if name in names.STATE}
        )
    except (KeyError, TypeError) as error:
        raise Damaged(f"its {METADATA_FILE} is of another version of the trainer") from error
    if record.position.step != step:
        raise Damaged(f"it is the checkpoint of step {record.position.step}")
    return record


def check_origin(record: Metadata, workdir: str | epath.Path, examples: int) -> None:
    """Makes sure that a run goes on with its own config and data; tells of other versions.

    Args:
      record: of the checkpoint that is gone on with.
      workdir: of the run.
      examples: of the training split, as it is now.

    Raises:
      BadInput: another config, another tokeniser, or another number of training examples.
    """
    _check_files(record, workdir)
    if record.examples != examples:
        raise BadInput(
            f"the training split has {examples} examples, and {workdir} was trained on one of "
            f"{record.examples}: give it the data it had, or take another --workdir"
        )
    other = other_versions(record)
    if other and is_primary():
        warn(f"{workdir} was saved with {', '.join(other)}: it need not go on bit for bit")


def other_versions(record: Metadata) -> list[str]:
    """Returns 'NAME THEN, now NOW' of what has another version now than when it was saved."""
    now = _versions()
    return [
        f"{name} {was}, now {now.get(name, 'absent')}"
        for name, was in record.versions.items()
        if was != now.get(name)
    ]


def verified_config(workdir: str | epath.Path) -> RunConfig:
    """Returns the config of a run, having compared it with the newest record that can be read.

    Raises:
      BadInput: no run, or a config.json or tokenizer.json that is not the run's.
    """
    config = read_config(workdir)
    for step in reversed(saved_steps(workdir)):
        try:
            record = read_metadata(workdir, step)
        except Damaged:
            continue
        _check_files(record, workdir)
        break
    return config


def _check_files(record: Metadata, workdir: str | epath.Path) -> None:
    """Raises BadInput where what stands beside the checkpoints is not what they were made with."""
    changed = differences(from_stored(record.config), read_config(workdir))
    other = [
        f"{key}: {was!r} in checkpoint {record.position.step}, {now!r} in it"
        for key, (was, now) in changed.items()
    ]
    if other:
        raise BadInput(
            f"{workdir}/config.json is not what the run was trained with:\n  "
            + "\n  ".join(other)
            + "\nPut these values back, or take another --workdir"
        )
    # Other versions of the library may write the same tokeniser in another way.
    same_library = record.versions.get("tokenizers") == _versions()["tokenizers"]
    if same_library and record.tokenizer not in (None, tokenizer_digest(workdir)):
        raise BadInput(
            f"{workdir}/tokenizer.json is not what the run was trained with: put it back from a "
            f"copy whose SHA-256 is {record.tokenizer}, or take another --workdir"
        )


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
