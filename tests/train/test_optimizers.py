"""The optimisers and schedules by name: against optax by hand, on a mesh, and resumed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from odeformer.transformer.sharding import parameter_axes
from tests.helpers.programs import interrupt_at_second_score
from tests.helpers.tiny import make_tiny
from tests.helpers.trees import noisy
from train.checkpoint.metadata import read_metadata
from train.checkpoint.restore import restore_step
from train.checkpoint.saver import Saver
from train.config.border import from_config_dict
from train.config.run import OptimizerConfig
from train.config.tables import OPTIMIZERS, SCHEDULES, Table
from train.data.pipeline import Position
from train.devices.mesh import RULES, device_mesh
from train.errors import BadInput
from train.loop import train
from train.optimizer import decay_mask, make_optimizer, make_schedule, register, register_schedule
from train.state import abstract_state, init_state, optimizer_shardings

RATE, DECAY, B1, B2, STEPS = 0.1, 0.3, 0.8, 0.95, 10
G, D, H, K, M, V = 2, 32, 2, 40, 96, 50


def shapes() -> Any:
    """Parameters of two groups by our names: matrices, vectors, an embedding and a head."""
    sizes = {
        "depth": {
            "groups": {
                "attention_layer": {
                    "qkv": {"kernel": (G, D, 3, H, K), "bias": (G, 3, H, K)},
                    "out": {"kernel": (G, H, K, D)},
                },
                "mlp_layer": {
                    "up": {"kernel": (G, D, M), "bias": (G, M)},
                    "down": {"kernel": (G, M, D)},
                },
            }
        },
        "embedding": {"embedding": (V, D)},
        "norm": {"scale": (D,)},
        "head": {"kernel": (D, V)},
    }
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), sizes, is_leaf=is_shape)


def options_of(**changes):
    options = dict(learning_rate=RATE, weight_decay=DECAY, b1=B1, b2=B2, warmup_steps=2)
    return OptimizerConfig(**options | changes)


def start() -> Any:
    return noisy(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes()), 1.0)


def gradient(step) -> Any:
    """Another one at each step, whose entries are of all sizes."""
    return jax.tree.map(lambda x: jnp.sin((step + 1) * 9 * x), start())


def walk(optimizer, steps=3) -> Any:
    """The parameters after a few updates, each by another gradient."""
    params = start()
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def rate_by_hand(step):
    return optax.warmup_cosine_decay_schedule(0.0, RATE, 2, STEPS)(step)


def decayed(*transformations):
    """A chain that ends in the decay of what `decay_mask` selects, and in the learning rate."""
    return optax.chain(
        *transformations,
        optax.add_decayed_weights(DECAY, decay_mask),
        optax.scale_by_learning_rate(rate_by_hand),
    )


BY_HAND = {
    "adamw": lambda: optax.adamw(rate_by_hand, B1, B2, weight_decay=DECAY, mask=decay_mask),
    "lion": lambda: optax.lion(rate_by_hand, B1, B2, weight_decay=DECAY, mask=decay_mask),
    # With a rate of 1 it is the momentum itself, but for its sign.
    "sgd": lambda: decayed(optax.sgd(1.0, momentum=B1), optax.scale(-1)),
    "adafactor": lambda: decayed(
        optax.adafactor(1.0, 32, multiply_by_parameter_scale=False, clipping_threshold=None),
        optax.scale(-1),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_three_steps_are_those_of_optax(name):
    """Equal: by its bits for the default, whose state also has the same structure."""
    found, state = walk(make_optimizer(options_of(name=name, clip_norm=1.0), STEPS))
    by_hand = optax.chain(optax.clip_by_global_norm(1.0), BY_HAND[name]())
    expected, expected_state = walk(by_hand)
    if name == "adamw":
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, found, expected)


def test_muon_takes_each_matrix_of_each_group_alone():
    """Against a loop over groups and over queries, keys and values, by optax's muon of a matrix."""
    found, _ = walk(make_optimizer(options_of(name="muon"), STEPS))
    others, _ = walk(make_optimizer(options_of(), STEPS))

    def matrices(tree):
        """Every matrix, rows that are summed over first; in one dict."""
        layers = tree["depth"]["groups"]
        attention, mlp = layers["attention_layer"], layers["mlp_layer"]
        cut = {}
        for g in range(G):
            for i, part in enumerate("qkv"):
                cut[f"{part}{g}"] = attention["qkv"]["kernel"][g, :, i].reshape(D, H * K)
            cut[f"out{g}"] = attention["out"]["kernel"][g].reshape(H * K, D)
            cut |= {f"{name}{g}": mlp[name]["kernel"][g] for name in ("up", "down")}
        return cut

    params = start()
    expected = matrices(params)
    plain = lambda params: jax.tree.map(lambda _: MuonDimensionNumbers(), params)
    muon = scale_by_muon(beta=B1, weight_dimension_numbers=plain)
    state = muon.init(expected)
    for step in range(3):
        updates, state = muon.update(matrices(gradient(step)), state)
        for name, update in updates.items():
            scale = 0.2 * max(update.shape) ** 0.5
            step_size = scale * update + DECAY * expected[name]
            expected[name] -= rate_by_hand(step) * step_size
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, matrices(found), expected)
    np.testing.assert_raises(AssertionError, close, matrices(found)["q0"], matrices(others)["q0"])

    # The rest is AdamW's, bit for bit.
    for tree in (found, others):
        del tree["depth"]["groups"]["attention_layer"]["out"]
        for layer, name in (("attention_layer", "qkv"), ("mlp_layer", "up"), ("mlp_layer", "down")):
            del tree["depth"]["groups"][layer][name]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, found, others)


def test_muon_takes_queries_and_shared_keys_and_gates():
    """Each matrix as the kernel 'up' of a dense layer, which the test above holds."""
    optimizer = make_optimizer(options_of(name="muon", weight_decay=0.0, warmup_steps=0), STEPS)
    shapes = {"q": (G, D, H, K), "kv": (G, D, 2, 1, K), "gate": (G, D, M)}
    zeros = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}

    def matrices(tree):
        """By name, in the form of dense layers; keys and values apart."""
        q, kv, gate = (tree[name]["kernel"] for name in shapes)
        cut = {"q": q.reshape(G, D, H * K), "k": kv[:, :, 0, 0], "v": kv[:, :, 1, 0], "gate": gate}
        return {name: {"up": {"kernel": matrix}} for name, matrix in cut.items()}

    @jax.jit
    def update(tree):
        return optimizer.update(tree, optimizer.init(tree), tree)[0]

    gradients = noisy(zeros, 1.0)
    found, expected = matrices(update(gradients)), update(matrices(gradients))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    jax.tree.map(close, found, expected)


MESH = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))


def specs(name) -> Any:
    """How the state of an optimiser is split, by the ends of its paths; and the parameters."""
    params = shapes()
    rules, is_spec = list(RULES.items()), lambda x: isinstance(x, PartitionSpec)

    def split(axes) -> NamedSharding:
        return NamedSharding(MESH, logical_to_mesh_axes(tuple(axes), rules))

    of_params = jax.tree.map(split, parameter_axes(params), is_leaf=is_spec)
    optimizer = make_optimizer(options_of(name=name), STEPS)
    state = jax.eval_shape(optimizer.init, params)
    found = optimizer_shardings(state, params, of_params)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    by_path = {jax.tree_util.keystr(path): tuple(leaf.spec) for path, leaf in leaves}
    return by_path, state, found, params, of_params, optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
def test_moments_are_split_like_their_parameters(name):
    _, state, found, params, of_params, optimizer = specs(name)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(of_params), strict=True)
    sizes = {leaf.shape: sharding for leaf, sharding in pairs}
    moments = 0
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        expected = sizes.get(leaf.shape, NamedSharding(MESH, PartitionSpec()))
        assert tuple(sharding.spec) == tuple(expected.spec)
        moments += leaf.shape in sizes
    # All of them: muon has one moment of a matrix and two of the rest.
    per_leaf = {"adamw": 2 * 9, "sgd": 9, "lion": 9, "muon": 4 + 2 * 5}
    assert moments == per_leaf[name]
    if name == "adamw":  # as optax would have it
        everywhere = NamedSharding(MESH, PartitionSpec())
        theirs = optax.tree_map_params(
            optimizer, lambda _, s: s, state, of_params, transform_non_params=lambda _: everywhere
        )
        assert jax.tree.leaves(theirs) == jax.tree.leaves(found)


def test_factored_moments_are_split_along_the_axes_that_they_have():
    split, *_ = specs("adafactor")

    def of(moment, end):
        (found,) = [
            spec for path, spec in split.items() if f".{moment}[" in path and path.endswith(end)
        ]
        return found

    # The two largest axes of each are averaged over: rows lack the largest, columns the second.
    assert of("v_row", "['up']['kernel']") == (None, "fsdp")  # [G, D]
    assert of("v_col", "['up']['kernel']") == (None, "tensor")  # [G, M]
    assert of("v_row", "['qkv']['kernel']") == (None, "fsdp", None, "tensor")  # [G, D, 3, H]
    assert of("v_col", "['qkv']['kernel']") == (None, None, "tensor", None)  # [G, 3, H, K]
    assert of("v", "['up']['bias']") == (None, "tensor")
    assert of("v", "['embedding']['embedding']") == ()  # a place holder


def test_factored_moments_are_small():
    """A matrix of each group keeps its averages over rows and columns, a vector all of its own."""
    _, state, *_ = specs("adafactor")
    matrices = G * (D * 3 * H + 3 * H * K + H * K + H * D + 2 * (D + M)) + 2 * (V + D)
    vectors = G * (3 * H * K + M) + D
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1]
    assert sum(sizes) == matrices + vectors


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_saved_state_continues_bit_for_bit(name, workdir):
    cfg = make_tiny()
    cfg.optimizer.update(name=name, warmup_steps=0)
    config = from_config_dict(cfg)
    optimizer, mesh = make_optimizer(config.optimizer, config.train_steps), device_mesh(config.mesh)
    update = jax.jit(optimizer.update)

    def step(state, number):
        updates, opt_state = update(noisy(state.params, number), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    state = step(init_state(config, optimizer, mesh), 1)
    with Saver(workdir, config, examples=1) as saver:
        saver.save(state, Position(1, 0), {}, wait=True)
    restored, _ = restore_step(workdir, 1, abstract_state(config, optimizer, mesh))
    for number in (2, 3):
        state, restored = step(state, number), step(restored, number)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(name, tmp_path):
    cfg = make_tiny()
    cfg.depth.solver = "euler"
    cfg.optimizer.update(name=name, schedule="wsd", decay_steps=2, learning_rate=1e-3)
    train(cfg, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path / "cut")
    train(cfg, tmp_path / "cut")
    whole, cut = (read_metadata(tmp_path / folder, 6).leaves for folder in ("whole", "cut"))
    assert cut == whole


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(schedule="linear"), [0, 1, 2, 1.5, 1, 0]),
        (dict(schedule="constant"), [0, 1, 2, 2, 2, 2]),
        (dict(schedule="wsd", decay_steps=50), [0, 1, 2, 2, 2, 0]),
        (dict(schedule="wsd", decay_steps=100), [0, 1, 2, 1.5, 1, 0]),
        (dict(schedule="wsd"), [0, 1, 2, 2, 2, 0]),
        (dict(schedule="cosine"), [0, 1, 2, 1 + 0.5**0.5, 1, 0]),
    ],
)
def test_schedules(changes, expected):
    options = options_of(warmup_steps=10, learning_rate=2.0, **changes)
    rate = make_schedule(options, 110)
    found = [rate(step) for step in (0, 5, 10, 35, 60, 110)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if options.schedule == "wsd":
        decay = options.decay_steps or 10
        middle = [rate(110 - decay), rate(110 - decay // 2)]
        np.testing.assert_allclose(middle, [2, 1], atol=1e-6)


def test_the_default_schedule_is_optax_s_own():
    rate = make_schedule(options_of(), STEPS)
    for step in range(STEPS + 1):
        np.testing.assert_array_equal(rate(step), rate_by_hand(step))


def test_names_of_your_own():
    """Registered names are accepted at the border and shown; a taken or malformed one is not."""
    cfg = make_tiny()
    cfg.optimizer.update(name="signed", schedule="falling")
    with pytest.raises(BadInput, match="optimizer.name is one of adamw, .*; signed was given"):
        from_config_dict(cfg)

    with pytest.MonkeyPatch.context() as patch:
        for table in (OPTIMIZERS, SCHEDULES):
            patch.setattr(table, "_entries", dict(table._entries))

        @register("signed")
        def signed(config, rate):
            return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(rate))

        register_schedule("falling", lambda config, steps: optax.linear_schedule(1.0, 0.0, steps))
        options = from_config_dict(cfg).optimizer
        assert "signed" in OPTIMIZERS and OPTIMIZERS["signed"] is signed
        optimizer = make_optimizer(dataclasses.replace(options, warmup_steps=0), STEPS)
        params = {"a": {"kernel": jnp.ones(3)}}
        updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
        np.testing.assert_array_equal(updates["a"]["kernel"], -np.ones(3))

        cfg.optimizer.name = "sgdd"
        with pytest.raises(BadInput, match="is one of adamw, .* signed; sgdd was given"):
            from_config_dict(cfg)
        with pytest.raises(BadInput, match="optimizer 'adamw': the name is taken"):
            register("adamw", signed)
        with pytest.raises(BadInput, match="'a,b' was given"):
            register("a,b", signed)
        with pytest.raises(BadInput, match="a function or a class is accepted; 3 was given"):
            register("three", 3)
        with pytest.raises(TypeError):
            OPTIMIZERS["other"] = signed


def test_every_promised_name_is_defined():
    for table in (OPTIMIZERS, SCHEDULES):
        assert all(callable(table[name]) for name in table)
    with pytest.raises(AssertionError, match="nothing defines the thing 'a'"):
        Table("thing", ["a"])["a"]
