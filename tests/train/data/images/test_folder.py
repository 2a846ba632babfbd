"""Folders of images: their classes and splits, their pixels, and what is refused."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from configs import folder as folder_config
from tests.helpers.photos import SIZES, draw, make_photos
from train.config.border import from_config_dict
from train.data.images import reading
from train.data.images.arrays import Images, channel_moments
from train.data.images.records import Records
from train.data.pipeline import eval_batches, train_batches
from train.data.sizes import with_sizes
from train.data.sources import load_splits
from train.errors import BadInput
from train.tasks import make_task
from train.tasks.task import Keys


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def load(files, **changes):
    cfg = folder_config.get_config()
    cfg.data.files = str(files)
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    return load_splits(from_config_dict(cfg, with_sizes(cfg, flat)))


def names(split):
    """The pixels of each image, as a key."""
    return {image.tobytes() for image in split.images}


def test_a_folder_of_classes_is_cut_by_a_fixed_seed_each_class_in_proportion(photos):
    splits = load(photos)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 14, "validation": 3, "test": 3
    }  # fmt: skip
    for split in splits.values():
        assert split.class_names == ("cat", "dog") and set(split.labels) == {0, 1}
        assert split.image_shape == (8, 8, 3) and split.origin.files == SIZES
    together = [names(split) for split in splits.values()]
    assert len(set.union(*together)) == 20 == sum(map(len, together))

    again = load(photos, seed=1)
    for name, split in splits.items():
        np.testing.assert_array_equal(again[name].images, split.images)


def test_folders_of_splits_are_taken_as_they_stand(tmp_path):
    sizes = {"train": {"a": 4, "b": 3}, "val": {"a": 2, "b": 1}, "test": {"b": 2}}
    for split, by_class in sizes.items():
        make_photos(tmp_path / "set", by_class, split=split)
    splits = load(tmp_path / "set")
    assert [splits[name].labels.tolist() for name in splits] == [
        [0] * 4 + [1] * 3, [0, 0, 1], [1, 1]
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "set" / "test")
    tested = load(tmp_path / "set", data__validation_examples=2)
    np.testing.assert_array_equal(tested["test"].images, splits["validation"].images)
    assert len(tested["validation"]) == 2 and len(tested["train"]) == 5


def test_a_table_of_files_and_labels(photos):
    table = photos.parent / "labels.csv"
    rows = [f"photos/{p.parent.name}/{p.name},{p.parent.name.upper()}" for p in photos.glob("*/*")]
    table.write_text("\ufeff" + "\n".join(["File, Label", *rows, ""]), encoding="utf-8")
    splits, by_folder = load(table), load(photos)
    assert splits["train"].class_names == ("CAT", "DOG")
    for name, split in splits.items():
        np.testing.assert_array_equal(split.images, by_folder[name].images)

    table.write_text("\n".join(rows))
    np.testing.assert_array_equal(load(table)["train"].images, splits["train"].images)

    parts = ["train"] * 16 + ["val"] * 2 + ["TEST"] * 2
    lines = [f"{row},{part}" for row, part in zip(sorted(rows)[::-1], parts, strict=True)]
    table.write_text("\n".join(["file,label,split", *lines]))
    splits = load(table)
    assert [len(split) for split in splits.values()] == [16, 2, 2]
    assert splits["test"].labels.tolist() == [0, 0]  # the first cats, last in the table


def test_images_of_other_sizes_are_cropped_and_scaled_as_those_of_prepared_sets(tmp_path):
    root = make_photos(tmp_path / "photos", size=(40, 30))
    make_photos(root, {"cat": 2}, size=(32, 64))

    # Some lie on their side, and must not be turned twice.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    slope = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    for i in range(20):
        slope.save(root / "cat" / f"slope{i}.png", exif=exif)
    splits = load(root)
    assert splits["train"].image_shape == (16, 16, 3) and splits["train"].is_cropped

    cropped = load(root, data__augment__crop_min_area=0.5)
    train_split = cropped["train"]
    assert isinstance(train_split, Records) and isinstance(cropped["test"], Images)
    index = np.arange(len(train_split))
    np.testing.assert_array_equal(train_split.gather(index)["image"], splits["train"].images)
    first, second = (train_split.gather(index, np.full(len(index), v))["image"] for v in (1, 2))
    assert (first != second).any()


def test_images_that_were_cropped_when_read_are_not_cropped_on_the_device(tmp_path):
    cfg = folder_config.get_config()
    cfg.data.augment = dict(crop_min_area=0.1)
    root = make_photos(tmp_path / "photos", size=(40, 30))
    cfg.data.files = str(make_photos(root, {"cat": 2}, size=(32, 64)))
    config = from_config_dict(cfg, with_sizes(cfg, {}))
    data: Any = load_splits(config)["train"]
    task = make_task(config, data)

    batch = {name: jnp.asarray(v) for name, v in data.gather(np.arange(4), np.ones(4)).items()}
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 4))
    (images,), _ = task.prepare(batch, keys, task.constants())
    np.testing.assert_array_equal(images, task.inputs(batch, task.constants())[0])


def test_a_channel_that_never_changes_is_not_divided_by_zero():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, ..., 0] = 255
    assert channel_moments(images, peak=255.0) == ((0.5, 0.0, 0.0), (0.5, 1.0, 1.0))


def test_a_set_that_does_not_fit_in_memory_is_read_while_the_run_trains(photos, monkeypatch):
    kept = load(photos, model__image_size=16, model__patch_size=4)
    monkeypatch.setattr(reading, "MEMORY_BYTES", 1000)
    streamed = load(photos, model__image_size=16, model__patch_size=4)
    for name, split in streamed.items():
        assert isinstance(split, Records) and isinstance(kept[name], Images)
        images = split.gather(np.arange(len(split)))
        np.testing.assert_array_equal(images["image"], kept[name].images)
        np.testing.assert_array_equal(images["label"], kept[name].labels)
    assert streamed["train"].origin.sha256 != kept["train"].origin.sha256

    batch = next(iter(train_batches(streamed["train"], 4, 2, seed=0)))
    (whole,) = eval_batches(streamed["test"], 3)
    assert (
        batch["image"].shape == (4, 16, 16, 3)
        and whole["label"].tolist() == kept["test"].labels.tolist()
    )


def test_files_that_cannot_be_read_are_named_and_counted(photos, capsys):
    good = load(photos)
    for i, content in enumerate((b"", b"no image", b"\x89PNG\r\n\x1a\n")):
        (photos / "cat" / f"zz{i}.png").write_bytes(content)
    whole = (photos / "dog" / "dog000.png").read_bytes()
    (photos / "dog" / "zz_cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "dog" / ".hidden.png").write_bytes(b"")
    (photos / "readme.txt").write_text("")
    capsys.readouterr()
    found = load(photos, data__validation_examples=3, data__test_fraction=0.15)
    told = capsys.readouterr().err
    for name in ("cat/zz0.png", "cat/zz1.png", "cat/zz2.png", "dog/zz_cut.png"):
        assert f"{name} cannot be read as an image (" in told
    assert "4 of 24 files cannot be read" in told and ".hidden" not in told
    assert "1 files in no class's folder are left out" in told
    for name, split in found.items():
        np.testing.assert_array_equal(split.images, good[name].images)


def refusals(tmp_path):
    """Folders that are refused, each with what the message says."""
    empty = tmp_path / "empty"
    empty.mkdir()
    yield empty, "holds nothing: give a folder that holds a folder of images per class"
    yield tmp_path / "missing", "does not exist"

    draw(tmp_path / "flat" / "x.png")
    yield tmp_path / "flat", "holds 1 files and no folder"
    yield make_photos(tmp_path / "one", {"cat": 5}), "holds one class, 'cat'; two or more"
    yield make_photos(tmp_path / "single", {"cat": 5, "dog": 1}), "the class 'dog' has 1 image"
    alike = make_photos(tmp_path / "alike", {"cat": 5, "Cat": 5})
    yield alike, "the classes 'Cat' and 'cat', whose names are the same but for case"
    (tmp_path / "hollow" / "dog").mkdir(parents=True)
    yield make_photos(tmp_path / "hollow", {"cat": 5}), "dog, the folder of a class, holds no file"

    broken = make_photos(tmp_path / "broken", {"cat": 5})
    for i in range(3):
        draw(broken / "dog" / f"{i}.png")
        (broken / "dog" / f"{i}.png").write_bytes(b"no image")
    yield broken, "the class 'dog' has 0 image"
    none = make_photos(tmp_path / "none", {"cat": 2, "dog": 2})
    for path in none.glob("*/*"):
        path.write_bytes(b"no image")
    yield none, "none of 4 files can be read as an image"

    mixed = make_photos(tmp_path / "mixed", split="train")
    make_photos(make_photos(mixed, split="test"), {"horse": 2})
    yield mixed, "holds folders of splits and, among them, 'horse'"
    twice = make_photos(make_photos(tmp_path / "twice", split="val"), split="validation")
    yield make_photos(twice, split="train"), "'val' and 'validation', both of which"
    untrained = make_photos(tmp_path / "untrained", split="train")
    yield make_photos(untrained, {"fox": 2}, split="test"), "the class 'fox' in its split 'test'"

    for number, (text, message) in enumerate((
        ("", "is empty"),
        ("path,class\n", "the first line of .* is 'path,class': let it name"),
        ("file,label\nx.png,\n", "line 2 of .* has no label"),
        ("file,label,split\nx.png,a,dev\n", "has the split 'dev': train, val and test"),
        ("file,label\nx.png,a\n./x.png,b\n", "lines 2 and 3 of .* name the same file"),
    )):  # fmt: skip
        table = tmp_path / f"{number}.csv"
        table.write_text(text)
        yield table, message


def test_refusals(tmp_path, photos):
    for files, message in refusals(tmp_path):
        with pytest.raises(BadInput, match=message):
            load(files)
    for changes, message in (
        ({"data__test_fraction": 0.05}, "config.data.test_fraction holds out 1 of 20 images of 2"),
        ({"data__validation_examples": 1}, "config.data.validation_examples holds out 1 of 17"),
        ({"data__skip_corrupt": True}, "config.data.skip_corrupt=True has no effect"),
        ({"data__fold": 1}, "config.data.fold=1"),
        ({"data__data_dir": "x"}, "config.data.data_dir='.*x' has no effect"),
        ({"data__name": "digits"}, "config.data.files='.*' has no effect with .*'digits'"),
        ({"data__files": None}, "config.data.files is missing"),
    ):
        with pytest.raises(BadInput, match=message):
            load(photos, **changes)


@pytest.mark.parametrize(
    ("sizes", "size", "mode", "expected"),
    [
        ({"a": 30, "b": 30}, (8, 8), "L", (8, 1, 1)),
        ({"a": 30, "b": 30}, (28, 28), "RGB", (28, 4, 3)),
        ({"a": 30, "b": 30}, (30, 20), "RGB", ((20, 30), 5, 3)),
        ({"a": 30, "b": 30}, (31, 17), "L", (16, 2, 1)),
        ({"a": 30, "b": 30}, (640, 480), "RGB", (64, 8, 3)),
    ],
)
def test_the_sizes_follow_from_the_folder(tmp_path, sizes, size, mode, expected):
    for label, number in sizes.items():
        for i in range(number):
            draw(tmp_path / label / f"{i}.png", size, mode=mode)
    cfg = folder_config.get_config()
    cfg.data.files = str(tmp_path)
    config = from_config_dict(cfg, with_sizes(cfg, {}))
    model: Any = config.model
    assert (model.image_size, model.patch_size, model.channels) == expected
    assert model.classes == 2 and config.batch_size == 8 and config.train_steps == 315

    given = {"train_steps": 50, "batch_size": 4, "model.image_size": 32}
    config = from_config_dict(cfg, with_sizes(cfg, given))
    model = config.model
    assert (config.train_steps, config.batch_size, model.image_size) == (50, 4, 32)
    assert config.optimizer.warmup_steps == 5 and model.patch_size == 4
