"""Encoded images to pixels of 8 bits, in one way for every kind of set.

| pixels of the file | become |
|---|---|
| 16 bits a channel | divided by 257 and rounded, never by the image's own extremes |
| 1 bit | 0 and 255 |
| a palette | the colours of the palette |
| CMYK | RGB |
| alpha, a transparent colour | the colour on black; kept in a set that has an alpha channel |
| colour, in a set of one channel | luma of ITU-R BT.601 |
| grey, in a set of three channels | three equal channels |
| an EXIF orientation | turned upright |

Pixels of 32 bits (modes I and F of Pillow) have no brightest value and are refused.
"""

import io
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels

# What undoes each EXIF orientation; 1 is upright.
_TURNS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = 5  # the first orientation whose width is the file's height
_TO_8_BITS = 257  # 65535 / 255


class Decodable(Protocol):
    """An image of known size, whose pixels are asked for when they are needed.

    Attributes:
      size: width and height of the upright image, in pixels.
    """

    size: tuple[int, int]

    def decode(self, channels: int, zoom: float = 1.0) -> tuple[Image.Image, float]:
        """Returns the upright image, and its scale: see `Encoded.decode`."""
        ...


class Decoded:
    """An image whose pixels are there already: one of Pillow's, or one that is kept in memory.

    Args:
      image: of 8 bits per channel, or grey ones of 16.

    Attributes:
      size: width and height of the upright image, in pixels.

    Raises:
      ValueError: pixels of 32 bits.
    """

    def __init__(self, image: Image.Image):
        turn = _TURNS.get(_orientation(image))

        # A copy is free of the file that Pillow may still read the image from.
        pixels = _load(image.copy(), b"")
        self._image = pixels if turn is None else pixels.transpose(turn)
        self.size = self._image.size

    def decode(self, channels: int, zoom: float = 1.0) -> tuple[Image.Image, float]:
        """Returns the upright image, and the scale 1, whatever zoom would do."""
        return _convert(self._image, MODES[channels]), 1.0


def probe(path: pathlib.Path) -> tuple[tuple[int, int], int]:
    """Returns width and height of a file's upright image, and its channels: 1 if it is grey, or 3.

    The pixels are not decoded, so that a file which is damaged after its header is not noticed.

    Raises:
      Exception: of any kind that Pillow raises on bytes that it cannot read.
    """
    with Image.open(path) as image:
        width, height = image.size
        is_sideways = _orientation(image) >= _SIDEWAYS
        is_grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")

    return (height, width) if is_sideways else (width, height), 1 if is_grey else 3


class Encoded:
    """An image file of known size, whose pixels are decoded on demand.

    Args:
      content: the bytes of the file.

    Attributes:
      size: width and height of the upright image, in pixels.

    Raises:
      Exception: of any kind that Pillow raises on bytes that it cannot read.
    """

    def __init__(self, content: bytes):
        image = Image.open(io.BytesIO(content))

        # JPEG alone can be decoded at a smaller size, so its pixels wait for `decode`.
        is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        self._image = image if is_jpeg else _load(image, content)

        orientation = _orientation(image)
        self._turn = _TURNS.get(orientation)

        width, height = image.size
        self.size = (height, width) if orientation >= _SIDEWAYS else (width, height)

    def decode(self, channels: int, zoom: float = 1.0) -> tuple[Image.Image, float]:
        """Returns the upright image, and the scale at which it was decoded.

        Args:
          channels: of the returned image, a key of MODES.
          zoom: the least acceptable scale; a JPEG is decoded at 1/2, 1/4 or 1/8 where that is no
            less.

        Raises:
          Exception: of any kind that Pillow raises on bytes that it cannot read.
        """
        scale, full_size = 1.0, self._image.size

        # `draft` decodes at no less than the wanted size; the pixel more is for the fraction that
        # int() cuts off.
        if zoom < 1 and isinstance(self._image, JpegImagePlugin.JpegImageFile):
            wanted = (int(full_size[0] * zoom) + 1, int(full_size[1] * zoom) + 1)
            drafted = self._image.draft(None, wanted)
            scale = drafted[1][2] / full_size[0] if drafted else 1.0

        image = _convert(self._image, MODES[channels])
        return (image if self._turn is None else image.transpose(self._turn)), scale


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if there is none that can be read."""
    # ImageOps.exif_transpose would write the whole EXIF block again, and fail at a damaged one.
    # The pixels are as good without it.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image of 8 bits per channel to one of MODES."""
    # By way of RGBA, which Pillow can make of every mode; LA it cannot make of LAB.
    if mode in ("LA", "RGBA"):
        return image.convert("RGBA").convert(mode)
    if not image.has_transparency_data:
        return image.convert(mode)

    # Pillow would drop the alpha channel and show whatever colour a transparent pixel has.
    colours = image.convert("RGBA")
    on_black = Image.new("RGB", image.size)
    on_black.paste(colours, mask=colours.getchannel("A"))
    return on_black.convert(mode)


def _load(image: Any, content: bytes) -> Image.Image:
    """Decodes an image to 8 bits per channel."""
    levels = _levels_of_16_bits(image, content)
    if levels is None:
        image.load()
        return image

    # A PNG may call one colour transparent; its 16-bit value is compared before it is rounded.
    transparent = image.info.get("transparency") if image.format == "PNG" else None
    if transparent is not None:
        alpha = np.where((levels == transparent).all(axis=-1, keepdims=True), 0, 65535)
        levels = np.concatenate([levels, alpha], axis=-1)

    # Rounding in integers is exact: v / 257 is never halfway between two whole numbers.
    pixels = ((levels.astype(np.uint32) + _TO_8_BITS // 2) // _TO_8_BITS).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(axis=-1) if pixels.shape[-1] == 1 else pixels)


def _levels_of_16_bits(image: Any, content: bytes) -> np.ndarray | None:
    """Returns the values of 16-bit pixels, [height, width, channels]; None for those of 8 bits."""
    # Images that were not opened from a file have no tiles.
    tile = str(image.tile[0].args) if getattr(image, "tile", None) else ""

    # Pillow opens a PPM of 16 bits, and some versions a grey PNG, as mode I, of 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image)[..., None]
    if image.format == "PNG" and tile.endswith(";16B"):
        return _load_png_of_16_bits(image, content)

    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, of 32 bits, have no brightest value")
    if tile.partition(";")[2].startswith("16"):
        raise ValueError(f"colours of 16 bits a channel are read from PNG, not {image.format}")
    return None


def _load_png_of_16_bits(image: Any, content: bytes) -> np.ndarray:
    """Returns the values of a PNG of several 16-bit channels, [height, width, channels] uint16."""
    tile = image.tile[0]

    # Pillow has no mode for such pixels and keeps only their upper bytes. It unpacks both halves
    # when the tile claims other pixels of as many bytes: grey and alpha of 16 bits as RGBA.
    if tile.args == "LA;16B":
        image._mode, image.tile = "RGBA", [tile._replace(args="RGBA")]
        halves = np.asarray(image).astype(np.uint16)
        return halves[..., 0::2] << 8 | halves[..., 1::2]

    # Colours are read twice: big-endian for the upper bytes, little-endian for the lower ones.
    halves = []
    for rawmode in (f"{image.mode};16B", f"{image.mode};16L"):
        half: Any = Image.open(io.BytesIO(content))
        half.tile = [tile._replace(args=rawmode)]
        halves.append(np.asarray(half).astype(np.uint16))

    return halves[0] << 8 | halves[1]
