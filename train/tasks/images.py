"""Images and their classes."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from odeformer import ViTConfig
from train.augment.mixing import mix
from train.augment.pipeline import augment
from train.config.data import ImageDataConfig
from train.config.run import RunConfig
from train.data.images.arrays import ImageSplit, standardise
from train.tasks.checks import check_equal
from train.tasks.task import (
    Arrays,
    Batch,
    Inputs,
    Keys,
    Metrics,
    cross_entropy,
    mean,
    score_classes,
)

Targets = tuple[jax.Array, jax.Array]  # distributions [B, C], labels [B]


class ImageTask:
    """Classification of images that are augmented on the device.

    A batch holds 'image' uint8 [B, H, W, C], 'label', 'index' and, in training, 'draw' int32 [B],
    the visit. A sample's augmentation is a function of the seed, the sample's index and its visit;
    mixing is one of the seed and the step.
    """

    unit, units_per_example = "images", 1

    def __init__(self, config: RunConfig, data: ImageSplit):
        assert isinstance(config.model, ViTConfig) and isinstance(config.data, ImageDataConfig)
        name, model = config.data.name, config.model
        keys = "config.model.image_size, channels or classes"
        check_equal(name, "image shape", data.image_shape, model.image_shape, keys)
        check_equal(name, "number of classes", data.classes, model.classes, keys)

        self._data = data

        # Images of varying size were cropped when they were read.
        self._augment = config.data.augment
        if data.is_cropped:
            self._augment = dataclasses.replace(self._augment, crop_min_area=0.0)

        self._smoothing = config.optimizer.label_smoothing

    def constants(self) -> dict[str, np.ndarray]:
        """Returns the pixels' mean and standard deviation, [C] each."""
        moments = {"mean": self._data.mean, "std": self._data.std}
        return {name: np.asarray(value, np.float32) for name, value in moments.items()}

    def prepare(self, batch: Batch, keys: Keys, constants: Arrays) -> tuple[Inputs, Targets]:
        """Returns the augmented images, and the targets."""
        to_model = partial(standardise, mean=constants["mean"], std=constants["std"])
        images = self._data.to_unit(batch["image"])

        # RandAugment's warps bring in pixels of the mean colour, which standardising makes 0.
        images = augment(self._augment, keys.samples, images, to_model, fill=constants["mean"])

        images, targets = mix(
            self._augment,
            keys.batch,
            images,
            batch["label"],
            classes=self._data.classes,
            smoothing=self._smoothing,
        )
        return (images,), (targets, batch["label"])

    def loss(self, logits: jax.Array, targets: Targets) -> tuple[jax.Array, Metrics]:
        """Returns the cross-entropy; accuracy too where labels are not mixed."""
        distributions, labels = targets
        metrics = {}

        # A mixed image shows two classes: against the label of one its accuracy says little.
        if not (self._augment.mixup or self._augment.cutmix):
            metrics["accuracy"] = (logits.argmax(-1) == labels).mean()

        return cross_entropy(logits, distributions).mean(), metrics

    def weight(self, targets: Targets) -> jax.Array:
        """Returns the number of images."""
        _, labels = targets
        return jnp.float32(labels.size)

    def inputs(self, batch: Batch, constants: Arrays) -> Inputs:
        """Returns the images, standardised and not augmented."""
        images = self._data.to_unit(batch["image"])
        return (standardise(images, constants["mean"], constants["std"]),)

    def scores(self, logits: jax.Array, batch: Batch, constants: Arrays) -> Metrics:
        """Returns loss (nats), correct (0 or 1), and the predicted and the true class."""
        return score_classes(logits, batch["label"])

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns loss and accuracy."""
        return {"loss": mean(scores["loss"]), "accuracy": mean(scores["correct"])}
