"""A run's weights, with all that their use needs: the published layout, and our own."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from odeformer import make_model
from odeformer.interop import save_pretrained, save_safetensors
from train.checkpoint.predictor_inputs import inputs_of
from train.checkpoint.restore import verified_config
from train.checkpoint.weights import Step, load_params
from train.checkpoint.workdir import read_tokenizer
from train.config.lora import LoraConfig
from train.config.run import RunConfig, base_task
from train.config.stored import to_json
from train.data.images.crops import CENTRE
from train.data.inputs import ImageInputs, Inputs, SentenceInputs
from train.data.inputs import to_json as inputs_to_json
from train.data.text.byte_level import byte_of
from train.data.text.tokenizer import END, BPETokenizer, Tokenizer
from train.errors import warn
from train.export.checks import writing_layout
from train.files import as_path

# Under their own names, as no program of another project reads them.
WEIGHTS = "weights.safetensors"

_BICUBIC = 3  # Pillow's number of the filter


class Trained(NamedTuple):
    """A run as it is exported.

    Attributes:
      config: to evaluate under.
      params: the weights to evaluate with.
      inputs: what its inputs are.
      tokenizer: None of images.
    """

    config: RunConfig
    params: Any
    inputs: Inputs
    tokenizer: Tokenizer | None

    @property
    def inputs_json(self) -> str:
        """The text of the run's inputs.json."""
        return inputs_to_json(base_task(self.config.task), self.inputs)


def load_trained(workdir: str, config: RunConfig | None = None, step: Step = None) -> Trained:
    """Returns a run as it is exported.

    Args:
      workdir: of the run; a local folder or a gs:// address.
      config: to evaluate under; None for the run's own.
      step: of the checkpoint, as for `load_params`.

    Raises:
      BadInput: no run, no checkpoint, or a run that does not say what its inputs are.
    """
    path = as_path(workdir)
    config = verified_config(path) if config is None else config
    inputs, tokenizer = inputs_of(path, config), read_tokenizer(path)
    return Trained(config, load_params(path, config, step=step), inputs, tokenizer)


def write_safetensors(folder: pathlib.Path, run: Trained) -> None:
    """Writes the weights under our own names, the config, the inputs and the tokeniser."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing_layout("safetensors"):
        save_safetensors({"params": run.params}, folder / WEIGHTS)

    # Adapters are merged, so that the model that is written has none.
    _write(folder / "config.json", to_json(dataclasses.replace(run.config, lora=LoraConfig())))
    _write(folder / "inputs.json", run.inputs_json)
    if run.tokenizer is not None:
        _write(folder / "tokenizer.json", run.tokenizer.to_json())


def write_huggingface(folder: pathlib.Path, run: Trained) -> None:
    """Writes what the library transformers reads: the model, and what its inputs need.

    Raises:
      BadInput: a model of another form, by the key that has no place in the layout.
    """
    with writing_layout("huggingface"):
        save_pretrained(make_model(run.config.model), {"params": run.params}, folder)

    if isinstance(run.inputs, ImageInputs):
        _amend(folder / "config.json", _labels(run.inputs.classes))
        if (preparation := _preparation(run.inputs)) is not None:
            _write(folder / "preprocessor_config.json", json.dumps(preparation, indent=2))
    elif not isinstance(run.inputs, SentenceInputs) and run.tokenizer is not None:
        end = run.tokenizer.end
        _amend(folder / "config.json", {"eos_token_id": end, "bos_token_id": end})
        _write_tokenizer(folder, run.tokenizer, run.inputs.block_size)


def _labels(classes: tuple[str, ...]) -> dict[str, Any]:
    names = {str(label): name for label, name in enumerate(classes)}
    return {"id2label": names, "label2id": {name: int(label) for label, name in names.items()}}


def _preparation(inputs: ImageInputs) -> dict[str, Any] | None:
    """The preprocessor_config.json; None, with a warning, for crops that it cannot say."""
    height, width, _ = inputs.image_shape
    prepared: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / inputs.peak,
        "do_normalize": True,
        "image_mean": list(inputs.mean),
        "image_std": list(inputs.std),
    }
    if not inputs.is_cropped:
        return prepared

    if height != width:
        warn(
            f"images of {height} x {width} pixels are cropped to their own ratio, which the layout "
            "has no word for: preprocessor_config.json is not written"
        )
        return None

    # The centre of the image whose shorter side was scaled to 8/7 of the crop.
    return prepared | {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(height / CENTRE)},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


def _write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer, block_size: int) -> None:
    text = tokenizer.to_json() if isinstance(tokenizer, BPETokenizer) else bytes_as_bpe().to_str()
    _write(folder / "tokenizer.json", text)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    _write(folder / "tokenizer_config.json", json.dumps(described | {"eos_token": END}, indent=2))


def bytes_as_bpe() -> Tokenizers:
    """Returns the tokeniser of bytes as a byte-pair encoding that merges nothing."""
    tokenizer = Tokenizers(BPE(vocab=byte_of(), merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([END])
    return tokenizer


def _amend(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Changes values of a JSON file."""
    _write(path, json.dumps(json.loads(path.read_text()) | values, indent=2, sort_keys=True))


def _write(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
