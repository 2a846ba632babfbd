"""The operations of RandAugment, as Pillow defines them.

Images are [height, width, channels] float32 that hold whole values from 0 to 255, of 1 channel or
3 (red, green, blue). There are three families of operations:

- a warp moves the pixels by its matrix [2, 3], from (x, y, 1) of a pixel of the result to the place
  in the image that its value comes from;
- an enhancement blends the image with its degenerate image;
- an adjustment changes each pixel by its value.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from train.augment.geometry import sample


def shear_x(strength: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Moves each row along x by `strength` times its y."""
    return jnp.array([[1, strength, 0], [0, 1, 0]])


def shear_y(strength: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Moves each column along y by `strength` times its x."""
    return jnp.array([[1, 0, 0], [strength, 1, 0]])


def translate_x(strength: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Moves the image along x by `strength` of its width."""
    return jnp.array([[1, 0, strength * width], [0, 1, 0]])


def translate_y(strength: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Moves the image along y by `strength` of its height."""
    return jnp.array([[1, 0, 0], [0, 1, strength * height]])


def rotate(strength: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Turns the image counter-clockwise about its centre by `strength` degrees."""
    angle = jnp.deg2rad(strength)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = height / 2, width / 2
    return jnp.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def grey(image: jax.Array) -> jax.Array:
    """Returns the luminance in each channel: the image without colour."""
    return jnp.broadcast_to(_luminance(image), image.shape)


def mean_grey(image: jax.Array) -> jax.Array:
    """Returns the mean luminance: the image without contrast."""
    luminance = _luminance(image).astype(jnp.int32)

    # Rounded half up, in integers: a sum of float32 is not exact for a large image.
    mean = (2 * luminance.sum() + luminance.size) // (2 * luminance.size)
    return jnp.full_like(image, mean)


def black(image: jax.Array) -> jax.Array:
    """Returns black: the image without brightness."""
    return jnp.zeros_like(image)


def smooth(image: jax.Array) -> jax.Array:
    """Returns each pixel averaged with its neighbours: the image without sharpness."""
    # Pillow's kernel has 5 at the centre and 1 around it, and leaves the image's rim unchanged.
    rows = image[:-2] + image[1:-1] + image[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]

    frame = ((1, 1), (1, 1), (0, 0))
    averaged = jnp.pad(jnp.floor(total / 13 + 0.5), frame, constant_values=-1)
    return jnp.where(averaged < 0, image, averaged)


def auto_contrast(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Stretches each channel to reach from 0 to 255."""
    low, high = (reach(image, axis=(0, 1), keepdims=True) for reach in (jnp.min, jnp.max))

    # Half of one keeps a quotient of whole numbers from falling short of a whole number.
    stretched = jnp.floor((255 * (image - low) + 0.5) / jnp.maximum(high - low, 1))
    return jnp.where(high > low, stretched, image)


def equalize(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Maps each channel so that its values are distributed evenly over 0 to 255."""
    height, width, channels = image.shape
    channel, pixels = jnp.arange(channels)[None, None], image.astype(jnp.int32)

    # The histograms of all channels in one scatter.
    index = 256 * channel + pixels
    counts = jnp.zeros(256 * channels, jnp.int32).at[index].add(1).reshape(channels, 256)

    # Pillow's step leaves out the pixels of the brightest value; a step of 0 changes nothing.
    up_to = jnp.cumsum(counts, axis=1)
    below_brightest = jnp.where(up_to < height * width, up_to, 0).max(axis=1, keepdims=True)
    step = below_brightest // 255

    equalized = jnp.minimum((step // 2 + up_to - counts) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, equalized, jnp.arange(256)[None])
    return table[channel, pixels].astype(image.dtype)


def invert(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Turns dark to bright."""
    return 255 - image


def posterize(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Keeps the `strength` most significant bits of 8."""
    shift = 8 - strength.astype(jnp.int32)
    return (image.astype(jnp.int32) >> shift << shift).astype(image.dtype)


def solarize(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Inverts the values that are at least `strength`."""
    return jnp.where(image < strength, image, 255 - image)


def solarize_add(image: jax.Array, strength: jax.Array) -> jax.Array:
    """Adds `strength` to the values below 128."""
    return jnp.where(image < 128, jnp.minimum(image + strength, 255), image)


# A batch in which each image draws its own operation computes all branches of a switch. In families
# it pays for one warp and one blend, rather than for one of each operation.
WARPS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}
ENHANCEMENTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "Color": grey,
    "Contrast": mean_grey,
    "Brightness": black,
    "Sharpness": smooth,
}
ADJUSTMENTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
}
NAMES: tuple[str, ...] = (*WARPS, *ENHANCEMENTS, *ADJUSTMENTS)


def operate(index: jax.Array, strength: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Applies one operation to an image.

    Args:
      index: of the operation's name in NAMES, int32 scalar.
      strength: float32 scalar: degrees for Rotate, a slope for a shear, a fraction of the image's
        size for a translation, Pillow's factor for an enhancement (1 changes nothing), the bits
        kept for Posterize, a threshold for Solarize, a summand for SolarizeAdd.
      image: [height, width, channels] float32, whole values from 0 to 255.
      fill: colour of the pixels that a warp brings in, [channels] float32, whole values.

    Returns:
      The image, of the same shape, dtype and range.
    """

    # A switch clamps an index of another family; the outer switch does not choose that result.
    def warp() -> jax.Array:
        height, width, _ = image.shape
        matrix = jax.lax.switch(index, list(WARPS.values()), strength, height, width)
        return _warp(image, matrix, fill)

    def enhance() -> jax.Array:
        degenerates = list(ENHANCEMENTS.values())
        return _blend(jax.lax.switch(index - len(WARPS), degenerates, image), image, strength)

    def adjust() -> jax.Array:
        first = len(WARPS) + len(ENHANCEMENTS)
        return jax.lax.switch(index - first, list(ADJUSTMENTS.values()), image, strength)

    # Both are True for an adjustment, so that their sum is the number of the family.
    enhances, adjusts = index >= len(WARPS), index >= len(WARPS) + len(ENHANCEMENTS)
    family = enhances.astype(jnp.int32) + adjusts.astype(jnp.int32)
    return jax.lax.switch(family, (warp, enhance, adjust))


def _warp(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Samples the image at matrix @ (x, y, 1), where the first pixel covers [0, 1)."""
    height, width, _ = image.shape
    y = jnp.arange(height, dtype=float)[:, None] + 0.5
    x = jnp.arange(width, dtype=float)[None] + 0.5
    source_x, source_y = (row[0] * x + row[1] * y + row[2] for row in matrix)

    # Pillow cuts off the decimals of an interpolated value, here and in a blend.
    sampled = jnp.floor(sample(image, source_y - 0.5, source_x - 0.5))
    within = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return jnp.where(within[..., None], sampled, fill[None, None])


def _blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """degenerate + factor * (image - degenerate), clipped to 0..255 and cut to whole values."""
    return jnp.floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def _luminance(image: jax.Array) -> jax.Array:
    """The image in one channel, [height, width, 1], by Pillow's weights, in 65536ths."""
    if image.shape[-1] == 1:
        return image

    # float32 holds the sums exactly: they stay below 65536 * 256 = 2^24.
    red, green, blue = (image[..., channel, None] for channel in range(3))
    return jnp.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)
