"""Generates text: tokens sampled one after another, each read by the model as soon as it is there.

Arrays carry their axes in their names: B batch, C tokens of a chunk, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.checks import COUNT, check_settings, setting
from odeformer.errors import check_kind
from odeformer.models.decoding import Cache, decode, init_cache
from odeformer.models.generate_checks import (
    SEED,
    TEMPERATURE,
    TOP_P,
    as_prompts,
    check_end,
    check_variables,
    not_finite,
)
from odeformer.models.lm import LM
from odeformer.models.sampling import sample

# In place of the token of a sequence that has ended, in `stream`.
STOPPED = -1

# In place of a token whose logits are not finite, until the host reads it.
_INVALID = -2

# (tokens_BC, cache, lengths_B, number) -> the new token of that number [B, 1], cache
Read = Callable[..., tuple[jax.Array, Cache]]


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """How prompts are continued: the options of `generate`, which describes them."""

    max_new_tokens: int | None = setting(COUNT, None)
    temperature: float = setting(TEMPERATURE, 1.0)
    top_k: int | None = setting(COUNT, None)
    top_p: float | None = setting(TOP_P, None)
    seed: int = setting(SEED, 0)
    end: int | None = None  # depends on the vocabulary

    def __post_init__(self):
        check_settings(self)


def generate(
    model: LM,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end: int | None = None,
) -> list[np.ndarray]:
    """Continues each prompt, token by token, with a cache for every evaluation of the solver.

    The model reads the prompts in one program and each further token in another. Both are compiled
    once for a number of prompts and a power of two that their lengths do not exceed; other values
    of temperature, top_k, top_p and seed reuse them.

    Args:
      model: the model.
      variables: its parameters.
      prompts: sequences of tokens, one token or more each, of any lengths.
      max_new_tokens: the most new tokens of a prompt; cut to what fits the block together with the
        prompt. None: as many as fit.
      temperature: what logits are divided by before anything else; 0 takes the best token.
      top_k: sample from the k best tokens; None: from all.
      top_p: of these, sample from the fewest best whose probability reaches p, in (0, 1]; None:
        all.
      seed: a token depends on the seed, the prompt's index, the number of the new token and its
        logits only: other prompts change nothing, to float32 rounding.
      end: a token that ends its sequence; None: there is none.

    Returns:
      The new tokens of each prompt, int32 [new tokens], up to and with `end`.

    Raises:
      ValueError: no prompts, an empty one, one that leaves no room in the block, tokens out of
        the vocabulary's range, or another value that is not accepted.
      FloatingPointError: logits that are NaN or infinite; says of which prompt, at which token, and
        which parameters are not finite.

    Source: Holtzman et al., 'The Curious Case of Neural Text Degeneration', 2019, arXiv 1904.09751
    (top_p).

    Examples:
      >>> import jax, odeformer
      >>> config = odeformer.LMConfig(
      ...     vocabulary=7, block_size=8, width=16, heads=2, mlp=32,
      ...     depth=odeformer.DepthConfig(layers=2, solver="heun"),
      ... )
      >>> model = odeformer.LM(config)
      >>> variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 8), "int32"))
      >>> texts = odeformer.generate(model, variables, [[3, 1, 4], [5]], max_new_tokens=6)
      >>> [len(text) for text in texts]  # three tokens and five fill the block
      [5, 6]
    """
    options = GenerateOptions(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end=end,
    )
    new = np.stack(list(stream(model, variables, prompts, options)), axis=1)
    return [row[row != STOPPED] for row in new]


def stream(
    model: LM,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    options: GenerateOptions | None = None,
) -> Iterator[np.ndarray]:
    """Continues each prompt as `generate` does, and yields the tokens as they come.

    Args:
      model: the model.
      variables: its parameters.
      prompts: sequences of tokens, as for `generate`.
      options: those of `generate`; None: its defaults.

    Returns:
      An iterator of int32 [B]: the next new token of each prompt; STOPPED (-1) for a prompt whose
      sequence has ended. It stops when all have.

    Raises:
      ValueError: as `generate`, at the call.
      FloatingPointError: as `generate`, at the token that would have been sampled.
    """
    options = options or GenerateOptions()
    check_kind("generate", model, LM)
    check_variables(variables)
    sequences = as_prompts(prompts, model.config)
    check_end(options.end, model.config)

    tokens_BC, lengths_B = _pad(sequences, model.config.block_size)
    limits_B = model.config.block_size - lengths_B
    if options.max_new_tokens is not None:
        limits_B = np.minimum(limits_B, options.max_new_tokens)

    read = functools.partial(
        _read_and_sample,
        model,
        variables,
        key=jax.random.key(options.seed),
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )

    # A generator of its own, so that the checks above run at the call and not at the first token.
    return _tokens(
        model,
        variables,
        read,
        tokens_BC=tokens_BC,
        lengths_B=lengths_B,
        limits_B=limits_B,
        end=options.end,
    )


def _pad(sequences: list[np.ndarray], block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The sequences padded on the right, int32 [B, C], and their lengths, int32 [B]."""
    lengths_B = np.array([len(sequence) for sequence in sequences], np.int32)

    # To a power of two: few widths, and so few programs to compile.
    width = min(1 << (int(lengths_B.max()) - 1).bit_length(), block_size)
    tokens_BC = np.zeros((len(sequences), width), np.int32)
    for row, sequence in zip(tokens_BC, sequences, strict=True):
        row[: len(sequence)] = sequence

    return tokens_BC, lengths_B


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read_and_sample(
    model: LM,
    variables: Any,
    tokens_BC: jax.Array,
    cache: Cache,
    lengths_B: jax.Array | None,
    number: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array | None,
    top_p: jax.Array | None,
) -> tuple[jax.Array, Cache]:
    """Reads C tokens, and samples the new token of that number, int32 [B, 1]."""
    logits_BV, cache = decode(model, variables, tokens_BC, cache, lengths_B)
    sampled_B = sample(jax.random.fold_in(key, number), logits_BV, temperature, top_k, top_p)

    # Marked in the token itself, which the host reads anyway: nothing more has to be waited for.
    sampled_B = jnp.where(jnp.isfinite(logits_BV).all(axis=-1), sampled_B, _INVALID)
    return sampled_B[:, None], cache


def _tokens(
    model: LM,
    variables: Any,
    read: Read,
    *,
    tokens_BC: np.ndarray,
    lengths_B: np.ndarray,
    limits_B: np.ndarray,
    end: int | None,
) -> Iterator[np.ndarray]:
    """The loop of `stream`: limits_B is the most new tokens of each sequence."""
    cache = init_cache(model.config, len(tokens_BC))
    next_B1, cache = read(tokens_BC, cache, lengths_B, 0)

    longest = int(limits_B.max())
    stopped_B = np.zeros(len(tokens_BC), bool)
    for number in range(1, longest + 1):
        tokens_B1 = next_B1

        # The next token is dispatched before this one is waited for.
        if number < longest:
            next_B1, cache = read(tokens_B1, cache, None, number)

        tokens_B = np.asarray(tokens_B1)[:, 0]
        invalid_B = ~stopped_B & (tokens_B == _INVALID)
        if invalid_B.any():
            raise not_finite(variables, int(invalid_B.argmax()), number)

        yield np.where(stopped_B, STOPPED, tokens_B)

        # A stopped sequence stays in the batch, whose shape is compiled, and is no longer reported.
        stopped_B |= (number >= limits_B) | (tokens_B == end)
        if stopped_B.all():
            return
