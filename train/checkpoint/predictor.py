"""A trained model as other programs use it: raw images or texts go in, classes or text come out."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer import LM, generate, make_model
from train.checkpoint.predictor_checks import check_batch_size, check_texts, refused
from train.checkpoint.predictor_inputs import inputs_of, is_one_image, read_image
from train.checkpoint.restore import evaluation_config
from train.checkpoint.weights import Step, load_params
from train.checkpoint.workdir import read_tokenizer
from train.config.run import RunConfig
from train.data.blank import blank_images
from train.data.inputs import ImageInputs, LanguageInputs, SentenceInputs
from train.data.text.blocks import Sentences, tokenise
from train.data.text.tokenizer import Tokenizer
from train.files import as_path
from train.tasks import make_task
from train.tasks.task import Arrays, Batch, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a classifier says of one input.

    Attributes:
      classes: names of all classes.
      probabilities: of each, float32 [classes].
    """

    classes: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return float(self.probabilities.max())

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """Returns the most probable classes with their probabilities, in descending order."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[place], float(self.probabilities[place])) for place in order]


class Classifier:
    """A model that tells classes of images or of texts apart.

    Batches are filled up to a power of two with copies of their last input, and the model is
    compiled once for each of these sizes. Where the inputs of a batch share adaptive steps
    (depth.rtol without depth.per_sample) an answer depends on its batch.

    Attributes:
      classes: their names.
      batch_size: the most inputs of a batch.
    """

    def __init__(
        self,
        config: RunConfig,
        params: Any,
        classes: tuple[str, ...],
        task: Task,
        read: Callable[[Any, str], Any],
        gather: Callable[[Sequence[Any]], Mapping[str, np.ndarray]],
        is_one: Callable[[Any], bool],
        batch_size: int,
    ):
        self.classes, self.batch_size = classes, batch_size
        self._params, self._constants = params, task.constants()
        self._read, self._gather, self._is_one = read, gather, is_one
        model: Any = make_model(config.model)

        def probabilities(params: Any, batch: Batch, constants: Arrays) -> jax.Array:
            logits = model.apply({"params": params}, *task.inputs(batch, constants))
            return jax.nn.softmax(logits.astype(jnp.float32))

        self._probabilities = jax.jit(probabilities)

    def predict(self, inputs: Any) -> Prediction | list[Prediction]:
        """Returns the classes' probabilities.

        Args:
          inputs: of a model of images: a uint8 array [H, W, C] of values as the data set has them,
            one of Pillow's images, or the path of a file; of a model of texts: a text. Or several
            of them: a list, or an array [B, H, W, C].

        Returns:
          A Prediction, or a list of them.

        Raises:
          BadInput: an input that is none, or has another size or other channels than the model
            takes.
        """
        # What is no input at all is refused as one.
        if self._is_one(inputs) or not hasattr(inputs, "__len__"):
            return self.classify([self.read(inputs)])[0]

        # Read batch by batch: decoded images take more memory than their files.
        predictions = []
        for start in range(0, len(inputs), self.batch_size):
            batch = inputs[start : start + self.batch_size]
            read = [self.read(raw, f"input {start + n}") for n, raw in enumerate(batch)]
            predictions += self.classify(read)
        return predictions

    def read(self, raw: Any, name: str = "the input") -> Any:
        """Returns one input as `classify` takes it: uint8 [height, width, channels], or a text.

        Args:
          raw: as `predict` takes it.
          name: of an input that is not a file, for messages.

        Raises:
          BadInput: an input that cannot be read, or that the model cannot take.
        """
        return self._read(raw, name)

    def classify(self, read: Sequence[Any]) -> list[Prediction]:
        """Returns a Prediction for each input that `read` returned."""
        predictions = []
        for start in range(0, len(read), self.batch_size):
            part = list(read[start : start + self.batch_size])
            size = min(1 << (len(part) - 1).bit_length(), self.batch_size)
            batch = self._gather(part + part[-1:] * (size - len(part)))

            rows = np.asarray(self._probabilities(self._params, batch, self._constants))
            predictions += [Prediction(self.classes, row) for row in rows[: len(part)]]
        return predictions


class TextGenerator:
    """A language model that continues texts."""

    def __init__(self, model: LM, params: Any, tokenizer: Tokenizer, begins: bool):
        self._model, self._params = model, params
        self._tokenizer, self._begins = tokenizer, begins

    def predict(self, inputs: str | Sequence[str], **sampling: Any) -> str | list[str]:
        """Returns the continuation of a text, or of each of several.

        Args:
          inputs: texts of one character or more.
          **sampling: max_new_tokens, temperature, top_k, top_p and seed of `odeformer.generate`.

        Raises:
          BadInput: an empty text, or a value that `odeformer.generate` refuses.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        check_texts(texts)

        prompts = prompt_tokens(texts, self._tokenizer, self._begins)
        variables, end = {"params": self._params}, self._tokenizer.end
        with refused():
            new = generate(self._model, variables, prompts, end=end, **sampling)

        continued = [self._tokenizer.decode(tokens) for tokens in new]
        return continued[0] if isinstance(inputs, str) else continued


def prompt_tokens(texts: Sequence[str], tokenizer: Tokenizer, begins: bool) -> list[list[int]]:
    """Returns the tokens of texts that a language model is to continue.

    Args:
      texts: the texts.
      tokenizer: the run's.
      begins: whether the run's texts begin with the token that ends texts.
    """
    before = [tokenizer.end] if begins else []
    return [[*before, *tokens.tolist()] for tokens in tokenizer.encode(texts)]


def load_predictor(
    workdir: str | os.PathLike[str],
    step: Step = None,
    overrides: Mapping[str, Any] | None = None,
    batch_size: int = 64,
) -> Any:
    """Returns a trained model that takes raw inputs: images, files, texts.

    Args:
      workdir: of a run; a local folder or a gs:// address.
      step: of the checkpoint; 'best' for the best one by the run's config.checkpoint.best, None
        for the newest sound one.
      overrides: config keys to change, e.g. {'depth.solver': 'tsit5', 'depth.rtol': 1e-3}.
      batch_size: the most inputs that a classifier is given at a time.

    Returns:
      A `Classifier`, whose `predict` returns classes with probabilities; of a language model a
      `TextGenerator`, whose `predict` returns text.

    Raises:
      BadInput: no run, no checkpoint, or a run of an earlier version that did not record what its
        inputs are; the message says what is missing.
    """
    config = evaluation_config(as_path(workdir), overrides or {})
    return make_predictor(workdir, config, step, batch_size)


def make_predictor(
    workdir: str | os.PathLike[str], config: RunConfig, step: Step = None, batch_size: int = 64
) -> Any:
    """Returns what `load_predictor` does, for a config to evaluate under."""
    path = as_path(workdir)
    check_batch_size(batch_size)
    inputs = inputs_of(path, config)
    params, tokenizer = load_params(path, config, step=step), read_tokenizer(path)

    if isinstance(inputs, LanguageInputs):
        model: Any = make_model(config.model)
        assert tokenizer is not None
        return TextGenerator(model, params, tokenizer, inputs.begins)

    if isinstance(inputs, SentenceInputs):
        return _text_classifier(config, params, inputs, tokenizer, batch_size)
    return _image_classifier(config, params, inputs, batch_size)


def _image_classifier(
    config: RunConfig, params: Any, inputs: ImageInputs, batch_size: int
) -> Classifier:
    def gather(images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"image": np.stack(images)}

    return Classifier(
        config,
        params,
        classes=inputs.classes,
        task=make_task(config, blank_images(inputs)),
        read=lambda raw, name: read_image(raw, inputs, name),
        gather=gather,
        is_one=is_one_image,
        batch_size=batch_size,
    )


def _text_classifier(
    config: RunConfig, params: Any, inputs: SentenceInputs, tokenizer: Any, batch_size: int
) -> Classifier:
    def split(texts: Sequence[str]) -> Sentences:
        labels = np.zeros(len(texts), np.int32)
        corpus = tokenise(texts, tokenizer)
        return Sentences(corpus, labels, len(inputs.classes), inputs.block_size, tokenizer)

    def gather(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        return split(texts).gather(np.arange(len(texts)))

    def read(raw: Any, name: str) -> str:
        check_texts([raw], name)
        return raw

    return Classifier(
        config,
        params,
        classes=inputs.classes,
        task=make_task(config, split([""])),
        read=read,
        gather=gather,
        is_one=lambda raw: isinstance(raw, str),
        batch_size=batch_size,
    )
