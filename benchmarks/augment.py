"""Measures what augmentation costs next to the train step that it is part of.

    python -m benchmarks.augment
    python -m benchmarks.augment --batch=512 --dtype=bfloat16

The recipe is configs/cifar.py's, on 32x32 images of 3 channels; the train step is the loss of
DeiT-Ti with patch 4 and its gradient. Each ratio is of two programs run in alternation; one that
is greater than wanted is marked with !.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.arguments import positive
from configs import cifar
from odeformer import ViT, presets
from train.augment.mixing import mix
from train.augment.pipeline import augment
from train.config.data import AugmentConfig
from train.tasks.task import cross_entropy

WANTED = 0.1  # of the train step, at most, for the whole recipe
SIZE, CLASSES, SMOOTHING = 32, 10, 0.1
MEAN, STD = 0.47, 0.25  # about those of CIFAR's pixels

Program = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def recipes() -> dict[str, AugmentConfig]:
    """Returns the whole recipe and each of its parts alone, by name."""
    whole: Any = cifar.get_config().data.augment.to_dict()
    parts = {
        "crop, flip": ("crop_padding_px", "flip"),
        "RandAugment": ("randaugment_ops", "randaugment_magnitude"),
        "erasing": ("erasing",),
        "mixup, cutmix": ("mixup", "cutmix"),
        "the recipe": tuple(whole),
    }
    return {
        title: AugmentConfig(**{name: whole[name] for name in names})
        for title, names in parts.items()
    }


def make_augmentation(config: AugmentConfig) -> Program:
    """Returns (_, images) -> (images and targets, a number): all that the config asks for."""

    def program(_: Any, images: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(images))
        labels = jnp.arange(len(images)) % CLASSES
        images = augment(config, keys, images, lambda x: (x - MEAN) / STD, (MEAN,) * 3)
        mixed = mix(config, jax.random.key(1), images, labels, CLASSES, SMOOTHING)
        return mixed, mixed[0][0, 0, 0, 0]

    return program


def make_train_step(dtype: str) -> tuple[Any, Program]:
    """Returns DeiT-Ti's parameters, and (params, images) -> (gradients, loss)."""
    config = presets.vit("deit_ti", image_size=SIZE, patch_size=4, classes=CLASSES, dtype=dtype)
    model = ViT(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]

    def loss_fn(params: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, images)
        return cross_entropy(logits, jnp.arange(len(images)) % CLASSES).mean()

    def program(params: Any, images: jax.Array) -> tuple[Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_fn)(params, images)
        return gradients, loss

    return params, program


def tabulate(batch: int, dtype: str, pairs: int) -> Table:
    """Returns the table: a row for each part of the recipe, and one for the whole."""
    table = Table(
        title="augmentation over the train step",
        caption=f"wanted: the recipe <= {WANTED}",
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column("augmentation")
    for column in ("step ms", "time", "quartiles", "compile s"):
        table.add_column(column, justify="right")
    images = jax.random.uniform(jax.random.key(2), (batch, SIZE, SIZE, 3))
    params, train_step = make_train_step(dtype)
    reference = measure.compile_program(train_step, params, images)
    for title, config in recipes().items():
        seconds, program = measure.compile_seconds(make_augmentation(config), params, images)
        ratio, _ = measure.time_ratio(program, reference, params, images, pairs)
        missed = title == "the recipe" and ratio.median > WANTED
        time = f"[bold red]{ratio.median:.3f} ![/]" if missed else f"{ratio.median:.3f}"
        quartiles = f"{ratio.lower:.3f}, {ratio.upper:.3f}"
        table.add_row(title, f"{1e3 * ratio.seconds:.1f}", time, quartiles, f"{seconds:.1f}")
    return table


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--batch", type=positive, default=16, help="batch size (default: 16)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the train step's matrix products (default: float32)",
    )
    parser.add_argument(
        "--pairs", type=positive, default=9, help="timed pairs a ratio (default: 9)"
    )
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console()
    device = jax.devices()[0]
    console.print(f"jax {jax.__version__} on {device.device_kind}, batch {options.batch}\n")
    console.print(tabulate(options.batch, options.dtype, options.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
