"""A data set of sentences for the tests, made without TensorFlow."""

import tensorflow_datasets as tfds


class Opinions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Sentences whose class is told by one word."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["bad", "good"])
        features = tfds.features.FeaturesDict({"sentence": tfds.features.Text(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(15)}

    def _generate_examples(self, examples):
        for n in range(examples):
            words = ["a", "rather", "very"][: n % 3 + 1]
            label = n % 2
            sentence = " ".join([*words, ("awful", "lovely")[label], f"film {n}"])
            yield n, {"sentence": sentence, "label": label}
