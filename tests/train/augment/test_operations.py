"""RandAugment's operations against Pillow, which defines them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from train.augment.operations import ADJUSTMENTS, ENHANCEMENTS, NAMES, WARPS, operate, posterize

FILL = (10, 120, 240)
# Strengths at which every product is exact in float32, so that the result is Pillow's own.
EXACT = {
    "ShearX": (0.25, -0.125, 0.0),
    "ShearY": (0.25, -0.125, 0.0),
    "TranslateX": (0.203125, -0.40625, 0.0),
    "TranslateY": (0.203125, -0.40625, 0.0),
    "Rotate": (0.0,),
    "Color": (0.125, 1.75, 1.0),
    "Contrast": (0.125, 1.75, 1.0),
    "Brightness": (0.125, 1.75, 1.0),
    "Sharpness": (0.125, 1.75, 1.0),
    "AutoContrast": (),
    "Equalize": (0.0,),
    "Invert": (0.0,),
    "Posterize": (1.0, 3.0, 4.0),
    "Solarize": (26.0, 200.0, 256.0),
    "SolarizeAdd": (99.0, 200.0, 0.0),
}
# Where float32, or Pillow's own rounding, may be one of 255 beside the other.
ROUNDED = {
    "ShearX": (0.27, -0.3),
    "ShearY": (0.27, -0.3),
    "TranslateX": (0.31, -0.405),
    "TranslateY": (0.31, -0.405),
    "Rotate": (27.0, -13.3),
    "Color": (0.13, 1.81),
    "Contrast": (0.13, 1.81),
    "Brightness": (0.13, 1.81),
    "Sharpness": (0.13, 1.81),
    "AutoContrast": (0.0,),
}
CALLS = [(n, s) for table in (EXACT, ROUNDED) for n in table for s in table[n]]


@functools.cache
def images(channels):
    """Smooth, noisy, of few values and of one value; [8, 24, 32, channels] uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :32]
    waves = [np.sin(x / (3 + c)) + np.cos(y / 5 + c) for c in range(channels)]
    smooth = 60 * (np.stack(waves, axis=-1) + 2)
    noises = [rng.normal(0, deviation, smooth.shape) for deviation in (0, 3, 30, 200)]
    batch = [smooth * 0.4 + 50, smooth + 10, *(smooth + noise for noise in noises)]
    batch += [smooth // 100 * 90 + 20, np.full_like(smooth, 77)]
    return np.clip(np.stack(batch), 0, 255).astype(np.uint8)


@functools.cache
def operated(channels):
    """The results of all CALLS, [calls, 8, 24, 32, channels]."""
    over_images = jax.vmap(operate, (None, None, 0, None))
    over_calls = jax.jit(jax.vmap(over_images, (0, 0, None, None)))
    index = jnp.array([NAMES.index(name) for name, _ in CALLS])
    strength = jnp.array([strength for _, strength in CALLS])
    fill = jnp.array(FILL[:channels], jnp.float32)
    return np.asarray(over_calls(index, strength, images(channels).astype(np.float32), fill))


def by_pillow(name, strength, pixels):
    channels = pixels.shape[-1]
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    width, height = image.size
    fill = FILL if channels == 3 else FILL[0]
    warp = dict(resample=Image.Resampling.BILINEAR, fillcolor=fill)
    coefficients = {
        "ShearX": (1, strength, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, strength, 1, 0),
        "TranslateX": (1, 0, strength * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, strength * height),
    }
    if name in coefficients:
        result = image.transform(image.size, Image.Transform.AFFINE, coefficients[name], **warp)
    elif name == "Rotate":
        result = image.rotate(strength, **warp)
    elif name in ENHANCEMENTS:
        result = getattr(ImageEnhance, name)(image).enhance(strength)
    elif name == "SolarizeAdd":
        table = [min(255, i + int(strength)) if i < 128 else i for i in range(256)]
        result = image.point(table * channels)
    elif name in ("Posterize", "Solarize"):
        result = getattr(ImageOps, name.lower())(image, int(strength))
    else:
        result = getattr(ImageOps, name.lower())(image)
    return np.asarray(result).reshape(pixels.shape).astype(int)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", NAMES)
def test_operation_against_pillow(name, channels):
    before = images(channels)
    for tolerance, strengths in ((0, EXACT[name]), (1, ROUNDED.get(name, ()))):
        for strength in strengths:
            result = operated(channels)[CALLS.index((name, strength))]
            expected = np.stack([by_pillow(name, strength, image) for image in before])
            difference = np.abs(result - expected)
            assert difference.max() <= tolerance, strength
            assert difference.mean() <= 0.06
            nothing = {**dict.fromkeys(WARPS, 0), **dict.fromkeys(ENHANCEMENTS, 1)}
            nothing |= {"Solarize": 256, "SolarizeAdd": 0}
            grey = name == "Color" and channels == 1
            changes = strength != nothing.get(name) and not grey
            assert (expected != before).any() == changes, "the images do not show this operation"


def test_table_of_operations():
    assert len(NAMES) == 15 == len(set(NAMES))
    assert NAMES == (*WARPS, *ENHANCEMENTS, *ADJUSTMENTS) == tuple(EXACT)


def test_auto_contrast_reaches_the_whole_range():
    """Also where Pillow's rounding ends at 254."""
    result = operated(3)[CALLS.index(("AutoContrast", 0.0))][:-1]
    assert (result.min(axis=(1, 2)) == 0).all() and (result.max(axis=(1, 2)) == 255).all()


def test_posterize_to_no_bits_is_black():
    """Pillow refuses 0 bits; the increasing operation comes down to them."""
    assert not posterize(jnp.full((2, 2, 1), 255.0), jnp.array(0.0)).any()
