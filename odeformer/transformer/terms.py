"""Terms: what the f_j of a transformer's vector field can be, by name.

A model's `terms=("attention", "mlp")` are names of this table. A term of your own, under its name
everywhere:

    @odeformer.terms.register("gate")
    def gate() -> odeformer.terms.Term: ...     # or register("gate", Term(...))
"""

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn

from odeformer.checks import Names, check_new_name
from odeformer.errors import check_kind, check_name
from odeformer.transformer import term_checks
from odeformer.transformer.attention import Attention
from odeformer.transformer.caches import KEYS, TAIL, Cached
from odeformer.transformer.convolution import Convolution
from odeformer.transformer.heads import heads_of
from odeformer.transformer.layers import MLP, Damping
from odeformer.transformer.norms import make_norm
from odeformer.transformer.state import Y

Axes = Mapping[tuple[str, str], tuple[str | None, ...]]


def _norm(config: Any) -> nn.Module:
    return make_norm(config.norm, config.dtype, config.norm_epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One named f_j of a vector field: f_j(t, state, context) = layer(norm(y), context).

    What is called `config` below has the fields of a `FieldConfig`: it is a model's config, or a
    `TransformerField`. The parameters of term NAME stand at NAME_norm and NAME_layer.

    Attributes:
      make: (config) -> the layer, a flax module, called as layer(x, context), context a `Context`
        or None. If y is the only stream that the term moves and adds, x is the normed y [B, N, D],
        and the layer returns an array of its shape; else x is a mapping of y, normed, and of what
        the term adds, as it is, and the layer returns a mapping of slopes of what it moves.
      norm: (config) -> the flax module that norms y. None: the layer gets y as it is, and no
        embedding of the time, which is added to a normed y.
      moves: the streams whose slopes it returns, of y and those that it adds.
      adds: streams in addition to y that it needs; each begins as a copy of y.
      axes: names of its parameters' axes, by the last two names of a parameter's path; vectors that
        need not be split are left out. See `odeformer.sharding`.
      flops: (config, tokens) -> FLOPs of the matrix products of one evaluation, of one sequence.
      causal: whether a token's slope depends on no later token; a function of the config where
        this follows from it.
      decoding: 'tokenwise' if the slope of a token depends on nothing else: new tokens are then
        read by the same call; `Cached` if it needs something of earlier tokens; None: cached
        decoding, and so `generate`, is refused.
      inputs: whether it reads `context.source`.
      settings: which fields of the config it reads, of those that are refused where no term does:
        see `SETTINGS`.

    Raises:
      ValueError: streams that do not fit one another, or a part that is not of its kind.
    """

    make: Callable[[Any], nn.Module]
    norm: Callable[[Any], nn.Module] | None = _norm
    moves: tuple[str, ...] = (Y,)
    adds: tuple[str, ...] = ()
    axes: Axes = dataclasses.field(default_factory=dict)
    flops: Callable[[Any, int], int]
    causal: bool | Callable[[Any], bool] = False
    decoding: Literal["tokenwise"] | Cached | None = None
    inputs: bool = False
    settings: tuple[str, ...] = ()

    def __post_init__(self):
        term_checks.check_term(self)

    @property
    def plain(self) -> bool:
        """Whether y is the only stream that it knows."""
        return self.moves == (Y,) and not self.adds

    def is_causal(self, config: Any) -> bool:
        """Whether, under that config, a token's slope depends on no later token."""
        return self.causal(config) if callable(self.causal) else self.causal


def _attention(config: Any) -> nn.Module:
    return Attention(
        heads=config.heads,
        width=config.width,
        dtype=config.dtype,
        implementation=config.attention,
        causal=config.causal,
        centre=config.centre,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        qk_norm=config.qk_norm,
        norm=config.norm,
        norm_epsilon=config.norm_epsilon,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
    )


def _attention_flops(config: Any, tokens: int) -> int:
    # Four products of D x H K (query, key, value, output), keys and values of fewer heads; scores,
    # and their product with the values.
    heads, keys, size = heads_of(config)
    return 4 * tokens * config.width * (heads + keys) * size + 4 * tokens**2 * heads * size


def _mlp(config: Any) -> nn.Module:
    return MLP(
        width=config.width,
        hidden=config.mlp,
        dtype=config.dtype,
        activation=config.activation,
        gated=config.gated,
        bias=config.mlp_bias,
    )


# Vectors are not listed, except for those along heads or mlp: gathering the others would take more
# time than the memory they need is worth.
_TERMS: dict[str, Term] = {
    "attention": Term(
        make=_attention,
        axes={
            ("qkv", "kernel"): ("width", None, "heads", None),
            ("qkv", "bias"): (None, "heads", None),
            ("q", "kernel"): ("width", "heads", None),
            ("q", "bias"): ("heads", None),
            ("kv", "kernel"): ("width", None, "heads", None),
            ("kv", "bias"): (None, "heads", None),
            ("out", "kernel"): ("heads", None, "width"),
        },
        flops=_attention_flops,
        causal=lambda config: config.causal,
        decoding=KEYS,
        settings=(
            *("attention", "centre", "kv_heads", "head_size", "qk_norm", "qkv_bias", "out_bias"),
            # Of models of text: rotary ones turn queries and keys.
            "positions",
        ),
    ),
    "mlp": Term(
        make=_mlp,
        axes={
            ("gate", "kernel"): ("width", "mlp"),
            ("gate", "bias"): ("mlp",),
            ("up", "kernel"): ("width", "mlp"),
            ("up", "bias"): ("mlp",),
            ("down", "kernel"): ("mlp", "width"),
        },
        # Two products of D x M, and one that gates.
        flops=lambda config, tokens: (
            (6 if config.gated else 4) * tokens * config.width * config.mlp
        ),
        causal=True,
        decoding="tokenwise",
        settings=("activation", "gated", "mlp_bias"),
    ),
    # Split for storage alone, over fsdp: on a tensor axis each device computes the whole product.
    "conv": Term(
        make=lambda config: Convolution(config.width, config.dtype, config.causal),
        axes={("shifted", "kernel"): (None, "width", None)},
        flops=lambda config, tokens: 6 * tokens * config.width**2,
        causal=lambda config: config.causal,
        decoding=TAIL,
    ),
    "damping": Term(
        make=lambda config: Damping(config.width, dtype=config.dtype),
        norm=None,
        flops=lambda config, tokens: 0,
        causal=True,
        decoding="tokenwise",
    ),
}
TERMS: Mapping[str, Term] = types.MappingProxyType(_TERMS)
NAMES = Names(_TERMS)

# Fields of a config that act in one term, and which: in a field without it, and without a term of
# your own that names them, other values than the defaults are refused.
SETTINGS: Mapping[str, str] = types.MappingProxyType(
    {setting: name for name, term in _TERMS.items() for setting in term.settings}
)


def get(name: str) -> Term:
    """Returns the term of that name.

    Raises:
      ValueError: no term has the name; the message lists the names and the nearest one.
    """
    check_name("term", name, NAMES)
    return _TERMS[name]


def register(name: str, term: Term | Callable[[], Term] | None = None) -> Any:
    """Registers a term of your own, under its name everywhere.

    Args:
      name: a word, for `terms=` of a config and for its parameters.
      term: the term, or a function of nothing that makes it. None: returns a decorator of such a
        function.

    Returns:
      What was given, or a decorator.

    Raises:
      ValueError: a name that is taken, or is none; something other than a `Term`, or one whose
        settings are not those of `SETTINGS`.
    """
    check_new_name("term", name, NAMES)
    if term is None:
        return lambda term: register(name, term)

    made = term if isinstance(term, Term) else term() if callable(term) else term
    check_kind(f"terms.register({name!r}, ...)", made, Term)
    for setting in made.settings:
        check_name(f"setting of term {name!r}", setting, SETTINGS)

    _TERMS[name] = made
    return term


def select(names: Iterable[str]) -> dict[str, Term]:
    """Returns the terms of these names, in order."""
    return {name: get(name) for name in names}


def streams(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the streams of a field of these terms: y, and what they add, in order."""
    added = [stream for name in names for stream in get(name).adds]
    return tuple(dict.fromkeys((Y, *added)))


def axes_of(path: str) -> Axes:
    """Returns the axes' names below an entry of a parameter's path; none if it is no term's."""
    name, is_layer = path.removesuffix("_layer"), path.endswith("_layer")
    return _TERMS[name].axes if is_layer and name in _TERMS else {}
