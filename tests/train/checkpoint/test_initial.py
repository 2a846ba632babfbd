"""Weights that a run begins with: what becomes of each parameter, and what is refused."""

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from odeformer import make_model
from odeformer.interop import load_config, load_pretrained, resample_positions, save_pretrained
from tests.helpers.checkout import ROOT
from tests.helpers.programs import interrupt_at_second_score, run
from tests.helpers.tiny import make_tiny, make_tiny_language
from train.checkpoint.checksums import leaf_name
from train.checkpoint.initial import check_initial, load_initial
from train.checkpoint.metadata import read_metadata
from train.checkpoint.saver import Saver
from train.checkpoint.transfer import differences, find_source, plan_initial
from train.checkpoint.weights import load_model
from train.checkpoint.workdir import read_config, record_run
from train.config.border import from_config_dict, to_dict
from train.config.stored import resume_conflicts
from train.data.pipeline import Position
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.loop import train
from train.optimizer import make_optimizer
from train.programs import Programs
from train.state import abstract_state

WORKDIR_0 = str(ROOT / "tests" / "data" / "workdir_0")
PRETRAINED = ROOT / "tests" / "data" / "interop"

# What the model of tests/data/interop/vit is.
VIT = {"model.image_size": 8, "model.patch_size": 4, "model.channels": 3, "model.classes": 3}
VIT |= {"model.width": 8, "model.heads": 2, "model.mlp": 12, "model.pool": "token"}
VIT |= {"depth.layers": 2, "depth.share": 1, "depth.solver": "lie_trotter"}
VIT |= {"model.activation": "gelu", "model.norm_epsilon": 1e-12, "init.path": f"{PRETRAINED}/vit"}


def config_of(changes=None):
    """The run of tests/data/workdir_0, which begins with the weights of that."""
    cfg = make_tiny()
    cfg.depth.solver = "heun"
    cfg.model.mlp = 16
    return from_config_dict(cfg, {"init.path": WORKDIR_0} | (changes or {}))


def plan_of(changes=None):
    config = config_of(changes)
    return plan_initial(config, find_source(config))


def some_state(config):
    """A state of zeros and ones, which is not compiled."""
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    abstract = abstract_state(config, optimizer, mesh)
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), abstract)
    ones = jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), abstract)
    return dataclasses.replace(zeros, params=ones.params), optimizer, mesh


def loaded(changes, workdir):
    """The first state of a run, what is recorded of it, and the state that it replaces."""
    config = config_of(changes)
    before, optimizer, mesh = some_state(config)
    return *load_initial(workdir, config, optimizer, mesh, before), before


def by_name(tree):
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("changes", "resampled", "new", "unused"),
    [
        ({}, {}, [], []),
        ({"depth.solver": "rk4", "depth.steps": 1}, {}, [], []),
        ({"model.classes": 2}, {}, ["head/bias", "head/kernel"], []),
        (
            {"model.image_size": 12},
            {"positions": "resampled from 4 x 4 patches to 6 x 6"},
            [],
            [],
        ),
        (
            {"model.image_size": [4, 16]},  # as many patches, elsewhere
            {"positions": "resampled from 4 x 4 patches to 2 x 8"},
            [],
            [],
        ),
        ({"model.positions": "sincos"}, {}, [], ["positions"]),
        (
            {"init.exclude": ["**/qkv", "positions"], "model.image_size": 12},
            {},
            [*(f"depth/groups/attention_layer/qkv/{n}" for n in ("bias", "kernel")), "positions"],
            [],
        ),
        (
            {"init.include": ["norm", "head"], "init.exclude": ["**/scale"], "model.classes": 3},
            {},
            None,
            [],
        ),
        (
            VIT | {"model.image_size": [12, 16], "model.pool": "mean"},
            {
                "positions": "resampled from 2 x 2 patches to 3 x 4, without those of 1 token(s) "
                "before the grid"
            },
            [],
            ["class_token"],
        ),
        (VIT | {"model.classes": 4}, {}, ["head/bias", "head/kernel"], []),
    ],
)
def test_what_becomes_of_each_parameter(changes, resampled, new, unused):
    plan = plan_of(changes)
    assert plan.resampled == resampled and sorted(plan.unused) == unused
    if new is None:
        assert plan.loaded == ("norm/bias",)
    else:
        assert sorted(plan.new) == new


def test_a_model_without_a_head_gets_one():
    path = PRETRAINED / "dinov2_registers"
    there: Any = load_config(path)
    sizes = ("patch_size", "channels", "width", "heads", "mlp", "pool", "layer_scale", "registers")
    changes = {f"model.{name}": getattr(there, name) for name in sizes}
    changes |= {"model.image_size": [12, 20], "depth.layers": there.depth.layers}
    plan = plan_of(changes | {"depth.share": 1, "init.path": str(path)})
    assert plan.new == ("head/bias", "head/kernel") and "registers" in plan.loaded
    assert plan.resampled == {"positions": "resampled from 3 x 3 patches to 3 x 5"}


def test_weights_of_a_run_at_another_size_with_another_head(workdir):
    """The averaged ones, bit for bit; the average and the optimiser's state begin with them."""
    changes = {"model.image_size": 12, "model.classes": 2}
    state, initial, before = loaded(changes, workdir)
    _, variables = load_model(WORKDIR_0)
    theirs, ours, first = map(by_name, (variables["params"], state.params, before.params))
    expected = theirs | {name: first[name] for name in ("head/bias", "head/kernel")}
    expected["positions"] = resample_positions(theirs["positions"], (4, 4), (6, 6))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)

    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, before.opt_state)
    assert jax.tree.leaves(state.ema)[0] is not jax.tree.leaves(state.params)[0]
    layouts = lambda tree: [(x.sharding, x.dtype, x.shape) for x in jax.tree.leaves(tree)]
    assert layouts(state) == layouts(before)

    assert initial.step == 6 and initial.path == WORKDIR_0
    begins, *others = initial.lines(is_new=True)
    assert begins == (
        f"it begins with the weights of {WORKDIR_0} (step 6): {len(ours) - 3} parameters as they "
        "are; positions resampled from 4 x 4 patches to 6 x 6; new: head/bias, head/kernel"
    )
    assert others == []
    assert initial.lines(is_new=False) == [
        f"it began with the weights of {WORKDIR_0} (step 6), which are not read again"
    ]


def test_weights_of_a_pretrained_model_go_to_another_size_by_its_own_rule(workdir):
    state, initial, _ = loaded(VIT | {"model.image_size": [12, 20], "depth.solver": "rk4"}, workdir)
    _, variables = load_pretrained(PRETRAINED / "vit", image_size=(12, 20))
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    assert initial.step is None and initial.lines(is_new=True)[1:] == [
        "they were trained with another config: depth.solver 'lie_trotter' there and 'rk4' here"
    ]


def test_what_the_run_sets_otherwise_is_said():
    config = config_of(VIT | {"model.activation": "relu", "depth.adjoint": "store", "seed": 3})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.3))
    found = differences(find_source(config).trained, config.model)
    assert found == ["model.activation 'gelu' there and 'relu' here"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.path": "/nowhere/at/all"}, "'/nowhere/at/all' is no folder: give the folder that"),
        ({"init.path": str(ROOT / "docs")}, "docs holds no config.json: give the folder of a mode"),
        ({"init.path": f"{PRETRAINED}/gpt2"}, "the model of a LMConfig, and a run of config.task"),
        ({"init.include": ["haed"]}, "config.init.include: 'haed' matches no parameter: there are"),
        ({"init.exclude": ["class_token"]}, "config.init.exclude: 'class_token' matches no param"),
        (
            {"model.mlp": 32},
            r"do not fit the model: depth/groups/mlp_layer/down/kernel is \[1, 16, 16\] there and "
            r"\[1, 32, 16\] here; .*up/bias is .*; .*up/kernel is .* here; give the sizes",
        ),
        ({"model.width": 8}, r"here; .* here; .* here and \d+ more; give the sizes"),
        (
            {"model.pool": "token"},
            r"the model: class_token is absent there and \[1, 1, 16\] here; positions is \[1, 1",
        ),
        ({"model.patch_size": 4}, "patches/projection/kernel is .* by config.init.exclude"),
        (
            {"model.classes": 3, "init.include": ["head"]},
            "nothing of it would be loaded: name",
        ),
        (VIT | {"model.heads": 4}, r"qkv/bias is \[2, 3, 2, 4\] there and \[2, 3, 4, 2\] here"),
    ],
)
def test_refusals(changes, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        check_initial(epath.Path(tmp_path), config_of(changes), None)


@pytest.fixture(scope="module")
def of_language(tmp_path_factory):
    """The first state of a run on text, saved as if it had been trained."""
    cfg = make_tiny_language()
    cfg.model.positions = "learned"
    config, path = from_config_dict(cfg), epath.Path(tmp_path_factory.mktemp("text"))
    data = load_splits(config)["train"]
    record_run(path, config, data)
    state, _, _ = some_state(config)
    with Saver(path, config, len(data)) as saver:
        saver.save(state, Position(1, 0), {}, wait=True)
    return cfg, path


def test_embeddings_of_another_tokeniser_are_refused(of_language, tmp_path):
    cfg, path = of_language
    same = from_config_dict(cfg, {"init.path": str(path)})
    check_initial(tmp_path, same, load_splits(same)["train"])

    other = {"init.path": str(path), "data.files": str(ROOT / "README.md")}
    config = from_config_dict(cfg, other)
    data = load_splits(config)["train"]
    with pytest.raises(BadInput, match=r"tokens of another tokeniser: .* or leave the embeddings"):
        check_initial(tmp_path, config, data)
    for change in (
        {"init.exclude": ["embedding"]},
        {"data.tokenizer": str(path / "tokenizer.json")},
    ):
        config = from_config_dict(cfg, other | change)
        check_initial(tmp_path, config, load_splits(config)["train"])


def test_embeddings_of_a_pretrained_model_go_with_its_tokeniser(tmp_path):
    """A folder without one leaves it to the config to name it; another one is refused."""
    published = tmp_path / "published"
    cfg = make_tiny_language()
    cfg.model.update(positions="learned", vocabulary=300)
    cfg.depth.update(share=1, solver="lie_trotter")
    model = make_model(from_config_dict(cfg, {"data.tokenizer": "bpe"}).model)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    save_pretrained(model, variables, published)
    cfg.init.path = str(published)

    def check(**data):
        config = from_config_dict(cfg, {f"data.{name}": value for name, value in data.items()})
        check_initial(tmp_path / "new", config, load_splits(config)["train"])

    with pytest.raises(BadInput, match="has no tokenizer.json, and .*='bpe' makes another one"):
        check(tokenizer="bpe")
    own = from_config_dict(cfg, {"data.tokenizer": "bpe"})
    made = load_splits(own)["train"].tokenizer.to_json()
    (tmp_path / "made.json").write_text(made)
    check(tokenizer=str(tmp_path / "made.json"))

    (published / "tokenizer.json").write_text(made)
    check(tokenizer="bpe")
    with pytest.raises(
        BadInput, match=f"another tokeniser: .*={published}/tokenizer.json, or leave"
    ):
        check(tokenizer="bpe", files=str(ROOT / "README.md"))


def test_runs_on_text(of_language, tmp_path):
    cfg, path = of_language
    with pytest.raises(BadInput, match="a run of task 'language', and config.task is 'images"):
        check_initial(tmp_path, config_of({"init.path": str(path)}), None)

    longer = from_config_dict(cfg, {"init.path": str(path), "model.block_size": 64})
    message = r"position_embedding/embedding is .* \(positions of texts are no grid, and are not"
    with pytest.raises(BadInput, match=message):
        check_initial(tmp_path, longer, None)

    shutil.copy(path / "config.json", tmp_path / "config.json")
    shutil.copy(path / "inputs.json", tmp_path / "inputs.json")
    with pytest.raises(BadInput, match="holds no checkpoint: train that run first"):
        check_initial(path / "new", from_config_dict(cfg, {"init.path": str(tmp_path)}), None)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run of few steps that began with the weights of another, its config and its programs."""
    root = tmp_path_factory.mktemp("tuned")
    shutil.copytree(WORKDIR_0, root / "source")
    cfg = make_tiny()
    cfg.train_steps, cfg.checkpoint.every_steps, cfg.eval.every_steps = 4, 2, 2
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.model.update(mlp=16, dropout=0.0, drop_path=0.0)
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.parallel.update(mode="shard_map", accumulate=2)
    cfg.optimizer.update(freeze=("patches",), rate_factors=("head=2",), layer_decay=0.9)
    cfg.init = dict(path=str(root / "source"), exclude=("head",))
    programs = Programs()
    train(cfg, root / "run", programs=programs)
    return cfg, root, programs


def test_a_run_begins_with_the_weights_and_says_so(tuned, capfd):
    cfg, root, programs = tuned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            train(cfg, root / "cut", programs=programs)
    printed = " ".join("".join(capfd.readouterr()).split())
    assert f"begins with the weights of {root}/source (step 6): 17 parameters as they" in printed
    assert "new: head/bias, head/kernel" in printed
    assert "depth.solver 'heun' there and 'euler' here, depth.layers 2 there and 1 here" in printed

    # From here on nothing is read from there.
    inspected = run("train.inspect", str(root / "run"))
    assert f"begins with the weights of {root}/source (step 6): 17" in inspected.stdout
    shutil.move(root / "source", root / "elsewhere")
    train(cfg, root / "cut", programs=programs)
    printed = " ".join("".join(capfd.readouterr()).split())
    assert f"it began with the weights of {root}/source (step 6), which are not read" in printed
    was, now = (read_metadata(root / name, 4) for name in ("run", "cut"))
    assert was.leaves == now.leaves and was.initial == now.initial
    assert now.initial is not None and now.initial.new == ("head/bias", "head/kernel")
    shutil.move(root / "elsewhere", root / "source")


def test_frozen_weights_are_those_of_the_source_at_the_end(tuned):
    """Their average, that is, bit for bit."""
    _, root, _ = tuned
    before, after = (load_model(root / name)[1]["params"] for name in ("source", "run"))
    jax.tree.map(np.testing.assert_array_equal, after["patches"], before["patches"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["depth"], before["depth"])
    assert all(0 < change < 0.1 for change in jax.tree.leaves(moved))


@pytest.mark.parametrize("path", [None, "/elsewhere"])
def test_a_run_is_resumed_with_the_init_that_it_had_alone(tuned, path):
    cfg, root, programs = tuned
    cfg = cfg.copy_and_resolve_references()
    cfg.init = {} if path is None else dict(path=path, exclude=("head",))
    with pytest.raises(BadInput, match=f"init.path: '{root}/source' in the workdir, '?{path}"):
        train(cfg, root / "run", programs=programs)


def test_weights_given_to_a_run_that_began_without_are_refused(tmp_path):
    shutil.copytree(WORKDIR_0, tmp_path / "run")
    config = from_config_dict(to_dict(read_config(WORKDIR_0)), {"init.path": WORKDIR_0})
    with pytest.raises(BadInput, match="init.path: None in the workdir, '.*workdir_0' given"):
        train(config, tmp_path / "run")


def test_a_folder_is_taken_before_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    path = lambda given: config_of({"init.path": given}).init.path
    assert path("gpt2") == str(tmp_path / "gpt2") and path("./x") == str(tmp_path / "x")
    assert path("facebook/deit-tiny") == "facebook/deit-tiny"


def test_a_source_that_has_gone_is_the_same_place(tmp_path, monkeypatch):
    """Though what is no folder any more looks like a name on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    stored = config_of({"init.path": "runs/x"})
    (tmp_path / "runs" / "x").rmdir()
    again, other = (config_of({"init.path": path}) for path in ("runs/x", "runs/y"))
    assert again.init.path == "runs/x" != stored.init.path
    assert resume_conflicts(stored, again) == []
    assert resume_conflicts(stored, other) == [
        f"init.path: '{tmp_path}/runs/x' in the workdir, 'runs/y' given"
    ]


def test_the_head_of_other_classes_is_warned_about(workdir, capfd):
    """Of as many; a run of an earlier version did not record their names."""
    source = shutil.copytree(WORKDIR_0, workdir / "source")
    config = config_of({"init.path": str(source)})
    data = load_splits(config)["train"]
    for place, names in ((source, "abcdefghij"), (workdir, "0123456789")):
        named = dataclasses.replace(data, class_names=tuple(names))
        other = epath.Path(workdir / f"of_{names}")
        record_run(other, config, named)
        shutil.copy(other / "inputs.json", place / "inputs.json")
    loaded({"init.path": str(source)}, workdir)
    assert "whose classes were a, b, c, d, e, ... and are 0, 1, 2, 3, 4, ...: config.init.exc" in (
        capfd.readouterr().err
    )
