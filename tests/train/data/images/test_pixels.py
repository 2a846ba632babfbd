"""Files of every kind of pixel, in both readers, against pixels written by hand."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.helpers.tiny import make_tiny
from train.config.border import from_config_dict
from train.data.images import checks
from train.data.images.pixels import Encoded
from train.data.images.records import Records, published_moments
from train.data.sources import load_splits
from train.errors import BadInput

SIDE = 32  # of the files: four quarters of one colour each; the centre crop takes 28 of it
COLOURS = [(200, 100, 50), (0, 100, 0), (0, 0, 50), (255, 255, 255)]
LUMA = [124, 59, 6, 255]  # 0.299 R + 0.587 G + 0.114 B
GREYS = [10, 60, 120, 250]


def quarters(values, dtype=np.uint8, side=SIDE):
    """An image of four quarters: upper left, upper right, lower left, lower right."""
    values = np.array(values, dtype).reshape(2, 2, -1)
    return values.repeat(side // 2, axis=0).repeat(side // 2, axis=1)


def encode(values, mode, format="PNG", side=SIDE, **options):
    pixels = quarters(values, np.uint16 if mode == "I;16" else np.uint8, side)
    if mode in ("1", "L", "P", "I;16"):
        pixels = pixels[..., 0]
    image = Image.fromarray(pixels)
    if mode == "1":
        image = image.convert("1")
    elif mode == "P":
        image.putpalette([channel for colour in COLOURS for channel in colour])
    elif mode == "CMYK":
        image = Image.frombytes("CMYK", (side, side), pixels.tobytes())
    assert image.mode == mode
    if orientation := options.pop("orientation", None):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if format == "JPEG":
        options |= {"quality": 100, "subsampling": 0}  # so that colours do not run into another
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encode_16_bits(levels, transparent=None):
    """A PNG of 16 bits a channel, which Pillow does not write: [height, width, channels]."""
    height, width, channels = levels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = levels.astype(">u2").reshape(height, -1)
    # Every second row is filtered by 'sub': as differences from the pixel on the left.
    lines = []
    for number, row in enumerate(rows):
        line = np.frombuffer(row.tobytes(), np.uint8)
        left = np.concatenate([np.zeros(2 * channels, np.uint8), line[: -2 * channels]])
        kind = number % 2
        lines.append(bytes([kind]) + (line - left if kind else line).tobytes())
    key = b"" if transparent is None else chunk(b"tRNS", struct.pack(">3H", *transparent))
    data = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + data + chunk(b"IEND", b"")


def grey(*levels):
    return [(level,) * 3 for level in levels]


LEVELS_16 = [(400, 771, 40_000), (65_535, 0, 128), (129, 385, 386), (400, 400, 400)]
RGBA = [(*COLOURS[0], 255), (*COLOURS[0], 128), (*COLOURS[0], 0), (*COLOURS[0], 51)]
INKS = [(0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 128)]
# Of each file: its bytes, its quarters in colour and in grey, and how far JPEG may be off.
FILES = {
    "1": (encode([0, 255, 255, 0], "1"), grey(0, 255, 255, 0), [0, 255, 255, 0], 0),
    "L": (encode(GREYS, "L"), grey(*GREYS), GREYS, 0),
    "P": (encode([0, 1, 2, 3], "P"), COLOURS, LUMA, 0),
    "P, transparent": (
        encode([0, 1, 2, 3], "P", transparency=1),
        [COLOURS[0], (0, 0, 0), *COLOURS[2:]],
        [LUMA[0], 0, *LUMA[2:]],
        0,
    ),
    "LA": (
        encode([(200, 255), (200, 128), (200, 0), (100, 51)], "LA"),
        grey(200, 100, 0, 20),
        [200, 100, 0, 20],
        0,
    ),
    "I;16": (encode([400, 771, 40_000, 65_535], "I;16"), grey(2, 3, 156, 255), [2, 3, 156, 255], 0),
    "RGB": (encode(COLOURS, "RGB"), COLOURS, LUMA, 0),
    "RGBA": (
        encode(RGBA, "RGBA"),
        [(200, 100, 50), (100, 50, 25), (0, 0, 0), (40, 20, 10)],
        [124, 62, 0, 25],
        0,
    ),
    "RGB of 16 bits": (
        encode_16_bits(quarters(LEVELS_16, np.uint16)),
        [(2, 3, 156), (255, 0, 0), (1, 1, 2), (2, 2, 2)],
        [20, 76, 1, 2],
        0,
    ),
    "CMYK": (
        encode(
            [(0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 128)], "CMYK", "JPEG"
        ),
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (127, 127, 127)],
        [76, 150, 29, 127],
        3,
    ),
    "grey JPEG": (encode(GREYS, "L", "JPEG"), grey(*GREYS), GREYS, 1),
    "JPEG on its side": (
        encode(COLOURS, "RGB", "JPEG", orientation=6),
        [COLOURS[2], COLOURS[0], COLOURS[3], COLOURS[1]],
        [LUMA[2], LUMA[0], LUMA[3], LUMA[1]],
        3,
    ),
}


class Kinds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """All files in 'test' and the first one in 'train', twice; side and channels are the name's."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        side = None if "varying" in self.name else SIDE
        shape = (side, side, int(self.name[-1]))
        features: dict = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        contents = [content for content, *_ in FILES.values()]
        return {
            "train": self._generate_examples(contents[:1] * 2),
            "test": self._generate_examples(contents),
        }

    def _generate_examples(self, contents):
        for i, content in enumerate(contents):
            yield i, {"image": io.BytesIO(content), "label": i % 2}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads the pixels that a set's test split gives, prepared on its first use."""
    folder, prepared = tmp_path_factory.mktemp("data"), set()

    def images(name):
        if name not in prepared:
            builder = type(name, (Kinds,), {"name": name}, skip_registration=True)
            builder(data_dir=folder, file_format="array_record").download_and_prepare()
            prepared.add(name)
        cfg = make_tiny()
        cfg.data.update(name=name, validation_examples=1, data_dir=str(folder))
        cfg.model.update(image_size=28, channels=int(name[-1]))
        test = load_splits(from_config_dict(cfg))["test"]
        return test.gather(np.arange(len(FILES)))["image"]

    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_both_readers_give_the_pixels_of_every_file(load, channels):
    fixed, varying = load(f"fixed{channels}"), load(f"varying{channels}")
    for i, (name, (_, colours, greys, off)) in enumerate(FILES.items()):
        wanted = quarters(colours if channels == 3 else greys)
        assert fixed[i].shape == wanted.shape, name
        np.testing.assert_allclose(fixed[i].astype(int), wanted, atol=off, err_msg=name)
        np.testing.assert_array_equal(varying[i], fixed[i][2:30, 2:30], err_msg=name)


def test_sets_that_are_not_of_pixels():
    floats = tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)
    with pytest.raises(BadInput, match="images of depths are of float32: .* uint8 or uint16"):
        checks.check_image("depths", floats)
    frames = tfds.features.Image(shape=(4, 8, 8, 3))
    with pytest.raises(BadInput, match=r"are of shape \(4, 8, 8, 3\): .* 1 to 4 channels"):
        checks.check_image("films", frames)


def test_alpha_is_kept_where_the_set_has_it(load):
    for channels in (2, 4):
        fixed, varying = load(f"fixed{channels}")[:, 2:30, 2:30], load(f"varying{channels}")
        np.testing.assert_array_equal(varying[..., -1], fixed[..., -1])
        seen = fixed[..., -1] == 255  # to scale what is not seen wholly takes its colour's accuracy
        np.testing.assert_array_equal(varying[seen], fixed[seen])
    content, *_ = FILES["RGBA"]
    np.testing.assert_array_equal(np.asarray(Encoded(content).decode(4)[0]), quarters(RGBA))
    kept = np.asarray(Encoded(FILES["LA"][0]).decode(2)[0])
    np.testing.assert_array_equal(kept, quarters([(200, 255), (200, 128), (200, 0), (100, 51)]))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, "abcd"),
        (2, "badc"),  # left and right are exchanged
        (3, "dcba"),  # it stands on its head
        (4, "cdab"),
        (5, "acbd"),
        (6, "cadb"),  # it lies on its left side
        (7, "dbca"),
        (8, "bdac"),
        (9, "abcd"),  # no such orientation
    ],
)
def test_every_orientation(orientation, upright):
    for format in ("PNG", "TIFF"):
        content = encode(GREYS, "L", format, orientation=orientation)
        image, _ = Encoded(content).decode(1)
        wanted = quarters([GREYS["abcd".index(letter)] for letter in upright])
        np.testing.assert_array_equal(np.asarray(image)[..., None], wanted, err_msg=format)


def test_the_size_is_the_upright_image_s():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    encoded = Encoded(buffer.getvalue())
    assert encoded.size == (10, 20) and encoded.decode(3)[0].size == (10, 20)


def test_an_exif_block_that_is_damaged_turns_nothing():
    content = encode(GREYS, "L", "JPEG", orientation=3)
    at = content.index(b"Exif\0\0") + 6
    damaged = content[:at] + b"\xff" * 12 + content[at + 12 :]
    image, _ = Encoded(damaged).decode(1)
    np.testing.assert_allclose(np.asarray(image)[..., None].astype(int), quarters(GREYS), atol=1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller_and_upright(orientation):
    content = encode(COLOURS, "RGB", "JPEG", side=512, orientation=orientation)
    image, scale = Encoded(content).decode(3, zoom=0.2)
    assert scale == 0.25 and image.size == (128, 128)
    whole, scale = Encoded(content).decode(3)
    assert scale == 1.0 and whole.size == (512, 512)
    np.testing.assert_allclose(
        np.asarray(image)[8::64, 8::64].astype(int), np.asarray(whole)[32::256, 32::256], atol=3
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_divided_by_257_and_rounded(channels):
    levels = np.random.default_rng(channels).integers(0, 65_536, (9, 7, channels), np.uint16)
    image, _ = Encoded(encode_16_bits(levels)).decode(channels)
    wanted = np.rint(levels / 257).reshape(np.asarray(image).shape)
    np.testing.assert_array_equal(np.asarray(image), wanted)


def test_a_transparent_colour_of_16_bits():
    levels = quarters(LEVELS_16, np.uint16)
    image, _ = Encoded(encode_16_bits(levels, transparent=LEVELS_16[0])).decode(3)
    wanted = quarters([(0, 0, 0), (255, 0, 0), (1, 1, 2), (2, 2, 2)])
    np.testing.assert_array_equal(np.asarray(image), wanted)


def test_pixels_without_a_brightest_value_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="pixels of mode F, of 32 bits, have no brightest value"):
        Encoded(buffer.getvalue())


def test_alpha_of_varying_size_is_standardised_to_one_either_way():
    (_, alpha), (_, deviation) = published_moments(2)
    assert [(level - alpha) / deviation for level in (0, 1)] == [-1, 1]
    assert published_moments(4)[0][:3] == published_moments(3)[0]


def test_grey_images_of_varying_size_are_standardised_by_the_luma():
    (mean,), (std,) = published_moments(1)
    assert mean == pytest.approx(0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406)
    data = Records([], "", 1, (1, 1), channels=1, mean=(mean,), std=(std,))
    white = data.standardise(data.to_unit(np.full((1, *data.image_shape), 255, np.uint8)))
    assert data.image_shape == (1, 1, 1) and float(white.squeeze()) == pytest.approx(
        (1 - mean) / std
    )
