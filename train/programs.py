"""What was compiled and read for a run, which runs that differ in seed and fold alone share."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import optax
from jax.sharding import Mesh

from train.checkpoint.weights import Base
from train.config.data import ImageDataConfig
from train.config.optimizer import InitConfig
from train.config.run import DataConfig, RunConfig
from train.data.images.arrays import Images
from train.data.sources import load_splits
from train.data.split import Split
from train.data.text.tokenizer import Tokenizer
from train.scores import jit_eval_step, jit_recovery, make_eval_step, make_recovery
from train.state import TrainState, jit_init
from train.step import jit_train_step, make_train_step
from train.tasks.task import Batch, Metrics, Task


class Programs:
    """Keeps what was compiled and read for one run, for the next ones.

    Seed and fold are arguments of the programs: runs that differ in them alone compile once. The
    learning rate and the number of steps are part of the training step, which is compiled again.
    """

    def __init__(self):
        self._kept: dict[Hashable, Any] = {}

    def splits(self, config: RunConfig, tokenizer: Tokenizer | None) -> Mapping[str, Any]:
        """Returns the splits of a run's data, as `load_splits` does."""
        key = ("splits", config.data, getattr(config.model, "image_shape", None))
        if key in self._kept:
            return self._kept[key]

        splits = load_splits(config, tokenizer)

        # Any other kind of split draws from the run's seed as it is read.
        if all(isinstance(split, Images) for split in splits.values()):
            self._kept[key] = splits
        return splits

    def init(
        self,
        config: RunConfig,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        base: Base | None = None,
    ) -> Callable[[], TrainState]:
        """Returns the function that makes a run's initial state."""
        # No array of the state depends on the learning rate.
        shapes = dataclasses.replace(config.optimizer, learning_rate=1.0)
        key = ("init", config.model, shapes, config.mesh, config.lora)
        init = self._keep(key, lambda: jit_init(config, optimizer, mesh))
        return lambda: init(np.uint32(config.seed), *([] if base is None else [base.head]))

    def train_step(
        self,
        config: RunConfig,
        optimizer: optax.GradientTransformation,
        task: Task,
        mesh: Mesh,
        base: Base | None = None,
    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """Returns a run's train step, as `make_train_step` does."""
        # Adapters need a path, whose weights are an argument, too.
        init = InitConfig(path=None if config.lora.rank is None else "/of/any")
        alike = dict(seed=0, init=init, data=_without_fold(config.data))
        key = ("train", dataclasses.replace(config, **alike))
        jitted = self._keep(key, lambda: jit_train_step(config, optimizer, task, mesh))
        params = None if base is None else base.params
        return make_train_step(config, optimizer, task, mesh, jitted=jitted, base=params)

    def eval_step(
        self, config: RunConfig, task: Task, mesh: Mesh
    ) -> Callable[[Any, Batch], Metrics]:
        """Returns a run's evaluation step, as `make_eval_step` does."""
        key = ("eval", config.task, config.eval.metrics, config.model, config.mesh)
        key += (_without_fold(config.data),)
        jitted = self._keep(key, lambda: jit_eval_step(config.model, task, mesh))
        return make_eval_step(config.model, task, mesh, jitted)

    def steps(
        self,
        config: RunConfig,
        optimizer: optax.GradientTransformation,
        task: Task,
        mesh: Mesh,
        base: Base | None = None,
    ) -> dict[str, Any]:
        """Returns a run's 'train_step', 'eval_step' and 'recover'."""
        return {
            "train_step": self.train_step(config, optimizer, task, mesh, base),
            "eval_step": self.eval_step(config, task, mesh),
            "recover": self.recovery(config, task, mesh),
        }

    def recovery(
        self, config: RunConfig, task: Task, mesh: Mesh
    ) -> Callable[[Any, Split, int], dict[str, float]]:
        """Returns a run's check of its reversible pair, as `make_recovery` does."""
        if config.model.depth.reversible is None:
            return make_recovery(config.model, task, mesh)

        key = ("recovery", config.task, config.model, config.mesh, _without_fold(config.data))
        jitted = self._keep(key, lambda: jit_recovery(config.model, task, mesh))
        return make_recovery(config.model, task, mesh, jitted)

    def _keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def _without_fold(data: DataConfig) -> DataConfig:
    """What the programs depend on: the folds of a set differ in their arrays alone."""
    return dataclasses.replace(data, fold=None) if isinstance(data, ImageDataConfig) else data
