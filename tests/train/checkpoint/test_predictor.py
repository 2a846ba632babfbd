"""Trained models in use: raw images and texts go in, as a program of one's own gives them."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from odeformer import generate
from tests.helpers.checkout import ROOT
from tests.helpers.photos import make_photos
from tests.helpers.programs import run
from tests.helpers.saved import save
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from train.checkpoint import load_model, load_predictor
from train.checkpoint.metadata import read_metadata
from train.checkpoint.workdir import read_config, read_inputs, read_tokenizer
from train.data.images import digits
from train.data.images.crops import evaluation_crop
from train.data.images.pixels import Encoded
from train.data.sources import load_splits
from train.errors import BadInput
from train.logs.classes import confusion_matrix
from train.logs.metrics import read_metrics, read_scores
from train.loop import train

WORKDIR_0 = ROOT / "tests" / "data" / "workdir_0"


def shrink(cfg):
    cfg.train_steps = 10
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.checkpoint.every_steps = cfg.eval.every_steps = 5
    cfg.eval.batch_size = 360
    return cfg


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits") / "run"
    train(shrink(make_tiny()), workdir)
    return workdir


def train_photos(root, workdir, *more):
    """Trains on root/photos as a user does, in a run of seconds."""
    return run(
        "train.__main__",
        "--config=configs/folder.py",
        f"--workdir={workdir}",
        f"--config.data.files={root}/photos",
        *("--config.model.width=16", "--config.model.heads=2", "--config.model.mlp=32"),
        *("--config.depth.layers=1", "--config.checkpoint.every_steps=3"),
        *more,
    )


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory):
    """A run on a folder of two unequal classes, with five bad files; what it printed is with it."""
    root = tmp_path_factory.mktemp("photos")
    photos = make_photos(root / "photos", {"cat": 22, "dog": 8}, size=(40, 32))
    make_photos(photos, {"cat": 1}, size=(48, 40))
    for i in range(5):
        (photos / "dog" / f"bad{i}.jpg").write_bytes(b"no image")
    done = train_photos(root, root / "run", "--config.train_steps=6")
    assert done.returncode == 0, done.stderr
    return photos, root / "run", done


def test_digits_as_files_are_the_built_in_ones(of_digits, tmp_path):
    """Pixel by pixel, and loss by loss, to the rounding of another brightest value."""
    built_in, root = digits.load(), tmp_path / "digits"
    for name, split in built_in.items():
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = root / name / str(label) / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)

    cfg = shrink(make_tiny())
    cfg.data.update(name="folder", files=str(root))
    train(cfg, tmp_path / "run")
    expected, found = (
        [line[key] for line in read_metrics(workdir) for key in line if key.endswith("/loss")]
        for workdir in (of_digits, tmp_path / "run")
    )
    assert len(expected) == 13  # of 10 steps, 2 validations and a test
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    splits = load_splits(read_config(tmp_path / "run"))
    for name, split in built_in.items():
        np.testing.assert_array_equal(splits[name].images, split.images)
        np.testing.assert_array_equal(splits[name].labels, split.labels)
        assert splits[name].class_names == split.class_names


def test_a_predictor_says_what_evaluation_says_of_every_test_image(of_digits):
    predictor, test = load_predictor(of_digits), digits.load()["test"]
    predictions = predictor.predict(test.images)
    labels = [int(prediction.label) for prediction in predictions]
    scores = read_scores(of_digits)
    assert labels == scores["predicted"].astype(int).tolist()
    assert np.mean(np.array(labels) == test.labels) == pytest.approx(scores["correct"].mean())

    # And the probabilities are those of the pixels standardised by hand.
    model, variables = load_model(of_digits)
    logits = jax.jit(model.apply)(variables, test.standardise(test.to_unit(test.images[:7])))
    expected = np.asarray(jax.nn.softmax(logits))
    found = np.stack([prediction.probabilities for prediction in predictions[:7]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert predictions[0].best(10)[0] == (predictions[0].label, predictions[0].probability)
    assert sum(share for _, share in predictions[0].best(10)) == pytest.approx(1, rel=1e-5)


def test_an_image_is_given_as_array_file_or_one_of_pillow_s(of_digits, tmp_path):
    predictor, images = load_predictor(of_digits), digits.load()["test"].images
    image = Image.fromarray(images[3, ..., 0])
    image.save(tmp_path / "3.png")
    alone = predictor.predict(images[3])
    for raw in (images[3, ..., 0], image, tmp_path / "3.png", str(tmp_path / "3.png")):
        np.testing.assert_array_equal(predictor.predict(raw).probabilities, alone.probabilities)
    both = predictor.predict([tmp_path / "3.png", images[3]])
    assert [prediction.label for prediction in both] == [alone.label] * 2
    assert predictor.predict([]) == []


def test_batches_are_compiled_once_per_size(of_digits):
    predictor, images = load_predictor(of_digits, batch_size=8), digits.load()["test"].images
    for number in (1, 3, 4, 8, 19, 11):  # batches of 1, 4, 4, 8, 8 + 8 + 4 and 8 + 4
        assert len(predictor.predict(images[:number])) == number
    assert predictor._probabilities._cache_size() == 3


def test_images_that_the_model_cannot_take(of_digits, tmp_path):
    with pytest.raises(BadInput, match="batch_size is a whole number, 1 or more; 0 was given"):
        load_predictor(of_digits, batch_size=0)
    predictor = load_predictor(of_digits)
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "bright.png")
    (tmp_path / "none.png").write_bytes(b"no image")
    pixels = np.zeros((8, 8, 1), np.uint8)
    for raw, message in (
        (tmp_path / "wide.png", r"wide.png has 8 x 9 pixels .* images of 8 x 8, none .* scaled"),
        (tmp_path / "bright.png", "bright.png has pixels up to 255: .* are 0 to 16"),
        (tmp_path / "none.png", "none.png cannot be read as an image: Unidentified"),
        (tmp_path / "missing.png", "missing.png cannot be read as an image: FileNotFoundError"),
        (np.zeros((9, 8, 1), np.uint8), "the input has 9 x 8 pixels"),
        (
            np.zeros((8, 8, 3), np.uint8),
            r"shape \[8, 8, 3\]: .* \[height, width, 1\], of 1 channel",
        ),
        (pixels.astype(np.float32), "an array of float32: the model takes pixels of uint8"),
        ([pixels, "missing.png"], "missing.png cannot be read"),
        ([pixels, None], "input 1 is of type NoneType: give the path of an image"),
        (None, "the input is of type NoneType: give the path of an image"),
    ):
        with pytest.raises(BadInput, match=message):
            predictor.predict(raw)


def test_a_workdir_says_what_its_inputs_are(of_digits, tmp_path):
    stored, data = json.loads((of_digits / "inputs.json").read_text()), digits.load()["train"]
    assert stored["task"] == "images" and stored["classes"] == list("0123456789")
    assert stored["image_shape"] == [8, 8, 1] and stored["peak"] == 16
    assert (tuple(stored["mean"]), tuple(stored["std"])) == (data.mean, data.std)

    copy = shutil.copytree(of_digits, tmp_path / "run")
    stored["mean"] = [0.5]
    (copy / "inputs.json").write_text(json.dumps(stored))
    for use in (load_predictor, load_model):
        with pytest.raises(BadInput, match="inputs.json is not what the run was trained with"):
            use(copy)
    with pytest.raises(BadInput, match=r"mean was \(0.5,\) and is \(0.30"):
        train(shrink(make_tiny()), copy)
    for text in ("{", "[]", '{"task": "images"}', '{"task": "none"}'):
        (copy / "inputs.json").write_text(text)
        with pytest.raises(BadInput, match="does not say what the run's inputs are"):
            read_inputs(copy)

    # It is written again by the train command, to the same bytes.
    (copy / "inputs.json").unlink()
    train(shrink(make_tiny()), copy)
    assert (copy / "inputs.json").read_text() == (of_digits / "inputs.json").read_text()


def test_a_workdir_of_before_is_derived_where_its_set_is_built_in(tmp_path):
    assert read_inputs(WORKDIR_0) is None
    predictor, test = load_predictor(WORKDIR_0), digits.load()["test"]
    predictions = predictor.predict(test.images[:64])
    assert predictor.classes == tuple("0123456789")

    model, variables = load_model(WORKDIR_0)
    logits = jax.jit(model.apply)(variables, test.standardise(test.to_unit(test.images[:64])))
    assert [int(prediction.label) for prediction in predictions] == logits.argmax(-1).tolist()

    copy = shutil.copytree(WORKDIR_0, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "6" / "record")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["name"] = "mnist"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="no inputs.json, .* classes of 'mnist', and the pixels'"):
        load_predictor(copy)


def test_weights_are_read_without_the_optimiser_s_state(of_digits, tmp_path):
    """Damage to what is not read is not noticed; damage to what is read is."""
    copy = shutil.copytree(of_digits, tmp_path / "run")
    record = copy / "checkpoints" / "10" / "record" / "record.json"
    before = load_model(copy, step=10)[1]
    metadata = read_metadata(copy, 10)

    for part, is_read in (("opt_state", False), ("params", False), ("ema", True)):
        leaves = {
            name: dataclasses.replace(leaf, checksum="0" * 16) if name.startswith(part) else leaf
            for name, leaf in metadata.leaves.items()
        }
        assert leaves != metadata.leaves
        record.write_text(json.dumps(dataclasses.replace(metadata, leaves=leaves).to_json()))
        if is_read:
            with pytest.raises(BadInput, match=r"damaged .*ema/.* is the first"):
                load_model(copy, step=10)
        else:
            jax.tree.map(np.testing.assert_array_equal, load_model(copy, step=10)[1], before)


def test_a_folder_of_unequal_classes_with_bad_files_trains(of_photos):
    photos, workdir, done = of_photos
    for i in range(5):
        assert f"dog/bad{i}.jpg cannot be read as an image" in done.stderr
    assert "5 of 35 files cannot be read" in done.stderr
    assert "2 classes: cat 22, dog 8" in done.stdout
    assert "'cat', the majority, has 73.3% of the examples" in done.stdout
    assert "images of 32 x 32 pixels and 3 channels in patches of 4" in done.stdout
    assert "6 steps of 4 examples" in done.stdout
    assert "test/accuracy" in read_metrics(workdir)[-1]
    inputs = read_inputs(workdir)
    assert inputs.classes == ("cat", "dog") and inputs.origin["files"] == {"cat": 22, "dog": 8}

    # A file is cropped and scaled as evaluation does it, whatever its size.
    path = photos / "cat" / "cat001.png"
    crop = evaluation_crop(Encoded(path.read_bytes()), inputs.image_shape)
    np.testing.assert_array_equal(load_predictor(workdir).read(path), crop)


def test_predict_prints_the_best_classes(of_photos, of_digits, tmp_path):
    photos, workdir, _ = of_photos
    files = [str(photos / "cat" / "cat001.png"), str(photos / "dog" / "dog001.png")]
    done = run("train.predict", f"--workdir={workdir}", "--json", *files)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    expected = load_predictor(workdir).predict(files)
    for line, file, prediction in zip(lines, files, expected, strict=True):
        assert line["input"] == file
        best = [(one["class"], one["probability"]) for one in line["classes"]]
        assert best == prediction.best() and len(best) == 2

    bad = run("train.predict", f"--workdir={workdir}", *files, str(photos / "dog" / "bad0.jpg"))
    assert bad.returncode == 1 and "1 of 3 inputs cannot be read" in bad.stderr
    assert "warning: " in bad.stderr and "bad0.jpg cannot be read as an image" in bad.stderr
    assert "cat" in bad.stdout and "%" in bad.stdout
    for arguments, message in (
        ([f"--workdir={workdir}"], "nothing to predict: give an image"),
        ([f"--workdir={tmp_path}", *files], "holds no run"),
        ([f"--workdir={of_digits}", *files], "none of the inputs can be read"),
    ):
        refused = run("train.predict", *arguments)
        assert refused.returncode == 2 and message in refused.stderr


def test_evaluate_prints_and_draws_the_classes(of_photos):
    _, workdir, _ = of_photos
    done = run("train.evaluate", f"--workdir={workdir}", "--split=train", "--confusion")
    assert done.returncode == 0, done.stderr
    assert "accuracy by class" in done.stdout and "cat" in done.stdout
    assert "'cat', the majority, has" in done.stdout
    picture = workdir / "confusion_train.png"
    assert f"confusion matrix: {picture}" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = run("train.evaluate", f"--workdir={workdir}", "--solvers=all", "--confusion")
    assert refused.returncode == 2 and "leave out --solvers" in refused.stderr


def test_the_examples_of_the_page_run(of_photos, of_digits, tmp_path, monkeypatch, capsys):
    photos, workdir, _ = of_photos
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").symlink_to(workdir)
    (tmp_path / "runs" / "x").symlink_to(of_digits)
    for name in ("1", "2"):
        path = tmp_path / "new" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.open(photos / "cat" / f"cat00{name}.png").save(path)

    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "trained-model.md").read_text()
    blocks = re.findall(r"^```\{\.python.*\n((?s:.*?))^```", page, flags=re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/trained-model.md", "exec"), {})
    label, probability = capsys.readouterr().out.split()[:2]
    assert label in ("cat", "dog") and 0 < float(probability) < 1


def test_the_confusion_matrix_counts_pairs():
    scores = {"label": np.float32([0, 0, 1, 2, 2]), "predicted": np.float32([0, 1, 1, 0, 0])}
    assert confusion_matrix(scores, 3).tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]


def test_a_run_on_a_folder_resumes_bit_for_bit_and_notices_a_change(of_photos, tmp_path):
    """It stopped after step 3; a file is added, another renamed, and all is put back again."""
    photos, whole, _ = of_photos
    resumed, cat = shutil.copytree(whole, tmp_path / "run"), photos / "cat"
    shutil.rmtree(resumed / "checkpoints" / "6")

    # Steps and batch are those of the run, not what the changed folder would suggest.
    shutil.copy(cat / "cat000.png", cat / "zz.png")
    done = train_photos(photos.parent, resumed)
    assert done.returncode == 2 and "images has changed" in done.stderr
    assert "'cat' had 22 images and has 23" in done.stderr
    assert read_config(resumed) == read_config(whole)

    (cat / "zz.png").unlink()
    (cat / "cat000.png").rename(cat / "other.png")
    done = train_photos(photos.parent, resumed)
    assert done.returncode == 2 and "another name, content or split" in done.stderr

    (cat / "other.png").rename(cat / "cat000.png")
    done = train_photos(photos.parent, resumed)
    assert done.returncode == 0 and "resumed at step 3" in done.stdout
    was, now = (read_metadata(workdir, 6) for workdir in (whole, resumed))
    assert now.leaves == was.leaves and now.inputs == was.inputs is not None


def test_texts_are_classified(opinions_dir, tmp_path):
    save(make_tiny_sentences(opinions_dir), tmp_path / "run")
    predictor, tokenizer = load_predictor(tmp_path / "run"), read_tokenizer(tmp_path / "run")
    model, variables = load_model(tmp_path / "run")
    text = "a good film, and a long one, with more words than fit"
    (tokens,) = tokenizer.encode(text)
    tokens = tokens[None, :12].astype(np.int32)
    logits = jax.jit(model.apply)(variables, tokens, np.ones(tokens.shape, bool))
    expected = np.asarray(jax.nn.softmax(logits))[0]
    np.testing.assert_allclose(predictor.predict(text).probabilities, expected, rtol=1e-5)
    with pytest.raises(BadInput, match="takes texts"):
        predictor.predict(["good", ""])

    (tmp_path / "lines.txt").write_text(f"\n{text}\n")
    done = run(
        "train.predict", f"--workdir={tmp_path / 'run'}", "--json", str(tmp_path / "lines.txt")
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["input"] for line in lines] == [text]
    assert lines[0]["classes"][0]["class"] == predictor.predict(text).label


def test_text_is_continued(tmp_path):
    cfg = make_tiny_language()
    cfg.depth.update(layers=1, share=1, solver="euler")
    save(cfg, tmp_path)
    predictor = load_predictor(tmp_path)
    texts, sampling = ["The licence", "A"], {"max_new_tokens": 3, "temperature": 0}
    continued = predictor.predict(texts, **sampling)

    tokenizer = read_tokenizer(tmp_path)
    prompts = [[tokenizer.end, *tokens.tolist()] for tokens in tokenizer.encode(texts)]
    new = generate(*load_model(tmp_path), prompts, end=tokenizer.end, **sampling)
    assert continued == [tokenizer.decode(tokens) for tokens in new]
    with pytest.raises(BadInput, match="takes texts"):
        predictor.predict("")
    with pytest.raises(BadInput, match="max_new_tokens"):
        predictor.predict("x", max_new_tokens=-1)
    refused = run("train.predict", f"--workdir={tmp_path}", "x.png")
    assert refused.returncode == 2 and "python -m train.generate" in refused.stderr
