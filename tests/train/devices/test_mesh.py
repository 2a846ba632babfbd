"""The mesh: what it refuses, and that one device trains as eight do, however they are laid out."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers.checkout import ROOT
from tests.helpers.tiny import make_tiny
from train.config.border import from_config_dict
from train.config.run import MeshConfig
from train.config.tables import OPTIMIZERS
from train.devices.checks import check_run_fits
from train.devices.mesh import device_mesh
from train.errors import BadInput

LAYOUTS = [dict(data=8), dict(fsdp=8), dict(data=2, tensor=4), dict(data=2, fsdp=2, tensor=2)]
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


def check_layouts(case, *layouts):
    """A case trains on eight devices, under each of these layouts, as on one."""
    one, *split = train_cases(
        [dict(devices=1, **case), *(dict(mesh=LAYOUTS[i], **case) for i in layouts)]
    )
    for found in split:
        check_same(found["losses"], one["losses"])
        assert found["kept"]


@pytest.fixture(scope="module")
def trained():
    """One solver on one device and on eight; other solvers and layouts are slow."""
    euler = dict(depth=dict(solver="euler"))
    cases = {
        "split": dict(mesh=LAYOUTS[3], **euler),
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


def test_one_device_equals_eight(trained):
    """Split over data, fsdp and tensor at once; every other layout is slow."""
    check_same(trained["split"]["losses"], trained["one"]["losses"])
    assert trained["split"]["kept"]  # the state lies as before the steps


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
@pytest.mark.parametrize(
    ("kind", "depth", "others"),
    [
        ("images", dict(), dict()),
        ("language", dict(), dict()),
        ("images", dict(basis="hat", coefficients=3, share=1), dict()),
        ("images", dict(basis="legendre", coefficients=3, share=1), dict(lora=dict(rank=4))),
    ],
)
def test_a_reversible_pair_on_one_device_equals_eight(kind, depth, others):
    """Its backward pass gathers and sums over the shards as the plain one does."""
    pair = dict(solver="midpoint", reversible=0.99, adjoint="reversible") | depth
    common = dict(kind=kind, depth=pair, **others)
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
    check_layouts(common, 0, 3)


SHARED_KEYS = dict(kv_heads=2, head_size=8, qk_norm=True, norm="rms", gated=True, centre=0.5)
SHARED_KEYS |= dict(qkv_bias=False, out_bias=False, mlp_bias=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language"])
def test_heads_that_share_keys_on_one_device_equal_eight(kind):
    common = dict(kind=kind, depth=dict(solver="lie_trotter"), model=SHARED_KEYS)
    check_layouts(common, 1, 3)


@pytest.mark.slow
def test_registers_and_layer_scale_on_one_device_equal_eight():
    model = dict(pool="token_mean", registers=3, layer_scale=0.5)
    common = dict(depth=dict(solver="lie_trotter"), model=model)
    check_layouts(common, 1, 3)


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
    ("sizes", "shape"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, 8), (1, 1, 8))],
)
def test_an_open_axis_takes_what_is_left(sizes, shape):
    devices = jax.devices() * 8  # the same one, eight times: it is laid out, not used
    assert tuple(device_mesh(MeshConfig(*sizes), devices).shape.values()) == shape


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"\(data=3 x fsdp=1 x tensor=1\) does not fit the 1 devices"),
        ((-1, 2, 1), "product divides 1"),
        ((-1, -1, 1), "leaves several axes open"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(BadInput, match=message):
        device_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({"batch_size": 36}, dict(data=8), "batch_size=36 does not divide .* multiple of 8"),
        ({"parallel.accumulate": 3}, dict(data=2), "accumulate=3 .* multiple of 6"),
        ({"model.heads": 1}, dict(tensor=2), "model.heads=1 does not divide over mesh.tensor=2"),
        (
            {"model.heads": 4, "model.kv_heads": 1},
            dict(tensor=2),
            "model.kv_heads=1 does not divide over mesh.tensor=2 .* part of a head of keys and",
        ),
        ({"model.mlp": 31}, dict(tensor=2), "model.mlp=31 .* divisors of 31"),
        ({}, dict(fsdp=32), "model.width=16 does not divide over mesh.fsdp=32"),
        ({"model.fused": True}, dict(tensor=2), "fused=True joins kernels"),
        ({"parallel.mode": "shard_map"}, dict(fsdp=2), "replicas of the model"),
        ({"parallel.mode": "shard_map"}, dict(tensor=2), "mesh.tensor=2 were given"),
        (
            {"parallel.mode": "shard_map", "depth.adjoint": "recursive"},
            dict(data=2),
            "adjoint='recursive' has no gradient under",
        ),
    ],
)
def test_a_run_that_does_not_fit_its_mesh_is_refused(changes, mesh, message):
    cfg = make_tiny()
    cfg.batch_size = 32
    cfg.update_from_flattened_dict(changes)
    sizes = dict(data=1, fsdp=1, tensor=1) | mesh
    shape = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    with pytest.raises(BadInput, match=message):
        check_run_fits(from_config_dict(cfg), shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 0}, "config.mesh.fsdp is 1 or more, or -1"),
        ({"parallel.mode": "pmap"}, "config.parallel.mode is one of jit, shard_map; pmap"),
        ({"parallel.accumulate": 0}, "config.parallel.accumulate is greater than 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    cfg = make_tiny()
    cfg.update_from_flattened_dict(changes)
    with pytest.raises(BadInput, match=message):
        from_config_dict(cfg)
