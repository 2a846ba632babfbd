"""Images and their classes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.augment.mixing import mix
from train.augment.pipeline import augment
from train.config.run import RunConfig
from train.data.images.arrays import ImageSplit, standardise
from train.errors import BadInput
from train.tasks.losses import cross_entropy
from train.tasks.task import Arrays, Batch, Keys, Metrics, mean


class ImageTask:
    """Classification of images, augmented on the device.

    A batch holds 'image' uint8 [B, H, W, C], 'label', 'index' and, in training, 'draw' int32 [B].
    What is random about a sample's augmentation is a function of the seed, the sample's index and
    its draw; mixing of the seed and the step.
    """

    unit, units_per_example = "images", 1

    def __init__(self, config: RunConfig, data: ImageSplit):
        model: Any = config.model
        for name, have, want in (
            ("image shape", data.image_shape, model.image_shape),
            ("number of classes", data.classes, model.classes),
        ):
            if have != want:
                raise BadInput(
                    f"the {name} of data set {config.data.name!r} is {have}, the model's is "
                    f"{want}: change config.model.image_size, channels or classes"
                )
        self._data = data
        settings: Any = config.data
        self._augment = settings.augment
        self._smoothing = config.optimizer.label_smoothing

    def constants(self) -> dict[str, np.ndarray]:
        """The pixels' mean and standard deviation."""
        moments = {"mean": self._data.mean, "std": self._data.std}
        return {name: np.asarray(value, np.float32) for name, value in moments.items()}

    def prepare(self, batch: Batch, keys: Keys, given: Arrays) -> tuple[tuple[Any, ...], Any]:
        """Augmented images; targets are distributions [B, C] and the labels."""
        to_model = partial(standardise, mean=given["mean"], std=given["std"])
        images = self._data.to_unit(batch["image"])
        images = augment(self._augment, keys.samples, images, to_model, given["mean"])
        classes, smoothing = self._data.classes, self._smoothing
        images, targets = mix(self._augment, keys.batch, images, batch["label"], classes, smoothing)
        return (images,), (targets, batch["label"])

    def loss(self, logits: jax.Array, targets: Any) -> tuple[jax.Array, Metrics]:
        """Cross-entropy; accuracy too where labels are not mixed."""
        distributions, labels = targets
        metrics = {}
        if not (self._augment.mixup or self._augment.cutmix):
            metrics["accuracy"] = (logits.argmax(-1) == labels).mean()
        return cross_entropy(logits, distributions).mean(), metrics

    def weight(self, targets: Any) -> jax.Array:
        """The images."""
        _, labels = targets
        return jnp.float32(labels.size)

    def inputs(self, batch: Batch, given: Arrays) -> tuple[Any, ...]:
        """Images as they are."""
        return (standardise(self._data.to_unit(batch["image"]), given["mean"], given["std"]),)

    def scores(self, logits: jax.Array, batch: Batch, given: Arrays) -> Metrics:
        """Loss (nats), correct (0 or 1), and the class as it is."""
        return {
            "loss": cross_entropy(logits, batch["label"]),
            "correct": logits.argmax(-1) == batch["label"],
            "label": batch["label"],
        }

    def summarise(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Loss and accuracy."""
        return {"loss": mean(scores["loss"]), "accuracy": mean(scores["correct"])}
