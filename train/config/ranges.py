"""What values the keys of a run's config take, by themselves and beside one another."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from train.errors import BadInput

LARGEST_FLOAT = float(np.finfo(np.float32).max)
_INT32, _UINT32 = 1 << 31, 1 << 32  # the first numbers that these do not hold


def _whole(least: int, end: int, bound: str) -> tuple[str, Callable[[Any], bool]]:
    """Whole numbers that a device counts in: from `least` on, below `end`."""
    low = "greater than 0" if least == 1 else f"{least} or more"
    return f"{low} and less than {bound}", lambda value: least <= value < end


_POSITIVE = ("greater than 0", lambda value: value > 0)
_NOT_NEGATIVE = ("0 or more", lambda value: value >= 0)
_COUNT = _whole(1, _INT32, "2**31")
_COUNT_OR_NONE = _whole(0, _INT32, "2**31")
# What float32 rounds to 1 would divide by 0.
_FRACTION = ("in [0, 1)", lambda value: value >= 0 and float(np.float32(value)) < 1)
_ALPHA = ("0, or 1e-6 or more", lambda value: value == 0 or value >= 1e-6)
_AXIS_SIZE = ("1 or more, or -1 for the devices that are left", lambda v: v > 0 or v == -1)
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "train_steps": _COUNT,
    "batch_size": _COUNT,
    "seed": _whole(0, _UINT32, "2**32"),
    "data.repeats": _COUNT,
    "data.validation": _NOT_NEGATIVE,
    "data.test_fraction": _FRACTION,
    "data.workers": ("in [0, 1024]", lambda value: 0 <= value <= 1024),
    "data.held_out": ("in (0, 0.5)", lambda value: 0 < value < 0.5),
    "data.token_dropout": _FRACTION,
    "data.augment.zoom": _FRACTION,
    "data.augment.crop_min_area": _FRACTION,
    "data.augment.shift_px": _NOT_NEGATIVE,
    "data.augment.rotate_degrees": _NOT_NEGATIVE,
    "data.augment.crop_padding_px": _NOT_NEGATIVE,
    "data.augment.randaugment_ops": ("in [0, 100]", lambda value: 0 <= value <= 100),
    "data.augment.mixup": _ALPHA,
    "data.augment.cutmix": _ALPHA,
    "data.augment.randaugment_magnitude": ("in [0, 10]", lambda value: 0 <= value <= 10),
    "data.augment.erasing": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.clip_norm": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "optimizer.ema_decay": _FRACTION,
    "optimizer.label_smoothing": _FRACTION,
    "mesh.data": _AXIS_SIZE,
    "mesh.fsdp": _AXIS_SIZE,
    "mesh.tensor": _AXIS_SIZE,
    "parallel.accumulate": _COUNT,
    "checkpoint.every_steps": _POSITIVE,
    "checkpoint.keep": _POSITIVE,
    "checkpoint.spare_dir": ("the path of a folder, or nothing", bool),
    "guard.sigmas": _POSITIVE,
    "guard.in_a_row": _COUNT,
    "guard.returns": _COUNT_OR_NONE,
    "eval.every_steps": _POSITIVE,
    "eval.batch_size": _COUNT,
    "log.every_steps": _POSITIVE,
}


def check_ranges(config: Any, words: Mapping[str, Collection[str]]) -> None:
    """Raises BadInput for the first key whose value is not accepted, or stands against another's.

    Args:
      config: a RunConfig, whose values are of the right types.
      words: what the keys take that take one of a few words.
    """
    ranges = {
        key: (f"one of {', '.join(accepted)}", accepted.__contains__)
        for key, accepted in words.items()
    }
    for key, (accepted, fits) in (_RANGES | ranges).items():
        value = _find(config, key)
        if value is not None and not fits(value):
            raise BadInput(f"config.{key} is {accepted}; {value} was given")
    _check_steps(config)
    _check_augment(config)


def _check_steps(config: Any) -> None:
    steps, warmup = _find(config, "train_steps"), _find(config, "optimizer.warmup_steps")
    if not 0 <= warmup < steps:
        raise BadInput(
            f"config.optimizer.warmup_steps={warmup} does not lie in [0, train_steps={steps}): "
            "shorten the warm-up or train longer"
        )
    repeats, batch_size = _find(config, "data.repeats"), _find(config, "batch_size")
    if repeats > batch_size:
        raise BadInput(
            f"config.data.repeats={repeats} of an example do not fit into a batch of "
            f"config.batch_size={batch_size}: take fewer repeats or a larger batch"
        )
    if steps * repeats >= _INT32:  # draws are numbered in int32
        raise BadInput(
            f"config.train_steps={steps} times config.data.repeats={repeats} is less than 2**31; "
            "train for fewer steps or repeat less"
        )


def _check_augment(config: Any) -> None:
    shape = getattr(config.model, "image_shape", None)
    if shape is None:
        return
    *sides, channels = shape
    padding = _find(config, "data.augment.crop_padding_px")
    if padding > min(sides):
        raise BadInput(
            f"config.data.augment.crop_padding_px={padding} is more than the images' "
            f"{min(sides)} pixels, so that crops would miss them: take a narrower frame"
        )
    if _find(config, "data.augment.randaugment_ops") and channels not in (1, 3):
        raise BadInput(
            "config.data.augment.randaugment_ops takes images of 1 channel or 3; "
            f"config.model.channels={channels} was given: set the former to 0"
        )


def _find(config: Any, key: str) -> Any:
    """The value of 'group.key'; None where this kind of run has no such key."""
    for name in key.split("."):
        config = getattr(config, name, None)
    return config
