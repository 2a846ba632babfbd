"""All that defines a run: frozen dataclasses, whose fields say what is to be known of each key."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

from odeformer import LMConfig, ModelConfig, TextConfig, ViTConfig, presets
from train.config.data import ImageDataConfig, LanguageDataConfig, SentenceDataConfig
from train.config.lora import LoraConfig, check_lora
from train.config.modules import are_names
from train.config.optimizer import InitConfig, OptimizerConfig, check_init
from train.config.patterns import check_layer_decay
from train.config.refining import check_refine_at
from train.config.regularise import RegulariseConfig, regularised
from train.config.setting import (
    COUNT,
    COUNT_OR_ZERO,
    POSITIVE,
    SEED,
    PartOfRun,
    Range,
    name_in,
    one_of,
    setting,
)
from train.config.tables import METRICS, SIGNS
from train.errors import BadInput

DataConfig = ImageDataConfig | LanguageDataConfig | SentenceDataConfig


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a run of one kind is configured by."""

    model: type
    data: type
    presets: tuple[str, ...]  # names of sizes
    preset: Callable[[str], ModelConfig]
    check: Callable[[Any, Any], None] = lambda model, data: None  # raises BadInput


def _check_images(model: ViTConfig, data: ImageDataConfig) -> None:
    if not model.classes:
        raise BadInput(
            "config.model.classes=0 is a model without a head, which gives no class to learn from: "
            "set it to the number of the data's classes"
        )

    padding, side = data.augment.crop_padding_px, min(model.image_shape[:2])
    if padding > side:
        raise BadInput(
            f"config.data.augment.crop_padding_px={padding} is more than the images' {side} "
            "pixels, so that crops would miss them: take a narrower frame"
        )

    if data.augment.randaugment_ops and model.channels not in (1, 3):
        raise BadInput(
            "config.data.augment.randaugment_ops takes images of 1 channel or 3; "
            f"config.model.channels={model.channels} was given: set the former to 0"
        )


# What a run of each task of the trainer's own is configured by.
_KINDS = {
    "images": Kind(ViTConfig, ImageDataConfig, presets.VIT_NAMES, presets.vit, _check_images),
    "language": Kind(LMConfig, LanguageDataConfig, presets.LM_NAMES, presets.lm),
    "sentences": Kind(TextConfig, SentenceDataConfig, presets.TEXT_NAMES, presets.text),
}

TASKS: Mapping[str, Kind] = types.MappingProxyType(_KINDS)  # by the values of config.task


def base_task(task: str) -> str:
    """Returns the trainer's own task that one is like; a task of the trainer's own itself."""
    return next(name for name, kind in TASKS.items() if kind is TASKS[task])


def add_task(name: str, like: str) -> None:
    """Adds a task, whose name is free, with the model and the data of another one."""
    _KINDS[name] = _KINDS[like]


# What a checkpoint may be the best by -> the sign with which more of it is better.
BEST = {"val/loss": -1, "val/accuracy": 1}


def best_signs() -> dict[str, int]:
    """Returns what a checkpoint may be the best by, metrics of your own included, and its sign."""
    return BEST | {f"val/{name}": sign for name, sign in SIGNS.items()}


_BEST = Range(lambda: f"one of {', '.join(best_signs())}", lambda value: value in best_signs())
_METRICS = Range(
    lambda: f"a list of names of registered metrics ({', '.join(METRICS) or 'none is yet'})",
    lambda names: all(isinstance(name, str) and name in METRICS for name in names),
)
_AXIS = Range("1 or more, or -1 for the devices that are left", lambda v: v > 0 or v == -1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the device mesh's axes; their product is the number of devices."""

    data: int = setting(-1, "Splits the batch; each device holds the whole state.", _AXIS)
    fsdp: int = setting(1, "Splits the batch and the state.", _AXIS)
    tensor: int = setting(1, "Splits heads, MLP and vocabulary.", _AXIS)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a training step is spread over the mesh."""

    mode: str = setting(
        "jit",
        "jit: one program of the whole batch; shard_map: each shard of the data axis on its own.",
        one_of("jit", "shard_map"),
    )
    accumulate: int = setting(
        1, "Parts of a batch, computed one after the other, whose gradients are added up.", COUNT
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and which of its checkpoints are kept."""

    every_steps: int = setting(PartOfRun(10), "Steps between two checkpoints.", POSITIVE)
    keep: int = setting(2, "How many of the newest checkpoints are kept.", POSITIVE)
    best: str | None = setting(
        "val/loss",
        "The best checkpoint by this metric is kept too; None: the newest alone.",
        _BEST,
    )


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a batch is skipped; one whose loss or gradient is not finite always is."""

    sigmas: float | None = setting(
        None,
        "Skip a batch whose loss or gradient norm is so many standard deviations above the mean "
        "of the recent ones; None: any finite one is accepted.",
        POSITIVE,
    )
    max_consecutive: int = setting(
        10, "Batches skipped in a row after which the run is rolled back to a checkpoint.", COUNT
    )
    max_rollbacks: int = setting(
        3, "Rollbacks after which the next one stops the run instead.", COUNT_OR_ZERO
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a run is evaluated on the validation split."""

    every_steps: int = setting(PartOfRun(10), "Steps between two evaluations.", POSITIVE)
    batch_size: int = setting(1000, "Examples per batch.", COUNT)
    metrics: tuple[str, ...] = setting((), "Metrics in addition to the task's own.", _METRICS)


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the training metrics are written."""

    every_steps: int = setting(PartOfRun(100), "Steps between two lines of metrics.", POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that defines a run.

    `from_config_dict` makes one, and checks what each key accepts.
    """

    task: str = setting("images", "What is learnt, and from what.", name_in(TASKS))
    modules: tuple[str, ...] = setting(
        (),
        "Files (.py) and modules of your own, imported before anything is checked; "
        "docs/own-parts.md.",
        Range("a list of names of files and modules", are_names),
    )
    seed: int = setting(0, "Of the first weights, the data's order and all that is random.", SEED)
    train_steps: int = setting(1000, "Batches to train on.", COUNT)
    batch_size: int = setting(64, "Examples per batch, over all devices.", COUNT)
    data: DataConfig
    model: ModelConfig
    init: InitConfig
    lora: LoraConfig
    optimizer: OptimizerConfig
    regularise: RegulariseConfig
    mesh: MeshConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    eval: EvalConfig
    log: LogConfig

    def __post_init__(self):
        _check_solver(self.model)
        regularised(self.model, self.regularise)
        _check_warmup(self)
        _check_decay(self)
        check_init(self.init)
        check_lora(self.lora, self.init, self.model.depth)
        if self.optimizer.layer_decay is not None:
            check_layer_decay(self.optimizer.layer_decay, self.model.depth.layers)
        _check_best(self)
        _check_repeats(self)
        check_refine_at(self)
        TASKS[self.task].check(self.model, self.data)


def _check_solver(model: ModelConfig) -> None:
    solver = model.depth.solver
    if not isinstance(solver, str):
        raise BadInput(
            f"config.depth.solver is a name, which config.json can hold; {solver!r} was given: "
            "register it by odeformer.solvers.register, and give its name"
        )


def _check_warmup(config: RunConfig) -> None:
    steps, warmup = config.train_steps, config.optimizer.warmup_steps
    if warmup >= steps:
        raise BadInput(
            f"config.optimizer.warmup_steps={warmup} does not lie in [0, train_steps={steps}): "
            "shorten the warm-up or train longer"
        )


def _check_decay(config: RunConfig) -> None:
    options, decay = config.optimizer, config.optimizer.decay_steps
    if decay is None:
        return

    # A schedule of someone else's may read the key.
    if options.schedule in ("cosine", "linear", "constant"):
        raise BadInput(
            f"config.optimizer.decay_steps={decay} has no effect under config.optimizer.schedule="
            f"{options.schedule!r}: set it to None, or the schedule to 'wsd'"
        )

    if options.schedule == "wsd" and options.warmup_steps + decay > config.train_steps:
        raise BadInput(
            f"config.optimizer.decay_steps={decay} after warmup_steps={options.warmup_steps} do "
            f"not fit into train_steps={config.train_steps}: shorten either or train longer"
        )


def _check_best(config: RunConfig) -> None:
    best = config.checkpoint.best
    if best in best_signs() and best not in BEST:
        name = best.removeprefix("val/")
        if name not in config.eval.metrics:
            raise BadInput(
                f"config.checkpoint.best={best!r} is not measured: add {name!r} to "
                "config.eval.metrics"
            )


def _check_repeats(config: RunConfig) -> None:
    repeats, batch_size = config.data.repeats_per_batch, config.batch_size
    if repeats > batch_size:
        raise BadInput(
            f"config.data.repeats_per_batch={repeats} of an example do not fit into a batch of "
            f"config.batch_size={batch_size}: take fewer repeats or a larger batch"
        )

    # Draws are numbered in int32.
    if config.train_steps * repeats >= 1 << 31:
        raise BadInput(
            f"config.train_steps={config.train_steps} times config.data.repeats_per_batch="
            f"{repeats} is less than 2**31; train for fewer steps or repeat less"
        )
