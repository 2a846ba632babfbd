"""Pretrained weights on a config's data: solvers swapped, inputs prepared as the folder says."""

import dataclasses
import json
import re

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from odeformer import LM, LMConfig, ViT, ViTConfig
from odeformer.interop import ImagePreparation, save_pretrained
from tests.helpers.checkout import ROOT
from tests.helpers.programs import run, start
from train import evaluate
from train.data.images import digits
from train.data.images.pixels import Decoded
from train.data.images.records import Records
from train.data.images.standardised import as_prepared
from train.errors import BadInput
from train.export.weights import bytes_as_bpe

SIZES = dict(width=8, heads=2, mlp=16)
DEPTH = {"layers": 2, "solver": "lie_trotter"}
IMAGES = ViTConfig(8, 4, 1, 10, **SIZES, depth=DEPTH)
TEXTS = LMConfig(vocabulary=260, block_size=32, **SIZES, positions="learned", depth=DEPTH)
PREPARED = {"do_resize": False, "rescale_factor": 1 / 255, "image_mean": [0.4], "image_std": [0.3]}

DIGITS = "--config=configs/digits.py"
PYDOCS = (
    "--config=configs/pydocs.py",
    "--config.data.name=files",
    f"--config.data.files={ROOT}/LICENSE",
    "--config.data.held_out_fraction=0.2",
)


def write(folder, model, **files):
    """Writes a model of random weights in the published layout, and other JSON files next to it."""
    shape = (1, 8, 8, 1) if isinstance(model, ViT) else (1, 4)
    dtype = "float32" if isinstance(model, ViT) else "int32"
    inputs = jax.ShapeDtypeStruct(shape, dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    save_pretrained(model, variables, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return variables


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    return folder, write(folder, ViT(IMAGES), preprocessor_config=PREPARED)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    write(folder, LM(TEXTS), tokenizer=json.loads(bytes_as_bpe().to_str()))
    return folder


def rows_of(table):
    """The cells of each row, by solver and steps."""
    rows = [re.findall(r"[^│┃]+", line) for line in table.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_solvers_and_steps_under_pretrained_weights(vit, monkeypatch, capsys):
    """Each loss is that of the images, prepared by hand, under the same depth."""
    folder, variables = vit
    flags = ("--solvers=lie_trotter,heun", "--steps=2")
    start(monkeypatch, evaluate, f"--init={folder}", DIGITS, *flags)
    rows = rows_of(capsys.readouterr().out)
    assert [key for key in rows if "rtol" not in key[1]] == [("lie_trotter", "2"), ("heun", "2")]

    test = digits.load()["test"]
    images = ((test.images / 16.0 - 0.4) / 0.3).astype(np.float32)
    for (name, steps), cells in rows.items():
        depth = {**DEPTH, "solver": name.split()[0]}
        depth |= {"steps": int(steps)} if steps.isdecimal() else {"rtol": 1e-2, "max_steps": 256}
        model = ViT(dataclasses.replace(IMAGES, depth=depth))
        logits = jax.jit(model.apply)(variables, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, test.labels)
        assert float(cells[0]) == pytest.approx(float(losses.mean()), abs=1e-3), (name, steps)


def test_one_row_as_the_weights_were_trained(vit, monkeypatch, capsys):
    """With the table of classes, as of a run; a flag of the depth acts."""
    start(monkeypatch, evaluate, f"--init={vit[0]}", DIGITS, "--config.depth.solver=euler")
    said = capsys.readouterr().out
    assert list(rows_of(said))[:1] == [("euler *", "1")] and "accuracy by class" in said


def test_a_language_model_and_its_tokeniser(lm, monkeypatch, capsys):
    """The vocabulary is larger than the tokeniser's; a causal model has no adaptive rows."""
    monkeypatch.setenv("COLUMNS", "120")
    start(monkeypatch, evaluate, f"--init={lm}", *PYDOCS, "--solvers=lie_trotter,tsit5")
    rows = rows_of(capsys.readouterr().out)
    assert list(rows) == [("lie_trotter *", "1"), ("tsit5", "1")]
    assert 0 < float(rows["tsit5", "1"][0]) < 50


def test_a_folder_that_does_not_say_how_images_are_prepared(tmp_path, monkeypatch, capsys):
    write(tmp_path, ViT(IMAGES))
    start(monkeypatch, evaluate, f"--init={tmp_path}", DIGITS)
    assert "has no preprocessor_config.json: images are standard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scale", "factor"), [(1 / 255, 1.0), (1 / 16, 1.0), (1 / 127.5, 2.0), (1.0, 255.0)]
)
def test_pixels_are_brought_to_the_range_of_the_preparation(scale, factor):
    """That of the data set is 0 to 16; published preparations are for 0 to 255."""
    split = digits.load()["test"]
    prepared = as_prepared(
        split, ImagePreparation(None, None, "bilinear", scale, mean=(0.5,), std=(0.25,))
    )
    assert len(prepared) == len(split) and prepared.class_names == split.class_names
    found = prepared.standardise(prepared.to_unit(split.images[:3]))
    wanted = (factor * split.images[:3] / 16 - 0.5) / 0.25
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("resize", "crop", "resample", "box", "size"),
    [
        (8, (6, 6), "bilinear", (14.5, 2.5, 29.5, 17.5), (6, 6)),  # 3/4 of the shorter side
        ((6, 6), None, "nearest", (0, 0, 44, 20), (6, 6)),  # stretched
        ((8, 8), (6, 6), "lanczos", (5.5, 2.5, 38.5, 17.5), (6, 6)),  # 3/4 of the stretched image
    ],
)
def test_images_of_varying_size_are_cut_as_the_folder_says(resize, crop, resample, box, size):
    """By hand, with Pillow, of an image of 44 x 20 pixels."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 44, 3), np.uint8))
    records = Records(
        _Sources([{"image": Decoded(image), "label": 0}]), "test", classes=2, image_size=(6, 6)
    )
    preparation = ImagePreparation(resize, crop, resample, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    found = as_prepared(records, preparation).gather(np.array([0]))["image"][0]
    filter = Image.Resampling[resample.upper()]
    np.testing.assert_array_equal(found, np.asarray(image.resize(size, filter, box)))


class _Sources(list):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_crops_in_memory_that_are_not_the_folders_are_reported(capsys):
    split = dataclasses.replace(digits.load()["test"], is_cropped=True)
    ours = ImagePreparation(256, (224, 224), "bicubic", 1 / 16, (0.5,), (0.5,))
    as_prepared(split, ours)
    assert capsys.readouterr().err == ""
    as_prepared(split, dataclasses.replace(ours, resample="bilinear"))
    assert "not as the pretrained model's were (the middle 87.5% of" in capsys.readouterr().err


def test_a_mean_of_other_channels_is_refused():
    preparation = ImagePreparation(None, None, "bilinear", 1 / 255, (0.5,) * 3, (0.5,))
    with pytest.raises(BadInput, match="images have 3 channels by their mean .* the data set's 1"):
        as_prepared(digits.load()["test"], preparation)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((DIGITS, "--workdir=x"), r"--workdir belongs to a run, and --init=.* leave one of the"),
        ((DIGITS, "--step=3"), r"--step belongs to a run"),
        ((DIGITS, "--confusion"), r"--confusion draws into a run's workdir"),
        ((DIGITS, "--config.model.width=16"), r"--config.model.width has no effect with --init"),
        ((DIGITS, "--config.depth.layers=4"), r"--config.depth.layers has no effect with --init"),
        ((DIGITS, "--config.depth.share=1"), r"--config.depth.share has no effect with --init"),
        ((DIGITS, "--steps=2,0"), r"--steps are whole numbers, 1 or more.*'0' was given"),
        ((DIGITS, "--solvers=rk5"), r"unknown solver 'rk5'"),
        (PYDOCS, r"holds a model of task 'images', and --config one of task 'language'"),
        ((), r"--config is missing: give a file of configs"),
    ],
)
def test_refusals(vit, flags, message):
    done = run("train.evaluate", f"--init={vit[0]}", *flags)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr


def test_models_that_do_not_fit(vit, lm, tmp_path):
    """The data set, the tokeniser, or the folder itself."""

    def refused(folder, *flags):
        done = run("train.evaluate", f"--init={folder}", *flags)
        assert done.returncode == 2, done.stderr
        return done.stderr

    write(tmp_path / "classes", ViT(dataclasses.replace(IMAGES, classes=7)))
    said = refused(tmp_path / "classes", DIGITS)
    assert "'digits' has a number of classes of 10, the pretrained model 7: give the" in said
    assert f"--init={tmp_path}/none: '{tmp_path}/none' is no folder" in refused(
        tmp_path / "none", DIGITS
    )

    (lm_copy := tmp_path / "lm").mkdir()
    for path in lm.iterdir():
        (lm_copy / path.name).write_bytes(path.read_bytes())
    assert "task 'language', and --config one of task 'images'" in refused(lm_copy, DIGITS)
    (lm_copy / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    assert "is not a byte-level tokenizer.json" in refused(lm_copy, *PYDOCS)
    (lm_copy / "tokenizer.json").unlink()
    said = refused(lm_copy, *PYDOCS, "--config.data.tokenizer=bpe")
    assert "has no tokenizer.json, and config.data.tokenizer='bpe' would make another" in said

    small = LM(dataclasses.replace(TEXTS, vocabulary=100))
    write(tmp_path / "small", small, tokenizer=json.loads(bytes_as_bpe().to_str()))
    assert "tokenizer.json has 257 tokens, and the model 100" in refused(
        tmp_path / "small", *PYDOCS
    )
