"""Images of varying size: crops, colours, what is random, and records that cannot be read."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train.data.images.records import Records
from train.data.pipeline import train_batches
from train.errors import BadInput

RNG = np.random.default_rng(0)
SIDE = 28  # of the crops; 7/8 of 32


def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def smooth(width, height):
    return noise(8, 8).resize((width, height), Image.Resampling.BICUBIC)


def ramp(width=256, height=192):
    """Red is the column's number, green the row's."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def encode(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


GREY = noise(40, 50).convert("L")
CMYK = Image.new("CMYK", (50, 40), (0, 255, 255, 0))  # red
FILES = {
    "exact.png": encode(noise(64, 32)),
    "double.png": encode(smooth(64, 128)),
    "photo.jpg": encode(smooth(300, 200), "JPEG"),
    "large.jpg": encode(smooth(1024, 640), "JPEG"),
    "grey.jpg": encode(GREY, "JPEG"),
    "cmyk.jpg": encode(CMYK, "JPEG"),
    "palette.png": encode(noise(40, 40).quantize(8)),
    "ramp.png": encode(ramp()),
    "tiny.png": encode(noise(3, 200)),
    "again.png": encode(ramp()),
    "cut.jpg": encode(noise(60, 60), "JPEG")[:-500],
}
NAMES = list(FILES)


class Varied(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Laid out as imagenet2012 is: image, label, file_name; kept in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=len(FILES)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (name, content) in enumerate(FILES.items()):
            yield i, {"image": io.BytesIO(content), "label": i, "file_name": name}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Makes the split of all records, or of all but the last, which is cut short."""
    builder = Varied(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    builder.download_and_prepare()
    stock = tfds.builder_from_directory(builder.data_path)
    undecoded = {"image": tfds.decode.SkipDecoding()}
    return lambda split="train[:10]", **options: Records(
        stock.as_data_source(split, decoders=undecoded),
        split=f"varied/{split}",
        classes=options.pop("classes", 11),
        image_size=options.pop("image_size", (SIDE, SIDE)),
        **options,
    )


def one(data, name, visit=None):
    visit = None if visit is None else np.array([visit])
    return data.gather(np.array([NAMES.index(name)]), visit)["image"][0]


def test_a_batch(records):
    data = records()
    index = np.array([3, 0, 7])
    batch = data.gather(index)
    assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
        "image": ((3, *data.image_shape), "uint8"),
        "label": ((3,), "int32"),
        "index": ((3,), "int32"),
    }
    assert batch["label"].tolist() == batch["index"].tolist() == [3, 0, 7]
    assert len(data) == 10 and data.image_shape == (SIDE, SIDE, 3)


def test_evaluation_crop_is_the_scaled_centre(records):
    data = records()
    exact = np.asarray(Image.open(io.BytesIO(FILES["exact.png"])))
    np.testing.assert_array_equal(one(data, "exact.png"), exact[2:30, 18:46])
    half = Image.open(io.BytesIO(FILES["double.png"])).resize((32, 64), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(one(data, "double.png"), np.asarray(half)[18:46, 2:30], atol=1)
    photo = Image.open(io.BytesIO(FILES["photo.jpg"])).resize((48, 32), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(one(data, "photo.jpg"), np.asarray(photo)[2:30, 10:38], atol=2)


def test_a_large_jpeg_is_decoded_smaller_without_being_seen(records, monkeypatch):
    whole = Image.open(io.BytesIO(FILES["large.jpg"]))
    box = (232.0, 40.0, 792.0, 600.0)
    wanted = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box), np.int32)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *args: (sizes.append(self.size), resize(self, *args))[1]
    )
    np.testing.assert_allclose(one(records(), "large.jpg"), wanted, atol=3)
    assert sizes == [(128, 80)]


def test_height_and_width_may_differ(records):
    crop = one(records(image_size=(24, 48)), "ramp.png").astype(int)
    assert crop.shape == (24, 48, 3)
    # The largest box of that ratio is 256 x 128, and 7/8 of it 224 x 112.
    assert abs(crop[0, 0, 0] - 18) <= 2 and abs(crop[0, -1, 0] - 237) <= 2
    assert abs(crop[0, 0, 1] - 42) <= 2 and abs(crop[-1, 0, 1] - 149) <= 2


def test_every_image_becomes_rgb(records):
    data = records()
    grey = one(data, "grey.jpg")
    assert (grey == grey[..., :1]).all() and grey.std() > 5
    red = one(data, "cmyk.jpg").reshape(-1, 3)
    assert (red[:, 0] > 245).all() and (red[:, 1:] < 10).all()
    assert one(data, "palette.png").std() > 5


def test_training_crops_are_inceptions(records):
    """Corners of crops of the ramp tell their boxes: area, ratio, place."""
    data = records(crop_min_area=0.25)
    index = np.full(300, NAMES.index("ramp.png"))
    crops = data.gather(index, np.arange(300))["image"].astype(float)
    to_side = SIDE / (SIDE - 1)  # the outer pixels' centres lie within the box
    widths = (crops[:, 14, -1, 0] - crops[:, 14, 0, 0]) * to_side
    heights = (crops[:, -1, 14, 1] - crops[:, 0, 14, 1]) * to_side
    area, ratio = widths * heights / (256 * 192), widths / heights
    assert 0.24 < area.min() < 0.3 and 0.9 < area.max() < 1.02
    assert 0.73 < ratio.min() < 0.8 and 1.27 < ratio.max() < 1.36
    assert np.ptp(crops[:, 14, 0, 0]) > 100 and np.ptp(crops[:, 0, 14, 1]) > 75


def test_an_image_that_no_crop_fits_is_cut_in_its_middle(records):
    data = records(crop_min_area=0.9)
    crop = one(data, "tiny.png", visit=0)
    pixels = Image.open(io.BytesIO(FILES["tiny.png"]))
    wanted = pixels.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (0, 98, 3, 102))
    np.testing.assert_array_equal(crop, np.asarray(wanted))


def test_crops_are_a_function_of_seed_draw_and_index(records):
    data = records(crop_min_area=0.1, seed=1)
    first = one(data, "ramp.png", visit=5)
    again = records(crop_min_area=0.1, seed=1).gather(np.arange(10), np.full(10, 5))
    np.testing.assert_array_equal(again["image"][NAMES.index("ramp.png")], first)
    assert (one(data, "ramp.png", visit=6) != first).any()
    assert (one(data, "again.png", visit=5) != first).any()
    assert (one(records(crop_min_area=0.1, seed=2), "ramp.png", visit=5) != first).any()
    np.testing.assert_array_equal(one(data, "ramp.png"), one(records(), "ramp.png"))
    np.testing.assert_array_equal(one(records(), "ramp.png", visit=5), one(records(), "ramp.png"))


def test_a_record_that_is_cut_short_is_named(records):
    with pytest.raises(
        BadInput, match=r"varied/train: record 10 \(cut.jpg\) cannot be decoded \(.*truncated"
    ):
        records("train").gather(np.array([0, 10]))


def test_corrupt_records_are_replaced_and_counted(records, caplog):
    data = records("train", skip_corrupt=True)
    batch = data.gather(np.array([10, 1, 10]))
    assert batch["label"].tolist() == [0, 1, 0] and batch["index"].tolist() == [10, 1, 10]
    np.testing.assert_array_equal(batch["image"][0], one(data, "exact.png"))
    assert data.skipped == 1
    assert [r.getMessage().partition(": image")[0] for r in caplog.records] == [
        "left out varied/train: record 10 (cut.jpg)"
    ]
    with pytest.raises(BadInput, match="has no record that can be decoded"):
        records("train[10:]", skip_corrupt=True).gather(np.array([0]))


class Unreadable:
    """A source whose record 1 the reader itself refuses."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, place):
        if place == 1:
            raise RuntimeError("bad chunk")
        return self.source[place]

    def __getitems__(self, places):
        return [self[place] for place in places]


def test_a_record_that_cannot_be_read(records):
    whole = records()
    data = dataclasses.replace(whole, source=Unreadable(whole.source))
    with pytest.raises(BadInput, match=r"record 1 cannot be decoded \(bad chunk\)"):
        data.gather(np.arange(3))
    batch = dataclasses.replace(data, skip_corrupt=True).gather(np.arange(3))
    assert batch["label"].tolist() == [0, 2, 2]


def test_labels_outside_the_classes_are_refused(records):
    with pytest.raises(BadInput, match=r"record 7 \(ramp.png\) has label 7; the labels are 0 to 6"):
        records(classes=7, skip_corrupt=True).gather(np.arange(10))


def test_standardised_pixels():
    data = Records(source=[], split="", classes=1, image_size=(1, 1))
    mean = np.array(data.mean) * 255
    pixels = np.stack([mean, mean + 255 * np.array([0.229, 0.224, 0.225])]).round()
    got = data.standardise(data.to_unit(pixels.astype(np.uint8)))
    np.testing.assert_allclose(got, [[0, 0, 0], [1, 1, 1]], atol=0.01)


def test_worker_processes_change_nothing(records):
    data = records(crop_min_area=0.1)
    alone, shared = (
        list(train_batches(data, batch_size=4, steps=3, seed=0, workers=n)) for n in (0, 2)
    )
    assert len(alone) == len(shared) == 3
    for a, b in zip(alone, shared, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_corrupt_record_in_a_worker_is_named_too(records):
    batches = train_batches(records("train"), batch_size=11, steps=1, seed=0, workers=1)
    with pytest.raises(BadInput, match=r"record 10 \(cut.jpg\) cannot be decoded"):
        next(batches)
