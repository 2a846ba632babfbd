"""Generates text: tokens drawn one after the other, each read by the model as it is drawn.

Arrays carry their axes in their names: B batch, C tokens of a chunk, V vocabulary.
"""

import functools
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.errors import check_kind, check_positive_int
from odeformer.models.decoding import Cache, decode, init_cache
from odeformer.models.lm import LM, LMConfig
from odeformer.models.tokens import check_tokens

STOPPED = -1  # stands in `stream` for the token of a sequence that goes no further
_INVALID = -2  # stands for a token whose logits are not finite, until the host reads it


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
      max_new_tokens: the most tokens a prompt is continued by; cut to what fits the block with the
        prompt. None: as many as fit.
      temperature: what logits are divided by before anything else; 0 takes the best token.
      top_k: draw from the k best tokens; None: from all.
      top_p: of these, draw from the fewest best whose probability reaches p, in (0, 1]; None: all.
      seed: a draw is a function of the seed, the prompt's index, the number of the new token and
        its logits: other prompts change nothing, to float32 rounding.
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

    Example:
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
    new = np.stack(
        list(
            stream(model, variables, prompts, max_new_tokens, temperature, top_k, top_p, seed, end)
        ),
        axis=1,
    )
    return [row[row != STOPPED] for row in new]


def stream(
    model: LM,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end: int | None = None,
) -> Iterator[np.ndarray]:
    """Continues each prompt as `generate` does, and hands over the tokens as they come.

    Args:
      As those of `generate`.

    Returns:
      An iterator of int32 [B]: the next new token of each prompt; STOPPED (-1) for a prompt whose
      sequence has come to its end. It stops when all have.

    Raises:
      ValueError: as `generate`, at the call.
      FloatingPointError: as `generate`, at the token that would have been drawn.
    """
    check_kind("generate", model, LM)
    _check_variables(variables)
    prompts = _listed(prompts)
    config = model.config
    sequences = [_checked(prompt, n, config) for n, prompt in enumerate(prompts)]
    if not sequences:
        raise ValueError("no prompts were given: give a list of one or more, each of tokens")
    _check_sampling(temperature, top_k, top_p)
    check_positive_int(max_new_tokens=max_new_tokens)
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is a whole number, 0 to 2^32 - 1; {seed!r} was given")
    if end is not None and end not in range(config.vocabulary):
        raise ValueError(
            f"end is a token, 0 to {config.vocabulary - 1} (vocabulary={config.vocabulary}), or "
            f"None; {end!r} was given"
        )
    lengths_B = np.array([len(sequence) for sequence in sequences], np.int32)
    width = min(1 << (int(lengths_B.max()) - 1).bit_length(), config.block_size)
    tokens_BC = np.zeros((len(sequences), width), np.int32)
    for row, sequence in zip(tokens_BC, sequences, strict=True):
        row[: len(sequence)] = sequence
    limits_B = config.block_size - lengths_B
    if max_new_tokens is not None:
        limits_B = np.minimum(limits_B, max_new_tokens)
    draw = functools.partial(
        _read_and_draw,
        model,
        variables,
        key=jax.random.key(seed),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    return _tokens(draw, config, tokens_BC, lengths_B, limits_B, end)


def sample(
    key: jax.Array,
    logits_BV: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int | jax.Array | None = None,
    top_p: float | jax.Array | None = None,
) -> jax.Array:
    """Draws a token of each row: temperature first, then the k best, then the best up to p.

    Args:
      key: a PRNG key; a row's draw is a function of the key, the row's index and its logits.
      logits_BV: [B, V] float32 or float64.
      temperature: 0 or more; 0 takes the best token.
      top_k: 1 or more: keeps the k best; None: all.
      top_p: in (0, 1]: keeps the fewest best whose probability, among what top_k keeps, reaches
        p; None: all.

    Returns:
      int32 [B].
    """
    best_B = jnp.argmax(logits_BV, axis=-1)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(logits_BV)))
    # Behind the subtraction the best is 0, which no small temperature takes to infinity.
    scaled_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    scaled_BV /= jnp.where(temperature > 0, temperature, 1.0)
    if top_k is None and top_p is None:
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, scaled_BV)
    else:
        order_BV = jnp.argsort(scaled_BV, axis=-1, descending=True)
        ordered_BV = jnp.take_along_axis(scaled_BV, order_BV, axis=-1)
        if top_k is not None:
            ordered_BV = jnp.where(jnp.arange(ordered_BV.shape[-1]) < top_k, ordered_BV, -jnp.inf)
        if top_p is not None:
            reached_BV = jnp.cumsum(jax.nn.softmax(ordered_BV), axis=-1)
            better_BV = jnp.pad(reached_BV[:, :-1], ((0, 0), (1, 0)))
            ordered_BV = jnp.where(better_BV < top_p, ordered_BV, -jnp.inf)
        ranks_B = jax.vmap(jax.random.categorical)(keys_B, ordered_BV)
        drawn_B = jnp.take_along_axis(order_BV, ranks_B[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, drawn_B, best_B).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read_and_draw(
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
    """Reads C tokens, and draws the new token of that number, int32 [B, 1]."""
    logits_BV, cache = decode(model, variables, tokens_BC, cache, lengths_B)
    drawn_B = sample(jax.random.fold_in(key, number), logits_BV, temperature, top_k, top_p)
    # Marked in the token itself, which the host reads anyway: no more is waited for.
    drawn_B = jnp.where(jnp.isfinite(logits_BV).all(axis=-1), drawn_B, _INVALID)
    return drawn_B[:, None], cache


def _tokens(
    draw: functools.partial,
    config: LMConfig,
    tokens_BC: np.ndarray,
    lengths_B: np.ndarray,
    limits_B: np.ndarray,
    end: int | None,
) -> Iterator[np.ndarray]:
    """The loop of `stream`: limits_B says how many tokens each sequence may get."""
    next_B1, cache = draw(tokens_BC, init_cache(config, len(tokens_BC)), lengths_B, 0)
    stopped_B = np.zeros(len(tokens_BC), bool)
    for number in range(1, int(limits_B.max()) + 1):
        drawn_B1 = next_B1
        if number < limits_B.max():  # on its way before the drawn tokens are waited for
            next_B1, cache = draw(drawn_B1, cache, None, number)
        drawn_B = np.asarray(drawn_B1)[:, 0]
        invalid_B = ~stopped_B & (drawn_B == _INVALID)
        if invalid_B.any():
            raise _not_finite(draw.args[1], int(invalid_B.argmax()), number)
        yield np.where(stopped_B, STOPPED, drawn_B)
        stopped_B |= (number >= limits_B) | (drawn_B == end)
        if stopped_B.all():
            return


def _not_finite(variables: Any, index: int, number: int) -> FloatingPointError:
    """The error for logits that nothing can be drawn from."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if not bool(jnp.isfinite(leaf).all())
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        why = (
            f"{len(bad)} of {len(leaves)} parameters hold such values, {', '.join(bad[:3])}{more}: "
            "take weights from before they went wrong, such as an earlier checkpoint"
        )
    else:
        why = (
            "every parameter is finite, so it is the computation that overflows: look whether "
            "these are the model's own weights, take another solver, more steps, or dtype 'float32'"
        )
    return FloatingPointError(
        f"the logits of prompts[{index}] are NaN or infinite at its new token {number}, and no "
        f"token can be drawn from them; {why}"
    )


def _check_variables(variables: Any) -> None:
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f"variables hold the model's parameters under 'params', as model.init returns them; "
            f"{given} was given: give {{'params': parameters}}"
        )


def _listed(prompts: Any) -> list[Sequence[int]]:
    """The prompts; texts, whose letters would be taken for tokens, are refused."""
    prompts = [prompts] if (is_text := isinstance(prompts, str | bytes)) else list(prompts)
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str | bytes):
            where = "a text was given" if is_text else f"prompts[{index}] is a text"
            raise ValueError(
                f"prompts are sequences of tokens, and {where}, {prompt[:40]!r}: encode it with "
                "the model's own tokeniser first"
            )
    return prompts


def _checked(prompt: Sequence[int], index: int, config: LMConfig) -> np.ndarray:
    tokens = np.asarray(prompt)
    if tokens.ndim != 1:
        raise ValueError(
            f"prompts are sequences of tokens, and prompts[{index}] is an array of shape "
            f"{list(tokens.shape)}: put a single prompt in a list"
        )
    if not tokens.size:
        raise ValueError(
            f"prompts[{index}] is empty: a prompt has one token or more; begin it with the token "
            "that stands before a text, such as the one that ends texts"
        )
    if tokens.size >= config.block_size:
        raise ValueError(
            f"prompts[{index}] has {tokens.size} tokens, and the model's block of block_size="
            f"{config.block_size} holds the prompt and one new token or more: cut the prompt to "
            f"its last {config.block_size - 1} tokens or fewer"
        )
    check_tokens(tokens[None], config)  # pyright: ignore[reportArgumentType]
    return tokens


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not isinstance(temperature, numbers.Real) or not temperature >= 0:
        raise ValueError(
            f"temperature is 0 or more; {temperature!r} was given: take 0 for the best token, 1 "
            "for the model's own probabilities"
        )
    check_positive_int(top_k=top_k)
    if top_p is not None and (not isinstance(top_p, numbers.Real) or not 0 < top_p <= 1):
        raise ValueError(
            f"top_p is greater than 0 and at most 1; {top_p!r} was given: take 1, or leave it out, "
            "to draw from all tokens"
        )
