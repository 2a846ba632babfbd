"""Encoded images to pixels of 8 bits: one reading of a file, whatever kind of set holds it.

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
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of Pillow, by number of channels

_TURNS: Mapping[int, Image.Transpose] = {  # what undoes each EXIF orientation but the upright one
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


class Encoded:
    """An image file whose size is known and whose pixels are decoded when they are asked for.

    Args:
      content: of the file.

    Attributes:
      size: width and height of the upright image, in pixels.

    Raises:
      Exception: of whatever kind Pillow makes of bytes that it cannot read.
    """

    def __init__(self, content: bytes):
        image = Image.open(io.BytesIO(content))
        # Only of a JPEG the size alone can be read, and a smaller image decoded.
        is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        self._image = image if is_jpeg else _load(image, content)
        orientation = _orientation(image)
        self._turn = _TURNS.get(orientation)
        width, height = image.size
        self.size = (height, width) if orientation >= _SIDEWAYS else (width, height)

    def decode(self, channels: int, zoom: float = 1.0) -> tuple[Image.Image, float]:
        """Returns the upright image, and the scale at which it was decoded.

        Args:
          channels: of the image that is returned, a key of MODES.
          zoom: the least scale that will do; a JPEG is decoded at 1/2, 1/4 or 1/8 where that is no
            less.

        Raises:
          Exception: as above.
        """
        scale, full_size = 1.0, self._image.size
        if zoom < 1 and isinstance(self._image, JpegImagePlugin.JpegImageFile):
            wanted = (int(full_size[0] * zoom) + 1, int(full_size[1] * zoom) + 1)
            drafted = self._image.draft(None, wanted)
            scale = drafted[1][2] / full_size[0] if drafted else 1.0
        image = _convert(self._image, MODES[channels])
        return (image if self._turn is None else image.transpose(self._turn)), scale


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none or none that can be read.

    ImageOps.exif_transpose would write the whole EXIF block again, and fail at a damaged one.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are as good without
        return 1
    return orientation if orientation in _TURNS else 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image of 8 bits a channel to one of MODES."""
    if mode in ("LA", "RGBA"):
        return image.convert("RGBA").convert(mode)
    if not image.has_transparency_data:
        return image.convert(mode)
    colours = image.convert("RGBA")
    on_black = Image.new("RGB", image.size)
    on_black.paste(colours, mask=colours.getchannel("A"))
    return on_black.convert(mode)


def _load(image: Any, content: bytes) -> Image.Image:
    """Decodes an image to 8 bits a channel."""
    is_png = image.format == "PNG"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        levels = np.asarray(image)[..., None]
    elif is_png and str(image.tile[0].args).endswith(";16B"):
        levels = _load_png_of_16_bits(image, content)
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, of 32 bits, have no brightest value")
    elif str(image.tile[0].args if image.tile else "").partition(";")[2].startswith("16"):
        raise ValueError(f"colours of 16 bits a channel are read from PNG, not {image.format}")
    else:
        image.load()
        return image
    transparent = image.info.get("transparency") if is_png else None
    if transparent is not None:
        alpha = np.where((levels == transparent).all(axis=-1, keepdims=True), 0, 65535)
        levels = np.concatenate([levels, alpha], axis=-1)
    # In integers: v / 257 is never halfway between two whole numbers.
    pixels = ((levels.astype(np.uint32) + _TO_8_BITS // 2) // _TO_8_BITS).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(axis=-1) if pixels.shape[-1] == 1 else pixels)


def _load_png_of_16_bits(image: Any, content: bytes) -> np.ndarray:
    """Returns the values of a PNG of several 16-bit channels, [height, width, channels] uint16.

    Pillow has no mode for them and keeps the upper bytes. It unpacks both halves where it is told
    that the file is one of other pixels of as many bytes.
    """
    tile = image.tile[0]
    if tile.args == "LA;16B":  # four bytes a pixel, as RGBA has
        image._mode, image.tile = "RGBA", [tile._replace(args="RGBA")]
        halves = np.asarray(image).astype(np.uint16)
        return halves[..., 0::2] << 8 | halves[..., 1::2]
    halves = []
    for rawmode in (f"{image.mode};16B", f"{image.mode};16L"):  # the upper bytes, the lower ones
        half: Any = Image.open(io.BytesIO(content))
        half.tile = [tile._replace(args=rawmode)]
        halves.append(np.asarray(half).astype(np.uint16))
    return halves[0] << 8 | halves[1]
