"""What terms accept: parts of their kind, streams and settings that fit one another."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from odeformer.errors import check_flag, check_name

# A splitting takes the terms one after the other; the sum that is fused is of these alone.
FUSED = ("attention", "mlp")


def check_term(term: Any) -> None:
    """Raises ValueError for a `Term` whose parts are not of their kinds or do not fit."""
    for name in ("make", "norm", "flops"):
        part = getattr(term, name)
        if not callable(part) and not (name == "norm" and part is None):
            raise ValueError(f"{name} of a Term is a function of a config; {part!r} was given")

    kinds = dict.fromkeys(("moves", "adds"), "streams' names, such as ('y',)")
    for name, kind in (kinds | {"settings": "fields' names, such as ('activation',)"}).items():
        part = getattr(term, name)
        if not isinstance(part, tuple) or not all(isinstance(entry, str) for entry in part):
            raise ValueError(f"{name} of a Term is a tuple of {kind}; {part!r} was given")

    accepted = ("y", *term.adds)
    if not term.moves or not set(term.moves) <= set(accepted) or "y" in term.adds:
        raise ValueError(
            f"a Term moves y or streams that it adds, and y is there without being added; "
            f"moves={term.moves} and adds={term.adds} were given"
        )

    if not callable(term.causal):
        check_flag(causal=term.causal)
    check_flag(inputs=term.inputs)
    cached = hasattr(term.decoding, "extend")
    if not cached and term.decoding not in (None, "tokenwise"):
        raise ValueError(
            f"decoding of a Term is 'tokenwise', a Cached or None; {term.decoding!r} was given"
        )

    if cached and not term.plain:
        raise ValueError(
            f"a Cached reads new tokens of y alone; moves={term.moves} and adds={term.adds} were "
            "given with it: take decoding 'tokenwise' or None"
        )


def check_names(names: Any, accepted: Iterable[str]) -> None:
    """Raises ValueError for what is no tuple of different names of terms."""
    if not isinstance(names, tuple | list):
        raise ValueError(
            f"terms is a tuple of names, such as ('attention', 'mlp'); {names!r} was given"
        )

    if not names:
        raise ValueError(f"terms names one term or more, of {', '.join(accepted)}; () was given")

    for name in names:
        try:
            check_name("term", name, accepted)
        except ValueError as error:
            raise ValueError(f"terms={tuple(names)}: {error}") from None
    if len(set(names)) < len(names):
        raise ValueError(
            f"terms names each term once, as its parameters stand under its name; {names} was "
            "given: register the term under a second name"
        )


def check_effect(
    terms: Mapping[str, Any], settings: Mapping[str, str], values: Mapping[str, tuple[Any, Any]]
) -> None:
    """Raises ValueError for settings that would be ignored, as no term of a field reads them.

    Args:
      terms: of the field, by name.
      settings: the term of the table that reads a setting, by its name.
      values: by the same names, what was given, and what is accepted without such a term.
    """
    read = {setting for term in terms.values() for setting in term.settings}
    for name, (given, accepted) in values.items():
        if name not in read and given != accepted:
            raise ValueError(
                f"{name}={given!r} acts in the term {settings[name]!r}, which terms={tuple(terms)} "
                f"lacks: add it, or take {name}={accepted!r}; a term of your own that reads it "
                "names it in its settings"
            )


def check_field(terms: Mapping[str, Any], config: Any, settings: Mapping[str, str]) -> None:
    """Raises ValueError for terms that do not make up a field of that config.

    Args:
      terms: by name, in order.
      config: a dataclass with the fields of a `FieldConfig`, and their defaults.
      settings: the term of the table that reads a setting, by its name.
    """
    moved = {stream for term in terms.values() for stream in term.moves}
    for stream in ("y", *(stream for term in terms.values() for stream in term.adds)):
        if stream not in moved:
            raise ValueError(
                f"no term of terms={tuple(terms)} moves the stream {stream!r}, which would stay as "
                "it begins: add a term that moves it"
            )

    looking = [name for name, term in terms.items() if not term.is_causal(config)]
    if config.causal and looking:
        raise ValueError(
            f"term {looking[0]!r} does not fit a causal model: a token's slope depends on later "
            "tokens, so that its output would; leave the term out, or take a model that is not "
            "causal"
        )

    if config.fused and tuple(terms) != FUSED:
        raise ValueError(
            f"fused=True joins the input products of terms={FUSED}, and of no others; "
            f"{tuple(terms)} was given: take fused=False"
        )

    if config.fused:
        _check_fused(config)

    fields = [field for field in dataclasses.fields(config) if field.name in settings]
    values = {field.name: (getattr(config, field.name), field.default) for field in fields}
    check_effect(terms, settings, values)

    if config.time != "none" and all(term.norm is None for term in terms.values()):
        raise ValueError(
            f"time={config.time!r} is added to a normed state, and no term of terms={tuple(terms)} "
            "norms it: take time='none', or a term with a norm"
        )


def _check_fused(config: Any) -> None:
    """Raises ValueError for a field whose input products are not one from one plain norm."""
    keys = config.heads if config.kv_heads is None else config.kv_heads
    for name, value, accepted in (
        ("kv_heads", keys, config.heads),
        ("gated", config.gated, False),
        ("norm", config.norm, "layer"),
        ("qkv_bias", config.qkv_bias, True),
        ("mlp_bias", config.mlp_bias, True),
    ):
        if value != accepted:
            raise ValueError(
                f"fused=True joins the kernel of queries, keys and values with that of a plain "
                f"MLP, each with a layer norm's scale and bias; {name}={value!r} does not fit: "
                f"take fused=False, or {name}={accepted!r}"
            )


def check_sources(terms: Mapping[str, Any], config: Any) -> None:
    """Raises ValueError for terms that read a source, in a model that has none to give."""
    for name, term in terms.items():
        if term.inputs:
            raise ValueError(
                f"term {name!r} reads context.source, which no {type(config).__name__} gives: "
                "hand one to an ODEStack of your own, as Context(source=...)"
            )


def check_source(name: str, source: jax.Array | None, batch: int) -> None:
    """Raises ValueError where a term reads a source, and there is none for each sample."""
    if source is None or source.ndim != 3 or source.shape[0] != batch:
        given = "none" if source is None else f"one of shape {list(source.shape)}"
        raise ValueError(
            f"term {name!r} reads context.source, [B, S, D] with the state's batch, and {given} "
            "was given: give the stack a context=Context(source=...)"
        )


def check_state(state: Any, streams: tuple[str, ...]) -> None:
    """Raises ValueError for a state that does not have a field's streams."""
    found = tuple(state) if isinstance(state, Mapping) else ("y",)
    if set(found) != set(streams) or isinstance(state, Mapping) != (len(streams) > 1):
        accepted = "one array" if len(streams) == 1 else f"a dict of arrays {', '.join(streams)}"
        given = f"a dict of {', '.join(found)}" if isinstance(state, Mapping) else "one array"
        raise ValueError(f"the state of this field's terms is {accepted}; {given} was given")


def check_slopes(name: str, slopes: Any, moves: tuple[str, ...]) -> None:
    """Raises ValueError where a layer does not return slopes of the streams that it moves."""
    if not isinstance(slopes, Mapping) or set(slopes) != set(moves):
        found = f"one of {', '.join(slopes)}" if isinstance(slopes, Mapping) else type(slopes)
        raise ValueError(
            f"the layer of term {name!r} returns a mapping of the slopes of {', '.join(moves)}; "
            f"{found} was returned"
        )


def check_decoding(terms: Mapping[str, Any]) -> None:
    """Raises ValueError for terms without a way to read new tokens."""
    for name, term in terms.items():
        if term.decoding is None:
            raise ValueError(
                f"term {name!r} has no cached decoding: a Term says how, by decoding='tokenwise' "
                "or a Cached; until then pass whole sequences through the model"
            )
