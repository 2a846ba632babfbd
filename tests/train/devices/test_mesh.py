"""The mesh: one device trains as eight do, however they are laid out."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from odeformer import LM, TextClassifier, ViT, presets
from odeformer.models.registry import example_inputs
from odeformer.transformer.sharding import parameter_axes
from tests.helpers.checkout import ROOT
from train.config.tables import OPTIMIZERS
from train.devices.mesh import RULES

LAYOUTS = [dict(data=8), dict(fsdp=8), dict(data=2, tensor=4), dict(data=2, fsdp=2, tensor=2)]
QUICK = (0, 1, 3)  # data, fsdp, and both with tensor
TERMS = ["attention", "mlp", "conv", "damping", "gates"]  # the last one of two streams
BASIS = dict(share=1, basis="legendre", coefficients=3, solver="euler")
NODES = dict(share=1, basis="hat", coefficients=3, solver="midpoint")
# And a flow that is regularised by all that there is.
OF_ALL_TERMS = dict(
    model=dict(terms=TERMS),
    depth=dict(solver="heun"),
    regularise=dict(kinetic=0.1, error=0.1, end_time=0.5),
    steps=4,
)
ADJOINTS = ["store", "recursive", "direct", "backsolve"]
PLAIN = dict(dropout=0.0, drop_path=0.0)  # a smooth field, which two solvers can agree on
SOLVERS = ["lie_trotter", "euler", "rk4"]
WORKER = ROOT / "tests/helpers/layouts.py"


def train_cases(cases):
    """What layouts.py prints for these cases, in a process of eight devices."""
    command = [sys.executable, str(WORKER), json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nvoluntary full rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_same(losses, reference):
    np.testing.assert_allclose(losses, reference, rtol=1e-5)
    assert len(losses) == 10 and len(set(losses)) == 10


@pytest.fixture(scope="module")
def trained():
    """One solver on one device and under each kind of layout; other solvers are slow."""
    euler = dict(depth=dict(solver="euler"))
    cases = {
        **{i: dict(mesh=LAYOUTS[i], **euler) for i in QUICK},
        "one": dict(devices=1, **euler),
        "shard_map": dict(mesh=LAYOUTS[0], parallel=dict(mode="shard_map"), **euler),
        "terms": dict(devices=1, **OF_ALL_TERMS),
        "terms split": dict(mesh=LAYOUTS[3], **OF_ALL_TERMS),
        "basis": dict(devices=1, depth=BASIS, steps=4),
        "basis split": dict(mesh=LAYOUTS[3], depth=BASIS, steps=4),
        "memory": "memory",
        "checkpoint": "checkpoint",
        "sums": "sums",
        "padded": "padded",
        "traffic": "traffic",
    }
    return dict(zip(cases, train_cases(list(cases.values())), strict=True))


@pytest.mark.parametrize("layout", QUICK)
def test_one_device_equals_eight(trained, layout):
    check_same(trained[layout]["losses"], trained["one"]["losses"])
    assert trained[layout]["kept"]  # the state lies as before the steps


def test_terms_of_every_kind_train_as_on_one_device(trained):
    """A convolution, a vector of rates, and one's own term of two streams, dropped as a whole."""
    check_terms(trained["terms split"], trained["terms"])


def test_weights_in_a_basis_train_as_on_one_device(trained):
    check_terms(trained["basis split"], trained["basis"])


@pytest.mark.slow
@pytest.mark.parametrize("depth", [BASIS, NODES], ids=["legendre", "hat"])
@pytest.mark.parametrize("kind", ["images", "language"])
def test_weights_in_a_basis_train_on_every_layout(kind, depth):
    cases = [dict(kind=kind, depth=depth, mesh=mesh, steps=4) for mesh in LAYOUTS]
    cases += [dict(cases[0], parallel=dict(mode="shard_map"))]
    reference, *results = train_cases([dict(cases[0], mesh={}, devices=1), *cases])
    for result in results:
        check_terms(result, reference)


@pytest.mark.slow
def test_terms_of_every_kind_train_on_shards_of_the_batch():
    one, shards = train_cases(
        [dict(devices=1, **OF_ALL_TERMS), dict(mesh=LAYOUTS[0], **OF_ALL_TERMS)]
    )
    check_terms(shards, one)


def check_terms(found, expected):
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(found["norms"], expected["norms"], rtol=1e-4)
    assert len(set(expected["losses"])) == 4 and found["kept"]


def test_shards_by_themselves_train_as_a_whole(trained):
    check_same(trained["shard_map"]["losses"], trained["one"]["losses"])


def test_shards_weigh_as_many_tokens_as_they_have(trained):
    """Of two shards one has mostly padding: loss and gradient are those of the whole batch."""
    whole, by_shard = trained["padded"]["losses"]
    assert by_shard == pytest.approx(whole, rel=1e-6)
    assert trained["padded"]["distance"] < 1e-5


def test_what_devices_send_inside_the_loops(trained):
    """Counted by hand, on data 2 x fsdp 2 x tensor 2: a kernel in the wrong order sends more.

    Kernels are gathered over fsdp once forwards and once backwards a group, and their gradients
    scattered once. Of the solver's evaluations (midpoint: 2 forwards, 1 recomputed, 2 backwards)
    each adds up, over tensor, one array of the state's size for attention and one for the MLP.
    """
    sent = {(kind, depth): size for kind, depth, size in trained["traffic"]}
    groups, steps, width, mlp, rows, tokens = 2, 2, 16, 32, 16, 16
    kernels = 4 * groups * (4 * width * width + 2 * width * mlp) // 2  # of float32, over tensor
    assert sent["all-gather", 1] == 2 * kernels
    assert sent["reduce-scatter", 1] == kernels

    state = 4 * rows * tokens * width // 4  # over data and fsdp
    evaluations = (2 + 1 + 2) * steps * groups
    loop = {kind: size for (kind, depth), size in sent.items() if depth == 2}
    assert loop == {"all-reduce": 2 * evaluations * state}


@pytest.mark.slow
def test_adapters_train_on_every_mesh_as_on_one_device():
    """Split as their kernels, gathered for a group's solve, averaged over shards and parts."""
    same = dict(lora=dict(rank=4, alpha=8.0), depth=dict(solver="lie_trotter"))
    cases = [dict(mesh=mesh) for mesh in LAYOUTS]
    cases += [dict(mesh=LAYOUTS[0], parallel=dict(mode="shard_map"))]
    cases += [dict(mesh=LAYOUTS[3], parallel=dict(accumulate=2), model=PLAIN)]
    cases += [dict(mesh=LAYOUTS[1], optimizer=dict(name="adafactor"))]
    alone = [dict(devices=1), dict(devices=1, model=PLAIN)]
    alone += [dict(devices=1, optimizer=dict(name="adafactor"))]
    one, plain, factored, *split = train_cases([case | same for case in alone + cases])
    for found, expected in zip(split, [one] * 5 + [plain, factored], strict=True):
        check_same(found["losses"], expected["losses"])
        assert found["kept"]


@pytest.mark.slow
def test_shards_take_adaptive_steps_of_their_own():
    same = dict(mesh=LAYOUTS[0], model=PLAIN, regularise=dict(kinetic=0.1), steps=3)
    depth = dict(solver="tsit5", rtol=1e-5, max_steps=64)
    adaptive, fine = train_cases(
        [
            dict(depth=depth, parallel=dict(mode="shard_map"), **same),
            dict(depth=dict(solver="rk4", steps=64), **same),
        ]
    )
    np.testing.assert_allclose(adaptive["losses"], fine["losses"], rtol=1e-4)
    np.testing.assert_allclose(adaptive["norms"], fine["norms"], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_every_optimizer_trains_on_eight_devices_as_on_one(name):
    """Wide enough for adafactor's averages over rows and columns."""
    same = dict(depth=dict(solver="euler"), optimizer=dict(name=name), width=64)
    one, *split = train_cases(
        [dict(devices=1, **same), *(dict(mesh=LAYOUTS[i], **same) for i in (1, 3))]
    )
    for found in split:
        check_same(found["losses"], one["losses"])
        assert found["kept"]


@pytest.mark.slow
def test_a_fine_tuned_run_is_the_same_on_eight_devices_as_on_one():
    """Its weights and what comes of them, with frozen ones and rates by name and by layer."""
    names = dict(freeze=["patches", "**/qkv"], rate_factors=["head=3"], layer_decay=0.8)
    same = dict(depth=dict(solver="euler"), optimizer=names)
    meshes = (dict(mesh=LAYOUTS[0], parallel=dict(mode="shard_map")), dict(mesh=LAYOUTS[3]))
    one, *split, equal = train_cases(
        [dict(devices=1, **same), *(mesh | same for mesh in meshes), "initial"]
    )
    for found in split:
        check_same(found["losses"], one["losses"])
        np.testing.assert_allclose(found["norms"], one["norms"], rtol=1e-4)
        assert found["kept"]
    assert all(equal) and len(equal) > 60


@pytest.mark.slow
def test_one_device_equals_eight_everywhere():
    """Solvers, adjoints and policies under each layout, dropout and all; text, too."""
    depths = [dict(solver=s) for s in SOLVERS]
    depths += [dict(solver="midpoint", adjoint=name) for name in ADJOINTS]
    depths += [dict(solver="heun", per_sample=True), dict(solver="heun", policy="dots_saveable")]
    for kind in ("images", "language", "untied"):
        for depth in depths if kind == "images" else depths[:1]:
            cases = [dict(kind=kind, depth=depth, mesh=mesh) for mesh in LAYOUTS]
            reference, *results = train_cases([dict(kind=kind, depth=depth, devices=1), *cases])
            for result in results:
                check_same(result["losses"], reference["losses"])
                assert result["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language"])
def test_a_reversible_pair_on_one_device_equals_eight(kind):
    """Its backward pass gathers and sums over the shards as the plain one does."""
    common = dict(kind=kind, depth=dict(solver="midpoint", reversible=0.99, adjoint="reversible"))
    layouts = [dict(mesh=LAYOUTS[i]) for i in (0, 3)]
    layouts.append(dict(mesh=LAYOUTS[0], parallel=dict(mode="shard_map")))
    reference, *results = train_cases(
        [dict(devices=1, **common), *(layout | common for layout in layouts)]
    )
    for result in results:
        check_same(result["losses"], reference["losses"])
        assert result["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language"])
def test_centred_attention_on_one_device_equals_eight(kind):
    common = dict(kind=kind, depth=dict(solver="euler"), model=dict(centre=1.0))
    cases = [dict(devices=1, **common), *(dict(mesh=LAYOUTS[i], **common) for i in (0, 3))]
    reference, *results = train_cases(cases)
    for result in results:
        check_same(result["losses"], reference["losses"])
        assert result["kept"]


SHARED_KEYS = dict(kv_heads=2, head_size=8, qk_norm=True, norm="rms", gated=True, centre=0.5)
SHARED_KEYS |= dict(qkv_bias=False, out_bias=False, mlp_bias=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language"])
def test_heads_that_share_keys_on_one_device_equal_eight(kind):
    common = dict(kind=kind, depth=dict(solver="lie_trotter"), model=SHARED_KEYS)
    cases = [dict(devices=1, **common), *(dict(mesh=LAYOUTS[i], **common) for i in (1, 3))]
    reference, *results = train_cases(cases)
    for result in results:
        check_same(result["losses"], reference["losses"])
        assert result["kept"]


@pytest.mark.slow
def test_registers_and_layer_scale_on_one_device_equal_eight():
    model = dict(pool="token_mean", registers=3, layer_scale=0.5)
    common = dict(depth=dict(solver="lie_trotter"), model=model)
    cases = [dict(devices=1, **common), *(dict(mesh=LAYOUTS[i], **common) for i in (1, 3))]
    reference, *results = train_cases(cases)
    for result in results:
        check_same(result["losses"], reference["losses"])
        assert result["kept"]


@pytest.mark.slow
def test_samples_with_steps_of_their_own_are_spread():
    """Each device solves its own: an eighth of the work."""
    ((one, eighth),) = train_cases(["per_sample"])
    assert eighth < 0.2 * one


def test_the_state_is_born_where_it_lies(trained):
    """No device holds a whole copy while it is made: an eighth, and the vectors."""
    memory = trained["memory"]
    assert memory["made"] < 0.16 * memory["whole"]
    assert memory["temporary"] < 0.3 * memory["whole"]


def test_a_checkpoint_fits_every_mesh(trained):
    assert trained["checkpoint"] == [True] * 3


def test_checksums_do_not_depend_on_the_layout(trained):
    one, *others = trained["sums"]
    assert len(others) == 10 and all(found == one for found in others)
    assert len(set(one.values())) == len(one) == 5


@pytest.mark.parametrize(
    "model",
    [
        *(ViT(presets.vit(name)) for name in ("deit_ti", "digits")),
        ViT(presets.vit("deit_ti", distillation="mean")),
        ViT(presets.vit("deit_ti", pool="token_mean", registers=4, layer_scale=1e-5)),
        LM(presets.lm("gpt_small", tied=False, time="additive")),
        TextClassifier(presets.text("text_small", positions="learned")),
        LM(presets.lm("gpt_nano", kv_heads=2, gated=True, qk_norm=True, norm="rms")),
    ],
)
def test_every_kernel_and_embedding_has_names(model):
    """All but the patches', which are too small to be worth it, and the time's."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model.config))["params"]
    axes = parameter_axes(shapes)
    names = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        where = [key.key for key in path]
        spec = axes
        for key in where:
            spec = spec[key]
        assert len(spec) == leaf.ndim, where
        names |= set(spec) - {None}
        if where[-1] in ("kernel", "embedding") and "projection" not in where:
            assert "width" in spec, where
    assert names <= set(RULES)


def axes_of(**changes):
    config = presets.lm("gpt_nano", **changes)
    shapes = jax.eval_shape(LM(config).init, jax.random.key(0), *example_inputs(config))
    return parameter_axes(shapes["params"])


def test_the_axes_where_heads_share_keys():
    """Queries and the keys that they read lie on the same device."""
    layer = axes_of(kv_heads=2, gated=True, qk_norm=True)["depth"]["groups"]
    attention, mlp = layer["attention_layer"], layer["mlp_layer"]
    assert attention["q"]["kernel"] == PartitionSpec(None, "width", "heads", None)
    assert attention["q"]["bias"] == PartitionSpec(None, "heads", None)
    assert attention["kv"]["kernel"] == PartitionSpec(None, "width", None, "heads", None)
    assert attention["kv"]["bias"] == PartitionSpec(None, None, "heads", None)
    assert attention["k_norm"]["scale"] == PartitionSpec(None, None)
    assert mlp["gate"]["kernel"] == PartitionSpec(None, "width", "mlp")
    assert mlp["gate"]["bias"] == PartitionSpec(None, "mlp")


def test_the_axes_that_products_sum_over():
    """Into heads and the MLP each device computes its own columns; out of them it sums its rows."""
    axes = axes_of(tied=False, time="additive", positions="learned")
    layer = axes["depth"]["groups"]
    attention, mlp = layer["attention_layer"], layer["mlp_layer"]
    assert attention["qkv"]["kernel"] == PartitionSpec(None, "width", None, "heads", None)
    assert attention["qkv"]["bias"] == PartitionSpec(None, None, "heads", None)
    assert attention["out"]["kernel"] == PartitionSpec(None, "heads", None, "width")
    assert mlp["up"]["kernel"] == PartitionSpec(None, "width", "mlp")
    assert mlp["up"]["bias"] == PartitionSpec(None, "mlp")
    assert mlp["down"]["kernel"] == PartitionSpec(None, "mlp", "width")
    assert axes["embedding"]["embedding"] == PartitionSpec("vocabulary", "width")
    assert axes["position_embedding"]["embedding"] == PartitionSpec(None, "width")
    assert axes["head"]["kernel"] == PartitionSpec("width", "vocabulary")
    for whole in (attention["out"]["bias"], mlp["down"]["bias"], layer["mlp_norm"]["scale"]):
        assert whole == PartitionSpec(None, None)
