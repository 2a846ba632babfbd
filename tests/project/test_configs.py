"""Every config and every study builds, under every argument."""

import ast
import dataclasses
import importlib
import itertools

import jax
import pytest

from configs import digits_sequential, imagenet, lm1b, shakespeare
from odeformer import presets
from tests.helpers.checkout import ROOT
from train.config.border import from_config_dict
from train.devices.mesh import device_mesh
from train.study.grid import from_study_dict

CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("[a-z]*.py") if path.stem != "common"
)


STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("[a-z]*.py"))
ARGUMENTS = {
    "cifar": {
        "dataset": ("cifar10", "cifar100"),
        "variant": ("deit_ti", "deit_s"),
        "size": ("accelerator", "cpu", "smoke"),
    },
    "imagenet": {"variant": ("deit_ti", "deit_s", "vit_b", "vit_l")},
    "lm1b": {"variant": ("gpt_small", "gpt_1b")},
    "shakespeare": {"size": ("cpu", "accelerator")},
}


def arguments(name):
    """Every argument that a config takes."""
    accepted = ARGUMENTS.get(name)
    if accepted is None:
        return [()]
    choices = itertools.product(*accepted.values())
    pairs = (zip(accepted, values, strict=True) for values in choices)
    return [(",".join(f"{key}={value}" for key, value in choice),) for choice in pairs]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds(name):
    module = importlib.import_module(f"configs.{name}")
    assert "python -m train" in module.__doc__
    for argument in arguments(name):
        config = from_config_dict(module.get_config(*argument))
        assert config.mesh.data == -1 and config.mesh.tensor == 1  # whatever number of devices
        if not any(large in str(argument) for large in ("vit_l", "gpt_1b")):
            assert device_mesh(config.mesh).size == jax.device_count()


@pytest.mark.parametrize(("module", "name", "fsdp"), [(imagenet, "vit_l", 8), (lm1b, "gpt_1b", 16)])
def test_the_large_ones_split_their_state(module, name, fsdp):
    config = from_config_dict(module.get_config(f"variant={name}"))
    assert config.mesh.fsdp == fsdp and config.model.width % fsdp == 0
    assert config.batch_size % 256 == config.eval.batch_size % 256 == 0


@pytest.mark.parametrize("name", STUDIES)
def test_study_builds(name):
    module = importlib.import_module(f"configs.studies.{name}")
    assert f"python -m train.study --study=configs/studies/{name}.py" in module.__doc__
    cfg = module.get_config()
    study = from_study_dict(cfg)
    assert len({row.slug for row in study.rows}) == len(study.rows) >= 2
    assert {name for claim in study.claims for name in (claim.row, claim.baseline)} <= {
        row.name for row in study.rows
    }


@pytest.mark.parametrize("name", ["digits", "cifar10_small", "cifar10_gpu"])
def test_the_page_of_claims_has_every_contrast(name):
    """And no other row has been left there; --render prints the table."""
    module = importlib.import_module(f"configs.studies.{name}")
    study = from_study_dict(module.get_config())
    config = study.rows[0].config
    lines = (ROOT / "docs" / "claims.md").read_text().splitlines()
    task = f"{config.data.name}, width {config.model.width}"
    shown = [line.split(" | ")[0:3] for line in lines if f" | {task} | " in line]
    assert shown == [
        [f"| {claim.text}", task, f"{claim.row} against {claim.baseline}"] for claim in study.claims
    ]


@pytest.mark.parametrize("name", ["deit_ti", "deit_s", "vit_b", "vit_l"])
def test_sizes_are_the_presets(name):
    cfg = imagenet.get_config(f"variant={name}")
    config, preset = from_config_dict(cfg).model, presets.vit(name)
    same = ("image_size", "patch_size", "classes", "width", "heads", "mlp", "pool")
    assert {key: getattr(config, key) for key in same} == {
        key: getattr(preset, key) for key in same
    }
    assert config.depth.layers == preset.depth.layers


def test_texts_are_the_presets():
    config = from_config_dict(shakespeare.get_config("size=accelerator")).model
    preset = presets.lm("gpt_nano", dropout=0.2, dtype="bfloat16")
    assert config == dataclasses.replace(preset, depth=config.depth)
    assert config.depth.layers == preset.depth.layers


def test_a_billion_parameters_are_the_preset():
    config = from_config_dict(lm1b.get_config("variant=gpt_1b")).model
    preset = presets.lm("gpt_1b", dtype="bfloat16")
    assert config == dataclasses.replace(preset, depth=config.depth)
    assert config.depth.layers == preset.depth.layers


def test_gpt_2_is_the_preset_but_for_tokens_and_positions():
    config = from_config_dict(lm1b.get_config()).model
    preset = presets.lm(
        "gpt_small", vocabulary=32_768, block_size=256, positions="rotary", dtype="bfloat16"
    )
    assert config == dataclasses.replace(preset, depth=config.depth)
    assert config.depth.layers == preset.depth.layers


def test_the_digits_are_the_preset():
    config = dataclasses.replace(from_config_dict(digits_sequential.get_config()).model)
    assert config == presets.vit("digits", depth={"solver": "lie_trotter"})


@pytest.mark.parametrize("name", ["common", *CONFIGS, *(f"studies/{name}" for name in STUDIES)])
def test_configs_import_nothing_else(name):
    tree = ast.parse((ROOT / "configs" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert modules <= {"ml_collections", "configs", "typing"}
