"""What `generate` accepts; and the error for logits from which nothing can be sampled."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.checks import Accepted
from odeformer.models.checks import check_tokens
from odeformer.models.lm import LMConfig
from odeformer.transformer.lora_checks import check_merged


def as_prompts(prompts: Any, config: LMConfig) -> list[np.ndarray]:
    """Returns the prompts as arrays of tokens; raises ValueError where a model cannot read them."""
    arrays = [_as_prompt(prompt, n, config) for n, prompt in enumerate(_without_text(prompts))]
    if not arrays:
        raise ValueError("no prompts were given: give a list of one or more, each of tokens")

    return arrays


def check_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature that is not a number, 0 or more."""
    if not isinstance(temperature, numbers.Real) or not temperature >= 0:
        raise ValueError(
            f"temperature is 0 or more; {temperature!r} was given: take 0 for the best token, 1 "
            "for the model's own probabilities"
        )


def check_top_p(top_p: float) -> None:
    """Raises ValueError for a top_p that is not a probability above 0."""
    if not isinstance(top_p, numbers.Real) or not 0 < top_p <= 1:
        raise ValueError(
            f"top_p is greater than 0 and at most 1; {top_p!r} was given: take 1, or leave it out, "
            "to sample from all tokens"
        )


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that is not a whole number of 32 bits."""
    if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is a whole number, 0 to 2^32 - 1; {seed!r} was given")


TEMPERATURE = Accepted("0 or more", check_temperature)
TOP_P = Accepted("greater than 0 and at most 1", check_top_p)
SEED = Accepted("0 or more and less than 2**32", check_seed)


def check_variables(variables: Any) -> None:
    """Raises ValueError for what is no mapping with 'params', or has adapters apart from them."""
    check_merged(variables)
    if isinstance(variables, Mapping) and "params" in variables:
        return

    names = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
    raise ValueError(
        f"variables hold the model's parameters under 'params', as model.init returns them; "
        f"{names} was given: give {{'params': parameters}}"
    )


def check_end(end: int | None, config: LMConfig) -> None:
    """Raises ValueError for an end that is no token of the vocabulary."""
    if end is not None and end not in range(config.vocabulary):
        raise ValueError(
            f"end is a token, 0 to {config.vocabulary - 1} (vocabulary={config.vocabulary}), or "
            f"None; {end!r} was given"
        )


def not_finite(variables: Any, index: int, number: int) -> FloatingPointError:
    """Returns the error for logits of a prompt from which no token can be sampled.

    Args:
      variables: of the model; the message names those that are not finite.
      index: of the prompt.
      number: of the new token, from 1.
    """
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
            "every parameter is finite, so it is the computation that overflows: check that these "
            "are the model's own weights, take another solver, more steps, or dtype 'float32'"
        )
    return FloatingPointError(
        f"the logits of prompts[{index}] are NaN or infinite at its new token {number}, and no "
        f"token can be sampled from them; {why}"
    )


def _without_text(prompts: Any) -> list[Sequence[int]]:
    """The prompts, none of them a text."""
    prompts = [prompts] if (is_text := isinstance(prompts, str | bytes)) else list(prompts)
    for index, prompt in enumerate(prompts):
        # The letters of a text would be taken for a sequence of tokens.
        if isinstance(prompt, str | bytes):
            where = "a text was given" if is_text else f"prompts[{index}] is a text"
            raise ValueError(
                f"prompts are sequences of tokens, and {where}, {prompt[:40]!r}: encode it with "
                "the model's own tokeniser first"
            )

    return prompts


def _as_prompt(prompt: Sequence[int], index: int, config: LMConfig) -> np.ndarray:
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

    check_tokens(tokens[None], config.vocabulary, config.block_size)
    return tokens
