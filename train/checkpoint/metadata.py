"""Checkpoint metadata: made, stored, and read again.

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
from train.checkpoint.workdir import INPUTS, checkpoint_folder
from train.config import names
from train.data.pipeline import Position
from train.errors import first_line
from train.files import as_path
from train.state import TrainState

STATE, METADATA, METADATA_FILE = "state", "record", "record.json"

# Those whose version may change a bit of what is computed, or of how it is stored.
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
class Initial:
    """Whence the weights are that a run began with; config.init is read at its start alone.

    Attributes:
      path: of a workdir or a pretrained model.
      step: of the workdir's checkpoint; None of a pretrained model.
      loaded: how many parameters are taken as they are.
      resampled: what was done to others, by name.
      new: names of those that began at random.
      unused: names of those that the run's model has not.
      differs: what the weights were trained under and the run sets otherwise.
    """

    path: str
    step: int | None
    loaded: int
    resampled: Mapping[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    differs: tuple[str, ...]

    def lines(self, is_new: bool) -> list[str]:
        """Returns what is to be said of it when a run starts, or is resumed."""
        place = self.path if self.step is None else f"{self.path} (step {self.step})"
        if not is_new:
            return [f"it began with the weights of {place}, which are not read again"]

        parts = [f"{self.loaded} parameters as they are"]
        parts += [f"{name} {change}" for name, change in self.resampled.items()]
        for what, found in {"new": self.new, "not used": self.unused}.items():
            if found:
                more = f" and {len(found) - 4} more" if len(found) > 4 else ""
                parts.append(f"{what}: {', '.join(found[:4])}{more}")

        lines = [f"it begins with the weights of {place}: {'; '.join(parts)}"]
        if self.differs:
            lines.append(f"they were trained with another config: {', '.join(self.differs)}")
        return lines


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint holds in addition to the arrays of the state.

    Random keys and the data of every process are functions of it: of the seed, which is in the
    config, of the state's step, and of the position.
    """

    position: Position  # in the data
    examples: int  # of the training split
    config: dict[str, Any]  # of the run
    versions: dict[str, str]  # of Python and of the packages
    metrics: dict[str, float]  # of the validation split, empty if it was not scored at this step
    leaves: dict[str, Leaf]  # by name
    tokenizer: str | None = None  # `tokenizer_digest` of the workdir
    inputs: str | None = None  # `inputs_digest` of the workdir
    initial: Initial | None = None  # whence its first weights are; None: they were random
    base: str | None = None  # digest of the frozen weights that adapters adapt
    former: Mapping[str, str] = dataclasses.field(default_factory=dict)  # stored names, by name

    def to_json(self) -> dict[str, Any]:
        """Returns the metadata as JSON values, with a digest of all of them."""
        # The digest is that of what a reader gets: JSON turns tuples into lists.
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
    inputs: str | None = None,
    initial: Initial | None = None,
    base: str | None = None,
) -> Metadata:
    """Returns the metadata of a state, whose checksums are computed here.

    Args:
      state: to be saved.
      position: of the run in its data.
      examples: number of training examples.
      config: the run's config, as a nested dict.
      metrics: of the validation split; empty if it was not scored at this step.
      tokenizer: `tokenizer_digest` of the workdir.
      inputs: `inputs_digest` of the workdir.
      initial: whence the run's first weights are.
      base: digest of the frozen weights that adapters adapt; None without adapters.
    """
    sums = checksums(state)
    leaves = {
        leaf_name(path): Leaf(tuple(leaf.shape), str(leaf.dtype), sums[leaf_name(path)])
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return Metadata(
        position=position,
        examples=examples,
        config=dict(config),
        versions=versions(),
        metrics=dict(metrics),
        leaves=leaves,
        tokenizer=tokenizer,
        inputs=inputs,
        initial=initial,
        base=base,
    )


def tokenizer_digest(workdir: str | epath.Path) -> str | None:
    """Returns the SHA-256 of a workdir's tokenizer.json; None if there is none."""
    return _file_digest(as_path(workdir) / "tokenizer.json")


def inputs_digest(workdir: str | epath.Path) -> str | None:
    """Returns the SHA-256 of a workdir's inputs.json; None if there is none."""
    return _file_digest(as_path(workdir) / INPUTS)


def _file_digest(path: epath.Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def read_metadata(workdir: str | epath.Path, step: int) -> Metadata:
    """Returns the metadata of a checkpoint.

    Raises:
      Damaged: it is missing, or not what was saved.
    """
    values = _read_values(checkpoint_folder(workdir) / str(step) / METADATA / METADATA_FILE)

    # The digest matches: a key that is missing was never saved.
    try:
        metadata = _from_values(values)
    except (KeyError, TypeError) as error:
        raise Damaged(f"its {METADATA_FILE} is of another version of the trainer") from error

    # A folder that was copied or renamed by hand holds a sound state of another step.
    if metadata.position.step != step:
        raise Damaged(f"it is the checkpoint of step {metadata.position.step}")

    return metadata


def _read_values(path: epath.Path) -> dict[str, Any]:
    """The JSON values of a metadata file, verified by their digest."""
    try:
        values = json.loads(path.read_text())
        digest = values.pop("digest")
    except FileNotFoundError as error:
        raise Damaged(f"its {METADATA_FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its {METADATA_FILE} cannot be read: {first_line(error)}") from error

    if digest != _digest(values):
        raise Damaged(f"its {METADATA_FILE} is not what was saved")

    return values


def _from_values(values: dict[str, Any]) -> Metadata:
    """The metadata from its JSON values, names of earlier versions replaced by today's."""
    leaves = {
        names.STATE.get(name, name): Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
        for name, leaf in values["leaves"].items()
    }
    position = {names.POSITION.get(name, name): value for name, value in values["position"].items()}

    # The arrays are still stored under their former names, by which they are read.
    former = {names.STATE[name]: name for name in values["leaves"] if name in names.STATE}
    others = {"position": Position(**position), "leaves": leaves, "former": former}
    if (initial := values.get("initial")) is not None:
        lists = {name: tuple(x) for name, x in initial.items() if isinstance(x, list)}
        others["initial"] = Initial(**initial | lists)
    return Metadata(**(values | others))


def other_versions(metadata: Metadata) -> list[str]:
    """Returns 'NAME THEN, now NOW' for each version that has changed since the save."""
    now = versions()
    return [
        f"{name} {was}, now {now.get(name, 'absent')}"
        for name, was in metadata.versions.items()
        if was != now.get(name)
    ]


def _digest(values: Mapping[str, Any]) -> str:
    # Sorted: the order of the keys is no part of the values.
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a run depends on, as of now."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
