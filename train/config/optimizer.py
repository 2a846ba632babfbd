"""How weights begin and how they move: the groups `init` and `optimizer` of a run's config."""

import dataclasses
import os
import re

from train.config.patterns import FACTORS, PATTERNS
from train.config.setting import (
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    name_in,
    setting,
)
from train.config.tables import OPTIMIZERS, SCHEDULES
from train.errors import BadInput
from train.files import expand


class _HubNames:
    """Names as the Hugging Face Hub gives them: all that look like one and are no folder here."""

    def __contains__(self, value: object) -> bool:
        is_name = isinstance(value, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value)
        return bool(is_name) and not os.path.exists(expand(str(value)))


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Weights to begin with, in place of random ones; docs/fine-tuning.md."""

    path: str | None = setting(
        None,
        "A workdir, a folder in the layout of transformers, or a name on the Hugging Face Hub.",
        path=True,
        words=_HubNames(),
    )
    include: tuple[str, ...] = setting(
        (), "Parameters to take from it, by name; none named: all.", PATTERNS
    )
    exclude: tuple[str, ...] = setting(
        (), "Parameters to begin at random all the same, by name.", PATTERNS
    )


def check_init(config: InitConfig) -> None:
    """Refuses parameters to take from nowhere."""
    for key in ("include", "exclude"):
        if getattr(config, key) and config.path is None:
            raise BadInput(
                f"config.init.{key} has no effect without config.init.path: give the weights to "
                "begin with, too"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, its learning rate, an average of the weights, and label smoothing."""

    name: str = setting("adamw", "The optimiser; docs/optimizers.md.", name_in(OPTIMIZERS))
    schedule: str = setting(
        "cosine", "The learning rate after the warm-up; docs/optimizers.md.", name_in(SCHEDULES)
    )
    learning_rate: float = setting(1e-3, "Its peak, after the warm-up.", POSITIVE)
    warmup_steps: int = setting(
        100, "Steps of linear warm-up; fewer than train_steps.", NOT_NEGATIVE
    )
    decay_steps: int | None = setting(
        None, "Last steps, in which 'wsd' decays; None: a tenth of those after the warm-up.", COUNT
    )
    weight_decay: float = setting(0.05, "Of kernels and token embeddings alone.", NOT_NEGATIVE)
    b1: float = setting(
        0.9, "Decay of the gradient's moving average, or momentum; adafactor has none.", FRACTION
    )
    b2: float = setting(
        0.999,
        "Decay of the squared gradient's moving average, for lion of the gradient's; sgd and "
        "adafactor do not read it.",
        FRACTION,
    )
    clip_norm: float | None = setting(
        None, "Bound on the norm of the whole gradient; None: no clipping.", POSITIVE
    )
    ema_decay: float | None = setting(
        None, "Decay of the weights' moving average; None: none is kept.", FRACTION
    )
    label_smoothing: float = setting(0.0, "Part of the target spread over all classes.", FRACTION)
    freeze: tuple[str, ...] = setting(
        (), "Parameters that are not trained, by name; docs/fine-tuning.md.", PATTERNS
    )
    rate_factors: tuple[str, ...] = setting(
        (), "Factors of the learning rate, by name: 'head=10'.", FACTORS
    )
    layer_decay: float | None = setting(
        None,
        "Factor of the learning rate per layer below the head; None: one rate for all layers.",
        Range("greater than 0 and at most 1", lambda value: 0 < value <= 1),
    )
