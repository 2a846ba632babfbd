"""Runs whose weights over depth are refined: the state's maps, and runs cut off on either side."""

import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odeformer import DepthConfig, make_model, project
from tests.helpers.programs import timeless
from tests.helpers.tiny import make_tiny
from train import project as program
from train.checkpoint.checksums import checksums
from train.checkpoint.listing import SOUND, list_checkpoints
from train.checkpoint.metadata import read_metadata
from train.checkpoint.restore import restore_step, restore_weights
from train.checkpoint.transfer import find_source, plan_initial
from train.checkpoint.weights import load_model, load_params, read_weights
from train.checkpoint.workdir import checkpoint_folder, read_config
from train.command_line import run
from train.config.border import from_config_dict
from train.config.refining import at_step
from train.config.stored import for_evaluation, from_stored
from train.config.tables import OPTIMIZERS
from train.devices.mesh import abstract_parameters, one_device_mesh
from train.errors import BadInput
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import make_optimizer
from train.programs import Programs
from train.refinement import check_refinable, make_refine, refinement_maps
from train.state import expected_state

SHARED = dict(layers=4, share=4, solver="euler", refine_at=(3,))
HAT = dict(layers=4, share=1, basis="hat", coefficients=3, solver="euler", refine_at=(3,))
WAVES = dict(layers=4, share=1, basis="fourier", coefficients=3, solver="euler", refine_at=(3,))


def make_config(depth, **optimizer):
    cfg = make_tiny()
    cfg.depth.update(depth)
    cfg.optimizer.update(optimizer)
    return from_config_dict(cfg)


@functools.cache
def filled(config):
    """A state of random numbers above 0, as squares are."""
    shapes = expected_state(config, one_device_mesh())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape).astype(x.dtype)), shapes)


def kernel(tree):
    return np.asarray(tree["depth"]["groups"]["mlp_layer"]["up"]["kernel"])


def adam_of(opt_state):
    (found,) = [
        part
        for part in jax.tree.leaves(opt_state, is_leaf=lambda x: hasattr(x, "nu"))
        if hasattr(part, "nu")
    ]
    return found


@pytest.mark.parametrize("depth", [SHARED, WAVES], ids=["constant", "fourier"])
def test_every_part_of_a_state_is_refined(depth):
    """Weights and average alike; Adam's m and v by hand; all else of the state unchanged."""
    config = make_config(depth, ema_decay=0.9)
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), one_device_mesh()
    state = filled(config)
    fine = make_refine(config, optimizer, mesh, 3)(state)

    expected = expected_state(config, mesh, 3)
    assert jax.tree.map(jnp.shape, fine) == jax.tree.map(jnp.shape, expected)

    def by_hand(w, m_scale, new):
        w = kernel(w)
        if depth is SHARED:
            return np.repeat(w, 2, axis=0) * m_scale
        return np.concatenate([w, np.broadcast_to(new(w), (4, *w.shape[1:]))])

    zero, mean = (lambda w: 0 * w[:1]), (lambda w: w.mean(axis=0, keepdims=True))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(kernel(fine.params), by_hand(state.params, 1, zero))
    close(kernel(fine.ema), by_hand(state.ema, 1, zero))

    before, after = adam_of(state.opt_state), adam_of(fine.opt_state)
    close(kernel(after.mu), by_hand(before.mu, 1 / 2, zero))
    close(kernel(after.nu), by_hand(before.nu, 1 / 4, mean))

    np.testing.assert_array_equal(after.count, before.count)
    np.testing.assert_array_equal(after.nu["head"]["kernel"], before.nu["head"]["kernel"])
    np.testing.assert_array_equal(fine.guard.recent[:, 0], state.guard.recent[:, 0])

    # 3 coefficients become 7, whose gradient's norm may be the root of 7 / 3 times as large.
    factor = 1 if depth is SHARED else math.sqrt(7 / 3)
    close(fine.guard.recent[:, 1], factor * state.guard.recent[:, 1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_is_refined(name):
    """On shapes alone: what it keeps becomes what a run of the finer depth keeps."""
    config = make_config(SHARED, name=name)
    check_refinable(config, make_optimizer(config.optimizer, 6), one_device_mesh())


def test_an_optimiser_of_another_state_is_refused():
    """One that keeps the weights of earlier steps, of which nobody knows how they are refined."""
    config = make_config(SHARED)
    keeps = optax.GradientTransformation(lambda params: {"old": params}, lambda u, s, p: (u, s))
    with pytest.raises(BadInput, match=r"'adamw' it is not known how its opt_state/old/depth/"):
        check_refinable(config, keeps, one_device_mesh())


def test_moments_between_nodes_are_halved():
    maps = refinement_maps(DepthConfig(layers=4, basis="hat", coefficients=3))
    np.testing.assert_allclose(maps.first, maps.weights / 2)
    np.testing.assert_allclose(maps.second, maps.weights / 4)
    np.testing.assert_allclose(maps.weights.sum(axis=1), 1)


def test_the_config_by_step():
    config = make_config(SHARED | {"refine_at": (2, 4)})
    depths = [at_step(config, step).model.depth for step in range(7)]
    assert [depth.share for depth in depths] == [4, 4, 2, 2, 1, 1, 1]
    assert [depth.refine_at for depth in depths] == [(2, 4)] * 2 + [(4,)] * 2 + [()] * 3
    assert at_step(at_step(config, 2), 5) == at_step(config, 5) and at_step(config, 0) is config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run refined after step 3 of 6, with a checkpoint of every step; and its programs."""
    cfg, programs = make_tiny(), Programs()
    cfg.depth.update(SHARED)
    cfg.optimizer.ema_decay = 0.9
    cfg.checkpoint.update(every_steps=1, keep=6)
    workdir = tmp_path_factory.mktemp("run")
    train(cfg, workdir, programs=programs)
    return cfg, workdir, programs


def state_of(workdir, step):
    config = read_config(workdir)
    return restore_step(workdir, step, expected_state(config, one_device_mesh(), step))[0]


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_cut_off_around_its_refinement_ends_as_one_that_was_not(finished, step, tmp_path):
    """From the last checkpoint before it, and from the first one after it: bit for bit."""
    cfg, whole, programs = finished
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for later in range(step + 1, 7):
        shutil.rmtree(checkpoint_folder(workdir) / str(later))

    train(cfg, workdir, programs=programs)
    assert checksums(state_of(workdir, 6)) == checksums(state_of(whole, 6))
    lines, expected = ([timeless(x) for x in read_metrics(w)] for w in (workdir, whole))
    assert lines == expected


def test_what_a_refined_run_says_of_itself(finished):
    """Its metrics, its checkpoints' metadata, and what inspects them."""
    _, workdir, _ = finished
    (line,) = [line for line in read_metrics(workdir) if "depth/sets" in line]
    assert (line["step"], line["depth/sets"], line["depth/groups"]) == (3, 2, 2)

    depths = [from_stored(read_metadata(workdir, step).config).model.depth for step in range(1, 7)]
    assert [depth.share for depth in depths] == [4, 4, 2, 2, 2, 2]
    assert [depth.refine_at for depth in depths] == [(3,)] * 2 + [()] * 4
    assert read_config(workdir).model.depth.share == 4

    entries = list_checkpoints(workdir, read_config(workdir))
    assert {entry.state for entry in entries} == {SOUND} and len(entries) == 6


def test_weights_of_either_side_are_evaluated(finished):
    """Those of before the refinement are refined: the model computes what they did."""
    _, workdir, _ = finished
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    model, variables = load_model(workdir, step=2)
    assert model.config.depth.share == 2 and model.config.depth.refine_at == ()
    assert kernel(variables["params"]).shape[0] == 2

    coarse = read_config(workdir).model
    weights, _ = restore_weights(workdir, 2, abstract_parameters(coarse, one_device_mesh()))
    before = jax.jit(make_model(coarse).apply)({"params": weights}, images)
    after = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)

    newest, variables = load_model(workdir)
    assert newest.config == model.config
    np.testing.assert_array_equal(kernel(variables["params"]), kernel(state_of(workdir, 6).ema))

    with pytest.raises(BadInput, match="refined as its run will be, does not fit the model"):
        load_params(workdir, read_config(workdir), step=2)


def test_another_run_begins_with_refined_weights(finished, tmp_path):
    """Those of the last resolution, whichever the checkpoint has."""
    _, whole, _ = finished
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for later in range(3, 7):
        shutil.rmtree(checkpoint_folder(workdir) / str(later))

    cfg = make_tiny()
    cfg.depth.update(SHARED | {"share": 2, "refine_at": ()})
    cfg.init.path = str(workdir)
    config = from_config_dict(cfg)
    source = find_source(config)
    plan = plan_initial(config, source)
    assert not (plan.new or plan.unused or plan.resampled)

    weights, step = read_weights(source, config, one_device_mesh())
    expected = load_model(workdir)[1]["params"]
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
    assert step == 2 and kernel(weights).shape[0] == 2


def test_a_run_is_projected_and_evaluated(finished, tmp_path, capsys):
    """Its table, and the run that it writes, whose model is the library's own projection."""
    _, workdir, _ = finished
    output = tmp_path / "small"
    flags = [f"--workdir={workdir}", "--config.depth.share=1", "--config.depth.basis=legendre"]
    flags += ["--config.depth.coefficients=1", f"--output={output}"]
    assert run(program.main, ["", *flags], program.FLAGS, "", "config") == 0
    printed = capsys.readouterr().out
    assert "constant" in printed and "legendre" in printed and "accuracy" in printed

    model, variables = load_model(workdir)
    line = {"basis": "legendre", "coefficients": 1}
    expected, config = project(variables, model.config, line)
    small, found = load_model(output)
    assert small.config == config and small.config.depth.fixed_steps == 1
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert read_metadata(output, 6).examples == read_metadata(workdir, 6).examples

    with pytest.raises(BadInput, match="holds a run: take another folder"):
        program.check_flags("test", str(output))
    with pytest.raises(BadInput, match="one of train, validation, test; 'tests' was given"):
        program.check_flags("tests", None)


@pytest.mark.slow
def test_a_projected_run_is_trained_further(finished, tmp_path):
    """By the same config with its depth and more steps: from its step on, by a fresh optimiser."""
    cfg, workdir, programs = finished
    output = tmp_path / "small"
    line = dict(share=1, basis="legendre", coefficients=2)
    flags = [f"--config.depth.{name}={value}" for name, value in line.items()]
    flags += [f"--workdir={workdir}", f"--output={output}"]
    assert run(program.main, ["", *flags], program.FLAGS, "", "config") == 0
    before = kernel(load_model(output)[1]["params"])

    cfg = cfg.copy_and_resolve_references()
    cfg.depth.update(line, refine_at=())
    cfg.train_steps = 8
    train(cfg, output, programs=programs)
    assert [line["step"] for line in read_metrics(output) if "train/loss" in line] == [7, 8]
    assert adam_of(state_of(output, 8).opt_state).count == 2
    assert (kernel(load_model(output)[1]["params"]) != before).any(axis=(1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.dropout": 0.5}, "changes config.depth alone"),
        ({"depth.layers": 8, "depth.share": 4}, "over the same depth, layers=4; layers=8"),
    ],
)
def test_refused_projections(changes, message):
    config = at_step(make_config(SHARED), 6)
    with pytest.raises(BadInput, match=message):
        program.projected_config(config, for_evaluation(config, changes))


def test_a_projection_of_adapters_has_none():
    """They are merged into its weights, so that its checkpoint holds all of these."""
    cfg = make_tiny()
    cfg.depth.update(SHARED | {"refine_at": ()})
    cfg.lora.rank, cfg.init.path = 2, "/of/no/run"
    config = from_config_dict(cfg)
    to = program.projected_config(config, for_evaluation(config, {"depth.share": 2}))
    assert to.lora.rank is None and to.model.depth.share == 2


def test_a_projected_run_keeps_its_number_of_steps_and_its_adjoint():
    config = at_step(make_config(SHARED | {"steps": 4, "adjoint": "store"}), 6)
    line = {"depth.share": 1, "depth.basis": "legendre", "depth.coefficients": 2}
    depth = program.projected_config(config, for_evaluation(config, line)).model.depth
    assert (depth.groups, depth.fixed_steps, depth.adjoint) == (4, 1, "store")
