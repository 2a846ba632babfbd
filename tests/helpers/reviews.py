"""Data sets for keys that choose among sets and features, made without TensorFlow."""

import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tests.helpers.notes import make_notes


class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Two texts and two classes for each example; which words depends on the builder's config."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=word) for word in ("good", "fine")]
    first = 0

    def _info(self):
        label = tfds.features.ClassLabel(num_classes=2)
        text = tfds.features.Text()
        features = dict(sentence=text, title=text, label=label, mood=label)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40)}

    def _generate_examples(self, examples):
        word = self.builder_config.name
        for n in range(self.first, self.first + examples):
            labels = dict(label=n % 2, mood=n // 2 % 2)
            yield n, dict(sentence=f"a {word} film {n}", title=f"{n} by someone") | labels


class Dots(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images as those of 'digits'; with config 'broken', one that cannot be decoded."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name) for name in ("whole", "other", "broken")
    ]
    first = 0

    def _info(self):
        features = dict(
            image=tfds.features.Image(shape=(8, 8, 1)),
            label=tfds.features.ClassLabel(num_classes=10),
        )
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(80)}

    def _generate_examples(self, examples):
        rng = np.random.default_rng((self.first, *self.builder_config.name.encode()))
        for n in range(examples):
            file = io.BytesIO()
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(file, "png")
            broken = self.builder_config.name == "broken" and n == 3
            content = file.getvalue()[:40] if broken else file.getvalue()
            yield n, {"image": io.BytesIO(content), "label": n % 10}


def prepare(folder):
    """Makes both sets, a folder of pictures and one of notes; others alike in a second place."""
    for place, first, dots, words in (
        (folder / "one", 0, ("whole", "other", "broken"), ("good", "fine")),
        (folder / "two", 100, ("whole",), ("good",)),
    ):
        for builder, configs in ((Dots, dots), (Reviews, words)):
            values = {"name": builder.name, "first": first}
            made = type(builder.__name__, (builder,), values, skip_registration=True)
            for config in configs:
                options = dict(data_dir=place, file_format="array_record")
                made(config=config, **options).download_and_prepare()
        draw_pictures(place / "pictures", first)
        make_notes(place / "notes", {word: 15 + first // 10 for word in ("bad", "good")})


def draw_pictures(folder, seed):
    """Writes four images as those of 'digits' into the folder of each of ten classes."""
    rng = np.random.default_rng(seed)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for n in range(4):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{n}.png")
