"""What the models accept: images, tokens, masks, layouts, and sizes that fit one another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path as leaves_with_path

from odeformer.checks import COUNT, Accepted
from odeformer.errors import check_positive_int
from odeformer.ode.time_checks import concrete
from odeformer.transformer import terms
from odeformer.transformer.checks import check_backend, check_float64
from odeformer.transformer.config import FieldConfig
from odeformer.transformer.heads import heads_of
from odeformer.transformer.term_checks import check_effect

Array = jax.Array | np.ndarray


def check_images(images: Array, shape: tuple[int, int, int]) -> None:
    """Raises ValueError for images that are not of this height, width and number of channels."""
    if images.ndim != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"images of shape [batch, {', '.join(map(str, shape))}] are accepted; "
            f"{list(images.shape)} was given: resize or transpose them, or change the config's "
            "image_size and channels"
        )

    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images of a floating dtype are accepted; {images.dtype} was given: convert and "
            "normalise them first, e.g. images.astype('float32') / 255"
        )


def check_tokens(tokens_BN: Array, vocabulary: int, block_size: int) -> None:
    """Raises ValueError for tokens that a model of these sizes does not take."""
    if tokens_BN.ndim != 2 or not jnp.issubdtype(tokens_BN.dtype, jnp.integer):
        raise ValueError(
            f"tokens are integers of shape [batch, tokens]; {tokens_BN.dtype} of shape "
            f"{list(tokens_BN.shape)} was given"
        )

    if tokens_BN.shape[1] > block_size:
        raise ValueError(
            f"{tokens_BN.shape[1]} tokens were given, and the model's block holds block_size="
            f"{block_size}: cut the sequences, or train a model of a larger block"
        )

    # JAX clamps an index that is out of range, and so would read another token's embedding.
    outside = _outside(tokens_BN, vocabulary)
    if outside is not None:
        raise ValueError(
            f"tokens are 0 to {vocabulary - 1} (vocabulary={vocabulary}); {outside} were given: "
            "encode the text with the model's own tokeniser"
        )


def check_layout(
    tokens_BN: Array, segments_BN: Array | None, positions_BN: Array, block_size: int
) -> None:
    """Raises ValueError for segments or positions that do not fit the tokens or the block."""
    for name, array in (("segments", segments_BN), ("positions", positions_BN)):
        if array is None:
            continue

        if array.shape != tokens_BN.shape or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{name} are integers of the tokens' shape {list(tokens_BN.shape)}; {array.dtype} "
                f"of shape {list(array.shape)} was given"
            )

    outside = _outside(positions_BN, block_size)
    if outside is not None:
        raise ValueError(
            f"positions are 0 to {block_size - 1} (block_size={block_size}); {outside} were given"
        )


def check_mask(mask_BN: Array, tokens_BN: Array) -> None:
    """Raises ValueError for a mask that is not bool or not of the tokens' shape."""
    if mask_BN.shape != tokens_BN.shape or mask_BN.dtype != bool:
        raise ValueError(
            f"the mask is bool and of the tokens' shape {list(tokens_BN.shape)}; "
            f"{mask_BN.dtype} of shape {list(mask_BN.shape)} was given"
        )


def check_sides(**sizes: int | tuple[int, int]) -> None:
    """Raises ValueError for what is neither a side of an image nor its height and width."""
    for name, sides in sizes.items():
        sides = sides if isinstance(sides, tuple) else (sides, sides)
        if len(sides) != 2:
            raise ValueError(f"{name} is a side or a pair of sides; {sides} was given")

        for side in sides:
            check_positive_int(**{name: side})


SIDES = Accepted(COUNT.text, check_sides)


def check_patches(image_size: int | tuple[int, int], sides: Sequence[int], patch_size: int) -> None:
    """Raises ValueError for a patch that does not divide both sides of an image."""
    if any(side % patch_size for side in sides):
        raise ValueError(
            f"patch_size={patch_size} does not divide image_size={image_size}: take a patch that "
            "divides both sides, or resize or pad the images"
        )


def check_sincos(width: int) -> None:
    """Raises ValueError for a width that sine-cosine positions of a grid cannot fill."""
    if width % 4:
        raise ValueError(
            f"positions 'sincos' need a width that 4 divides; width={width} was given: take "
            "'learned', or another width"
        )


def check_distillation(distillation: str, pool: str, classes: int) -> None:
    """Raises ValueError for a token of distillation without a class token, or heads, to go with."""
    if distillation != "none" and pool == "mean":
        raise ValueError(
            f"distillation {distillation!r} adds a token after the class token, which pool "
            f"{pool!r} does not have: take pool 'token', or distillation 'none'"
        )

    if distillation == "mean" and not classes:
        raise ValueError(
            "distillation 'mean' averages the logits of two heads, and with classes=0 there are "
            "none: take distillation 'token', whose token no head reads, or give classes"
        )


def check_rotary(config: Any) -> None:
    """Raises ValueError for rotary settings without an effect, or that do not fit one another.

    Args:
      config: a `TokenConfig`.
    """
    # Learned positions are added to the tokens, whatever the terms are.
    positions = {"positions": (config.positions, "learned")}
    check_effect(terms.select(config.terms), terms.SETTINGS, positions)

    turned, scaling = config.positions == "rotary", config.rotary_scaling
    acts = dict.fromkeys(("base", "fraction", "scaling"), turned)
    acts |= {"factor": turned and scaling != "none"}
    acts |= dict.fromkeys(("low_turns", "high_turns", "length"), turned and scaling == "llama3")

    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in (f"rotary_{name}" for name, does in acts.items() if not does):
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{name}={getattr(config, name)!r} has no effect with positions="
                f"{config.positions!r}, rotary_scaling={scaling!r}: leave it out, or change these"
            )

    if not turned:
        return

    size = heads_of(config).size
    entries = config.rotary.turned(size)
    if entries % 2 or not entries:
        raise ValueError(
            f"positions 'rotary' rotate pairs of {entries} of a head's {size} entries (width="
            f"{config.width}, heads={config.heads}, rotary_fraction={config.rotary_fraction}), "
            f"which is {'an odd number' if entries else 'none'}: take other heads, another "
            "head_size or fraction, or positions 'learned'"
        )

    if scaling != "none" and config.rotary_factor is None:
        raise ValueError(
            f"rotary_scaling={scaling!r} lacks its rotary_factor: say how many times longer texts "
            "are than those of training"
        )

    if config.rotary_low_turns >= config.rotary_high_turns:
        raise ValueError(
            f"rotary_low_turns={config.rotary_low_turns} is not less than rotary_high_turns="
            f"{config.rotary_high_turns}: exchange them"
        )


def check_trips(primitive: str) -> None:
    """Raises ValueError for a loop whose body's FLOPs cannot be counted."""
    if primitive == "while":
        raise ValueError(
            "a while loop (an adaptive solve, or an adjoint of diffrax) has no trip count before "
            "it runs: count fixed steps under adjoint 'checkpoint' or 'store', or one evaluation, "
            "and multiply it by the solve's nfe"
        )


def check_computable(config: FieldConfig) -> None:
    """Raises ValueError where this process cannot compute the model of a config.

    That is dtype 'float64' without jax_enable_x64, or attention 'cudnn' without an NVIDIA GPU.
    """
    if config.dtype == "float64":
        check_float64()
    check_backend(config.attention)


def check_fit(variables: Any, expected: Any) -> None:
    """Raises ValueError for variables that are not of these names and shapes; names the first."""
    found, wanted = (
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves_with_path(tree["params"])}
        for tree in (variables, expected)
    )
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"the variables are not those of the config's model: {name} is "
                f"{found.get(name, 'absent')}, and the model has {wanted.get(name, 'none')}: give "
                "the config that they were made with; models that differ in more than their depth "
                "are not projected onto each other"
            )


def check_halves(basis: str, share: int, steps: int | None) -> None:
    """Raises ValueError where a group, or its fixed steps, cannot be cut in half."""
    if basis == "constant" and share % 2:
        raise ValueError(
            f"share={share} cannot be halved, as refining does: project onto the share or the "
            "basis that you want instead"
        )

    if steps is not None and steps % 2:
        raise ValueError(
            f"the steps={steps} of a group do not divide over its two halves: take an even number "
            "of steps"
        )


def check_same_layers(layers: int, given: int) -> None:
    """Raises ValueError where two depths are not of as many layers."""
    if layers != given:
        raise ValueError(
            f"weights over depth are projected over the same depth, layers={layers}; "
            f"layers={given} was given: change the basis, its coefficients or the share alone"
        )


def check_divides(steps: int, groups: int) -> None:
    """Raises ValueError where fixed steps do not divide over the groups."""
    if steps % groups:
        raise ValueError(
            f"the model's {steps} steps in all do not divide over {groups} groups: give steps, "
            "the number per group, too"
        )


def _outside(values: Array, size: int) -> str | None:
    """The range of values that are not all 0 to size - 1; None where they are, or are traced."""
    known = concrete(values)
    if known is None or not known.size or 0 <= known.min() <= known.max() < size:
        return None

    return f"{known.min():g} to {known.max():g}"
