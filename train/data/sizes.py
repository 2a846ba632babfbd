"""What a config leaves out, from the user's own files: sizes of the model, steps and batch."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from train.config.border import Cfg, flatten
from train.config.data import SentenceDataConfig
from train.config.run import TASKS
from train.data.file_search import find_files
from train.data.folders.kinds import IMAGES, TEXTS
from train.data.folders.listing import Listing, list_files
from train.data.images.pixels import probe
from train.data.text.sizes import find_text_sizes
from train.errors import BadInput
from train.files import absolute

# Files whose sizes are looked at; the others are taken to be alike.
_SAMPLE = 1000

# Images are scaled to the largest of these sides that most of them have.
_SIDES = (64, 32, 16)

# The most patches of an image; attention's cost grows with the square of their number.
_PATCHES = 64

_HELD_OUT = 0.15  # for each of two splits that a folder lacks
_BATCH = 64
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 60, 300, 10_000
_TEXT_EPOCHS = 10  # of labelled texts, which nothing augments: more would be learnt by heart

_BLOCK, _BLOCKS_PER_BATCH = 128, 16

_RUN = ("batch_size", "train_steps", "optimizer.warmup_steps")
_KEYS: dict[str, set[str]] = {
    "folder": {
        "model.classes",
        "model.image_size",
        "model.patch_size",
        "model.channels",
        "data.test_fraction",
        "data.validation_examples",
        *_RUN,
    },
    "labelled": {"model.classes", "model.vocabulary", "model.block_size", *_RUN},
    "files": {"model.block_size", *_RUN},
}
_SAID_BY_PRESETS = (
    *("model.image_size", "model.patch_size", "model.channels"),
    *("model.block_size", "model.vocabulary"),
)


def with_sizes(
    cfg: Cfg,
    changes: Mapping[str, Any],
    stored: Callable[[], Mapping[str, Any] | None] = lambda: None,
) -> dict[str, Any]:
    """Returns the changes, and a value for each key left out that follows from the user's files.

    Of a data set named 'folder' these are the number of classes, the size and channels of the
    images, their patches, the parts held out, batch size, steps and warm-up; of one of texts the
    number of classes, vocabulary, block size, batch size, steps and warm-up; of 'files' block size,
    batch size, steps and warm-up. Other sets have none. Where `model.preset` is given, it says the
    model's sizes, but for the number of classes.

    Args:
      cfg: the config, as its file has it.
      changes: values that replace those of the file, as {'depth.solver': 'rk4'}.
      stored: returns the values of the run that the workdir holds, by key, which it keeps; None if
        it holds none.

    Raises:
      BadInput: a folder that is refused.
    """
    cfg = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else cfg
    values = flatten(cfg) | dict(changes)
    name, files = values.get("data.name"), values.get("data.files")
    if not isinstance(name, str) or not isinstance(files, str):
        return dict(changes)

    kind = "labelled" if name == "folder" and _is_of_texts(values.get("task")) else name
    open_keys = {key for key in _KEYS.get(kind, set()) - values.keys() if not _is_given(cfg, key)}
    if not open_keys:
        return dict(changes)

    try:
        files = absolute(files)
    except BadInput as error:
        raise BadInput(f"config.data.files={error}") from error

    # A folder that has changed since must not change a run: that it did is noticed later.
    if (run := stored()) is not None:
        found = {key: run[key] for key in _KEYS[kind] & run.keys()}
    elif kind == "folder":
        found = _of_images(list_files(files, IMAGES), values)
    elif kind == "labelled":
        found = _of_labelled(files, values)
    else:
        found = _of_texts(find_files(pathlib.Path(files)), values)

    if values.get("model.preset") is not None:
        found = {key: v for key, v in found.items() if key not in _SAID_BY_PRESETS}
    return {key: value for key, value in found.items() if key in open_keys} | dict(changes)


def _is_given(cfg: Any, key: str) -> bool:
    """Whether a nested config has a key, also one whose value is a mapping or no group is."""
    group, _, rest = key.partition(".")
    if not isinstance(cfg, Mapping):
        return True

    return group in cfg and (not rest or _is_given(cfg[group], rest))


def _of_images(listing: Listing, values: Mapping[str, Any]) -> dict[str, Any]:
    size, channels = _image_size(listing)
    size = _as_pair(values.get("model.image_size"), size)
    found: dict[str, Any] = {
        "model.classes": len(listing.classes),
        "model.image_size": size[0] if size[0] == size[1] else size,
        "model.patch_size": _patch_size(size),
        "model.channels": channels,
    }

    # What is cut off the training split holds one image of each class, at least.
    classes, examples = len(listing.classes), len(listing.files)
    if listing.splits:
        examples = sum(file.split == "train" for file in listing.files)
    held_out = {"validation", "test"} & set(listing.splits)
    if not held_out:
        found["data.test_fraction"] = max(_HELD_OUT, classes / examples)
    if len(held_out) < 2:
        found["data.validation_examples"] = max(round(_HELD_OUT * examples), classes)

    tested = round(found.get("data.test_fraction", 0.0) * examples)
    trained = examples - tested - found.get("data.validation_examples", 0)
    return found | _of_run(trained, _BATCH, values)


def _of_labelled(files: str, values: Mapping[str, Any]) -> dict[str, Any]:
    keys = (values.get("data.text_key"), values.get("data.label_key"))
    columns = [
        given if isinstance(given, str) else usual
        for given, usual in zip(keys, ("text", "label"), strict=True)
    ]
    listing = list_files(files, TEXTS, columns)
    trained = [file for file in listing.files if file.split in (None, "train")]

    tokenizer, vocabulary = values.get("data.tokenizer"), _count(values.get("model.vocabulary"), 0)
    vocabulary, block = find_text_sizes(
        trained, tokenizer if isinstance(tokenizer, str) else "bpe", vocabulary or None
    )

    # About: how much is held out for splits that are lacking is known when all texts are read.
    kept = 1 - _HELD_OUT * (2 - len({"validation", "test"} & set(listing.splits)))
    return {
        "model.classes": len(listing.classes),
        "model.vocabulary": vocabulary,
        "model.block_size": block,
    } | _of_run(round(kept * len(trained)), _BATCH, values, epochs=_TEXT_EPOCHS)


def _is_of_texts(task: Any) -> bool:
    return isinstance(task, str) and task in TASKS and TASKS[task].data is SentenceDataConfig


def _of_texts(files: Sequence[pathlib.Path], values: Mapping[str, Any]) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in files)

    # Tokens are bytes, or a few of them. A short text has a few blocks to make batches of.
    block = _BLOCK
    while block > 16 and size < block * 8 * _BLOCKS_PER_BATCH:
        block //= 2
    blocks = size // _count(values.get("model.block_size"), block)
    return {"model.block_size": block} | _of_run(blocks, _BLOCKS_PER_BATCH, values)


def _of_run(
    examples: int, batch_size: int, values: Mapping[str, Any], epochs: int = _EPOCHS
) -> dict[str, Any]:
    """Batch size, steps and warm-up."""
    # In several batches per epoch, even if there are few examples.
    fitting = 2 ** int(math.log2(max(examples // 4, 1)))
    batch_size = _count(values.get("batch_size"), min(batch_size, fitting))

    steps = min(max(epochs * examples // batch_size, _LEAST_STEPS), _MOST_STEPS)
    steps = _count(values.get("train_steps"), steps)
    return {
        "batch_size": batch_size,
        "train_steps": steps,
        "optimizer.warmup_steps": min(100, steps // 10),
    }


def _image_size(listing: Listing) -> tuple[tuple[int, int], int]:
    """Height and width, and channels, that suit a folder's images."""
    step = -(-len(listing.files) // _SAMPLE)
    sizes, channels = [], [1]
    for file in listing.files[::step]:
        # What cannot be read is reported when all files are read.
        try:
            size, depth = probe(file.path)
        except Exception:
            continue
        sizes.append(size)
        channels.append(depth)

    # Small images of one size are taken as they are.
    width, height = sizes[0] if sizes else (_SIDES[0], _SIDES[0])
    is_even = all(size == (width, height) for size in sizes)
    if is_even and max(width, height) <= _SIDES[0] and _has_patches((height, width)):
        return (height, width), max(channels)

    shorter = sorted(min(size) for size in sizes)[len(sizes) // 2]
    side = next((side for side in _SIDES if side <= shorter), _SIDES[-1])
    return (side, side), max(channels)


def _patch_size(size: tuple[int, int]) -> int:
    """The smallest patch of which an image has no more than _PATCHES."""
    height, width = size
    divisors = [p for p in range(1, min(size) + 1) if height % p == width % p == 0]
    return next((p for p in divisors if height * width // p**2 <= _PATCHES), divisors[-1])


def _has_patches(size: tuple[int, int]) -> bool:
    return size[0] * size[1] // _patch_size(size) ** 2 <= 4 * _PATCHES


# What is given may be of any type: it is refused later, by name.
def _count(given: Any, found: int) -> int:
    return given if isinstance(given, int) and given > 0 else found


def _as_pair(given: Any, found: tuple[int, int]) -> tuple[int, int]:
    if isinstance(given, tuple | list) and len(given) == 2:
        return _count(given[0], found[0]), _count(given[1], found[1])
    return (given, given) if isinstance(given, int) and given > 0 else found
