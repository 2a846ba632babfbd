"""How a pretrained model's images are prepared."""

import json

import numpy as np
import pytest

from odeformer.interop import ImagePreparation, has_preparation, load_preparation

# As google/vit-base-patch16-224 and facebook/deit-tiny-patch16-224 are published.
VIT = dict(do_normalize=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=224)
DEIT = dict(
    crop_size=224,
    do_center_crop=True,
    do_normalize=True,
    do_resize=True,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
    resample=3,
    size=256,
)


def write(folder, raw):
    (folder / "preprocessor_config.json").write_text(json.dumps(raw))
    return folder


def test_published_files(tmp_path):
    half = (0.5, 0.5, 0.5)
    assert load_preparation(write(tmp_path, VIT)) == ImagePreparation(
        (224, 224), None, "bilinear", 1 / 255, half, half
    )
    deit = load_preparation(write(tmp_path, DEIT))
    assert (deit.resize, deit.crop, deit.resample) == ((256, 256), (224, 224), "bicubic")
    sides = {"height": 8, "width": 12}
    assert load_preparation(write(tmp_path, VIT | {"size": sides})).resize == (8, 12)
    shorter = load_preparation(write(tmp_path, VIT | {"size": {"shortest_edge": 8}}))
    assert shorter.resize == 8
    assert load_preparation(write(tmp_path, VIT | {"do_resize": False})).resize is None


def test_standardised_by_hand(tmp_path):
    pixels = np.array([[[0, 255, 51]]], np.uint8)
    found = load_preparation(write(tmp_path, DEIT)).standardise(pixels)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)
    plain = load_preparation(write(tmp_path, {"do_normalize": False, "do_rescale": False}))
    np.testing.assert_array_equal(plain.standardise(pixels), pixels)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"size": 224}, "lacks image_mean and image_std"),
        (VIT | {"size": {"width": 3}}, "a size that has no height and width: {'width': 3}"),
        (VIT | {"resample": 9}, "resample=9.*0 to 5"),
    ],
)
def test_refusals(tmp_path, raw, message):
    with pytest.raises(ValueError, match=message):
        load_preparation(write(tmp_path, raw))


def test_a_folder_without_the_file(tmp_path):
    with pytest.raises(ValueError, match="holds no preprocessor_config.json"):
        load_preparation(tmp_path)


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("preprocessor_config.json", VIT, True),
        ("config.json", {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}, True),
        ("config.json", {"architectures": ["ViTForImageClassification"]}, False),
        ("model.safetensors", {}, False),
    ],
)
def test_whether_a_folder_says_how_its_images_are_prepared(name, raw, says, tmp_path):
    (tmp_path / name).write_text(json.dumps(raw))
    assert has_preparation(tmp_path) is says
