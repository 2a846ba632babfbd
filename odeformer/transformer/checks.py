"""What the parts of a transformer accept: names, sizes, dtypes, devices."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from odeformer.checks import Accepted
from odeformer.errors import check_finite, check_name, check_positive_int, unknown
from odeformer.transformer.heads import heads_of

ATTENTIONS = ("auto", "xla", "cudnn")
DTYPES = ("float32", "bfloat16", "float64")
TIME = ("none", "additive")

# cuDNN's flash attention takes heads of these sizes only.
CUDNN_MULTIPLE, CUDNN_LARGEST = 8, 256


def check_dtype(dtype: Any) -> None:
    """Raises ValueError for a dtype, or a dtype's name, that is not one of `DTYPES`."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)


def check_float64() -> None:
    """Raises ValueError while jax_enable_x64 is off, where JAX would compute in float32."""
    if jnp.result_type(jnp.float64) != jnp.float64:
        raise ValueError(
            "dtype 'float64' was given while jax_enable_x64 is off: call "
            "jax.config.update('jax_enable_x64', True) first, or take 'float32' or 'bfloat16'"
        )


def check_attention(config: Any, implementation: str) -> None:
    """Raises ValueError where sizes do not make a multi-head attention; see `Attention`.

    Args:
      config: with its width, heads, kv_heads, head_size and dtype.
      implementation: its name.
    """
    width, heads, dtype = config.width, config.heads, config.dtype
    check_positive_int(width=width, heads=heads)
    check_positive_int(kv_heads=config.kv_heads, head_size=config.head_size)
    if width % heads and config.head_size is None:
        raise ValueError(
            f"heads={heads} does not divide width={width}: take heads from {_few(width)}, or "
            "another width, or give head_size"
        )

    queries, keys, size = heads_of(config)
    if queries % keys:
        raise ValueError(
            f"kv_heads={keys} does not divide heads={queries}, each of which reads the keys and "
            f"values of one of them: take kv_heads from {_few(queries)}"
        )

    check_name("attention", implementation, ATTENTIONS)
    if implementation != "cudnn":
        return

    if jnp.dtype(dtype) != jnp.bfloat16:
        raise ValueError(
            f"attention 'cudnn' takes dtype 'bfloat16'; {jnp.dtype(dtype).name!r} was given: take "
            "that dtype, or attention 'auto' or 'xla'"
        )

    if size % CUDNN_MULTIPLE or size > CUDNN_LARGEST:
        divided = f"width={width} over heads={heads} makes {size}"
        given = divided if config.head_size is None else f"head_size={size} was given"
        raise ValueError(
            f"attention 'cudnn' takes heads whose size is a multiple of {CUDNN_MULTIPLE}, at most "
            f"{CUDNN_LARGEST}; {given}: take other heads, or attention 'auto' or 'xla'"
        )


def _few(number: int) -> str:
    """Divisors of a number, the small ones."""
    return ", ".join(str(n) for n in range(1, 33) if number % n == 0)


def check_backend(implementation: str) -> None:
    """Raises ValueError where JAX's default backend does not have the implementation."""
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            "attention 'cudnn' runs on NVIDIA GPUs, and JAX's default backend here is "
            f"{jax.default_backend()!r}: take attention 'auto' or 'xla'"
        )


def check_shared_layers(layers: int, share: int) -> None:
    """Raises ValueError where groups of `share` layers do not make up all layers."""
    if layers % share:
        raise ValueError(
            f"share={share} does not divide layers={layers}: take share from "
            f"{', '.join(map(str, _divisors(layers)))}, or other layers"
        )


def check_ascending(**values: object) -> None:
    """Raises ValueError for what is no tuple of whole numbers of 1 or more, each above the last."""
    for name, value in values.items():
        ascending = isinstance(value, tuple)
        last = 0
        for step in value if isinstance(value, tuple) else ():
            is_whole = isinstance(step, int) and not isinstance(step, bool)
            ascending = ascending and is_whole and last < step < 1 << 31
            last = step if is_whole else last
        if not ascending:
            raise ValueError(
                f"{name} is {STEPS.text}; {value!r} was given: list each step once, in order"
            )


STEPS = Accepted("a tuple of whole numbers in ascending order, 1 or more each", check_ascending)


def check_basis(basis: str, coefficients: int | None, layers: int, share: int) -> None:
    """Raises ValueError where K coefficients do not make up weights over depth in that basis."""
    if basis == "constant":
        if coefficients is not None:
            raise ValueError(
                f"coefficients={coefficients} have no effect under basis 'constant', whose sets of "
                "weights are layers / share: leave them out and set share, or take basis 'hat', "
                "'legendre' or 'fourier'"
            )
        return

    if share != 1:
        raise ValueError(
            f"share={share} belongs to basis 'constant'; under {basis!r} coefficients say how many "
            "sets of weights there are: leave share out"
        )

    if coefficients is None:
        raise ValueError(f"basis {basis!r} needs coefficients, the number of its sets of weights")

    if basis == "fourier" and coefficients % 2 == 0:
        raise ValueError(
            f"basis 'fourier' is 1 and pairs of cosine and sine, an odd number of functions; "
            f"coefficients={coefficients} was given: take {coefficients - 1} or {coefficients + 1}"
        )

    if basis == "hat":
        _check_nodes(coefficients, layers)


def _check_nodes(coefficients: int, layers: int) -> None:
    """Raises ValueError where the elements between nodes are neither layers nor parts of one."""
    elements = coefficients - 1
    if elements < 1 or (layers % elements and elements % layers):
        raise ValueError(
            f"basis 'hat' has coefficients - 1 elements, a divisor of layers={layers} or a "
            f"multiple of it; coefficients={coefficients} was given: take one of "
            f"{', '.join(str(n + 1) for n in _divisors(layers))}"
        )


def check_place(start: int, layers: int, total: int | None) -> None:
    """Raises ValueError where a stack does not lie within the layers of all stacks."""
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise ValueError(f"start is a whole number of layers, 0 or more; {start!r} was given")

    check_positive_int(total=total)
    if total is not None and start + layers > total:
        raise ValueError(
            f"a stack of layers={layers} that begins at start={start} ends after total={total}, "
            "the layers of all stacks: give their sum"
        )


def check_stacks(stacks: int, terms: Sequence[tuple[str, ...]]) -> None:
    """Raises ValueError where the counts of several stacks lack the names of their terms."""
    if stacks == 0 or (len(terms) != stacks and (stacks > 1 or terms)):
        raise ValueError(
            f"the counts of {stacks} stacks are recorded with as many tuples of terms' names; "
            f"{len(terms)} were given: add terms=(first.field.terms, second.field.terms)"
        )


def check_end_time(
    end_time: Any, length: float | None = None, reversible: float | None = None
) -> None:
    """Raises ValueError for an end time that is no length, too long, or of a reversible pair."""
    check_finite(end_time=end_time)
    if end_time < 0:
        raise ValueError(f"end_time is 0 or more; {end_time!r} was given")

    if length is not None and end_time >= length:
        raise ValueError(
            f"end_time is less than the length of the last group, {length:g} layers, so that its "
            f"flow ends after its start; {end_time} was given: give less, or share more layers"
        )

    if end_time and reversible is not None:
        raise ValueError(
            f"end_time={end_time} ends the flow at random, and reversible={reversible:g} undoes "
            "steps of one length: leave either out"
        )


def check_causal(rtol: float | None) -> None:
    """Raises ValueError where a causal model is asked for adaptive steps."""
    if rtol is not None:
        raise ValueError(
            f"rtol={rtol} asks for adaptive steps of a causal model: their sizes follow from the "
            "error over all tokens, so that a token's output would depend on later ones; leave "
            "rtol out and give steps"
        )


def check_fields(config: str, values: Mapping[str, Any], accepted: Iterable[str]) -> None:
    """Raises ValueError for a name that is no field of a config.

    Args:
      config: name of its class.
      values: by name.
      accepted: names of its fields.
    """
    accepted = list(accepted)
    for name in values:
        if name not in accepted:
            raise unknown(f"field of {config}", name, accepted)


def check_mapping(name: str, value: Any, config: str, accepted: Iterable[str]) -> None:
    """Raises ValueError for what is no mapping of a config's fields.

    Args:
      name: what the value is for.
      value: to be checked.
      config: name of the config's class.
      accepted: names of its fields.
    """
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} is a {config}, or a mapping of its fields such as {{'layers': 12, 'solver': "
            f"'rk4'}}; {value!r} was given"
        )

    check_fields(config, value, accepted)


def check_shards(batch: int, shards: int, axes: Iterable[str]) -> None:
    """Raises ValueError for a batch that the shards of these mesh axes do not divide."""
    if batch % shards:
        raise ValueError(
            f"a batch of {batch} does not divide over the {shards} shards of the mesh's "
            f"{' x '.join(axes)}: take a multiple of {shards}"
        )


def _divisors(number: int) -> list[int]:
    """All divisors, in ascending order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
