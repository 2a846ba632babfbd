"""Continues prompts with a trained language model, under any solver.

    python -m train.generate --workdir=runs/pydocs --prompt="The with statement"
    python -m train.generate --workdir=runs/pydocs --prompt="A list" --prompt="A tuple" --top_p=0.9

Text is printed as it is generated. It ends where the model ends it, or where the block is full.
Exit codes: 0 done, 1 failed, 2 bad input.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

import numpy as np
from absl import flags

from odeformer import STOPPED, GenerateOptions, make_model, stream
from train import command_line
from train.checkpoint import weights
from train.checkpoint.predictor import prompt_tokens
from train.checkpoint.restore import verified_config
from train.checkpoint.workdir import read_tokenizer
from train.checks import check_not_empty, check_prompted, no_language
from train.config.data import LanguageDataConfig
from train.data.text.tokenizer import StreamDecoder, Tokenizer
from train.errors import BadInput, RunError

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
command_line.define_step(FLAGS)
flags.DEFINE_multi_string(
    "prompt", [], "The text to continue; repeat the flag for several texts.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_new_tokens", None, "The most new tokens; by default as many as fit.", flag_values=FLAGS
)
flags.DEFINE_float("temperature", 0.8, "0 takes the best token each time.", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "Sample from the k best tokens.", flag_values=FLAGS)
flags.DEFINE_float(
    "top_p", None, "Sample from the best tokens whose probabilities sum to p.", flag_values=FLAGS
)
flags.DEFINE_integer("seed", 0, "Of the sampling.", flag_values=FLAGS)


def write_texts(
    tokens: Iterable[np.ndarray], prompts: Sequence[str], tokenizer: Tokenizer, out: TextIO
) -> None:
    """Writes prompts and their continuations: the first as it is generated, then the others.

    Args:
      tokens: the new tokens of all prompts, int [B] each time, as `stream` returns them.
      prompts: the texts that are continued.
      tokenizer: the run's tokenizer.
      out: where to write.
    """
    first, *others = prompts
    out.write(first)

    # A character of UTF-8 may span several tokens: the decoder holds its bytes until all are there.
    decoder, rows = StreamDecoder(tokenizer), []
    for row in tokens:
        rows.append(row)
        if row[0] != STOPPED:
            out.write(decoder.push(int(row[0])))
            out.flush()
    out.write(decoder.finish() + "\n")

    # Two texts cannot be streamed to one terminal at a time: the others follow whole.
    continuations = np.stack(rows, axis=1)[1:]
    for prompt, row in zip(others, continuations, strict=True):
        out.write(f"\n{prompt}{tokenizer.decode(row[row != STOPPED])}\n")


def encode(prompts: Sequence[str], tokenizer: Tokenizer, begin: bool) -> list[list[int]]:
    """Returns the tokens of each prompt.

    Args:
      prompts: the texts.
      tokenizer: the run's tokenizer.
      begin: whether the run's texts begin with the token that ends texts.

    Raises:
      BadInput: a prompt is empty.
    """
    check_not_empty(prompts)
    return prompt_tokens(prompts, tokenizer, begin)


def as_text(argument: str) -> str:
    """Returns an argument of the command line as UTF-8 text, whatever the locale's encoding is.

    Args:
      argument: as Python decodes it: a surrogate replaces each byte that the locale cannot decode.

    Raises:
      BadInput: the bytes are not UTF-8.
    """
    if not any("\ud800" <= character <= "\udfff" for character in argument):
        return argument

    try:
        return os.fsencode(argument).decode()
    except UnicodeError as error:
        raise BadInput(f"--prompt={argument!r} is not UTF-8: give it in that encoding") from error


def main(argv: Sequence[str]) -> None:
    workdir, config = command_line.parse_run(argv, FLAGS, verified_config)
    if not isinstance(config.data, LanguageDataConfig):
        raise no_language(workdir, config.task)
    check_prompted(FLAGS.prompt)

    texts = [as_text(argument) for argument in FLAGS.prompt]
    note(f"restoring the weights of {workdir}")
    variables = {"params": weights.load_params(workdir, config, step=FLAGS.step)}

    # A run on text stores its tokenizer before its first checkpoint.
    tokenizer = read_tokenizer(workdir)
    assert tokenizer is not None and isinstance(config.data, LanguageDataConfig)

    # Only packed documents begin with the token that ends texts; a stream is cut anywhere.
    prompts = encode(texts, tokenizer, begin=config.data.packing == "documents")
    note("compiling the model")
    try:
        options = GenerateOptions(
            max_new_tokens=FLAGS.max_new_tokens,
            temperature=FLAGS.temperature,
            top_k=FLAGS.top_k,
            top_p=FLAGS.top_p,
            seed=FLAGS.seed,
            end=tokenizer.end,
        )
        model: Any = make_model(config.model)
        tokens = stream(model, variables, prompts, options)  # pyright: ignore[reportArgumentType]
    # The library refuses what the flags ask for before the first token is generated.
    except ValueError as error:
        raise BadInput(str(error)) from error

    try:
        write_texts(tokens, texts, tokenizer, sys.stdout)
    except FloatingPointError as error:
        raise RunError(f"{workdir}: {error}") from error


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
