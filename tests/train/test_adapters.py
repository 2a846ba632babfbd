"""Runs that train low-rank adapters: what moves, what is saved, what is found again."""

import dataclasses
import math
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from configs import lm1b
from odeformer import generate
from tests.helpers.adapted import make_adapted
from tests.helpers.checkout import ROOT
from tests.helpers.programs import interrupt_at_second_score, timeless
from tests.helpers.saved import save, shaken
from tests.helpers.tiny import make_tiny_language
from train.adapters import abstract_base, adapted, init_trained, merge
from train.checkpoint import load_model, load_predictor
from train.checkpoint.initial_checks import warn_of_new_head
from train.checkpoint.listing import SOUND, list_checkpoints
from train.checkpoint.metadata import read_metadata
from train.checkpoint.restore import restore_weights, verified_config
from train.checkpoint.transfer import find_source, plan_initial
from train.checkpoint.weights import load_params, make_base
from train.checkpoint.workdir import read_tokenizer, record_run, saved_steps
from train.config.border import from_config_dict
from train.data.sources import load_splits
from train.devices.mesh import one_device_mesh
from train.errors import BadInput
from train.logs.metrics import read_metrics
from train.loop import train
from train.optimizer import decay_mask
from train.state import expected_state


@pytest.fixture(scope="module", autouse=True)
def without_curves():
    """Whose picture takes longer than a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.logs.run_log.plot_curves", lambda workdir: workdir)
        yield


@pytest.fixture(scope="module")
def merges():
    """An entry for each time that the run of `finished` merged its kernels."""
    return []


@pytest.fixture(scope="module")
def finished(base, merges, tmp_path_factory):
    """A run of adapters, trained to its end, with an average of its weights."""

    def counted(*args):
        merges.append(None)
        return merge(*args)

    workdir = tmp_path_factory.mktemp("adapted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.merge", counted)
        train(make_adapted(base), workdir)
    return workdir


def test_kernels_are_merged_once_per_score(finished, merges):
    """Not again for the check of a reversible pair, which this run has not."""
    splits = ("val/loss", "test/loss")
    scored = [name for m in read_metrics(finished) for name in splits if name in m]
    assert len(merges) == len(scored) == 3


def test_a_checkpoint_holds_what_is_trained(finished):
    leaves = read_metadata(finished, 6).leaves
    layers = "params/depth/groups"
    assert {name: leaf.shape for name, leaf in leaves.items() if name.startswith("params/")} == {
        f"{layers}/attention_layer/qkv/lora_a": (2, 16, 4),
        f"{layers}/attention_layer/qkv/lora_b": (2, 4, 3, 2, 8),
        f"{layers}/mlp_layer/up/lora_a": (2, 16, 4),
        f"{layers}/mlp_layer/up/lora_b": (2, 4, 32),
        f"{layers}/mlp_layer/down/lora_a": (2, 32, 4),
        f"{layers}/mlp_layer/down/lora_b": (2, 4, 16),
        "params/head/kernel": (16, 10),
        "params/head/bias": (10,),
    }
    trained = sum(name.startswith("params/") for name in leaves)
    arrays = sum(bool(leaf.shape) for leaf in leaves.values())
    assert arrays == 4 * trained + 1  # weights, their average, two moments; and the guard's window


def test_only_adapters_and_the_head_move(base, finished):
    """What is loaded is W + (alpha / rank) A B by hand, and all else is the base's."""
    config = verified_config(finished)
    was = load_params(base, verified_config(base))
    now = load_model(finished)[1]["params"]
    different = jax.tree.map(lambda a, b: bool(np.any(a != b)), was, now)
    kernels = {"depth/groups/attention_layer/qkv/kernel"}
    kernels |= {f"depth/groups/mlp_layer/{name}/kernel" for name in ("up", "down")}
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, is_moved in jax.tree_util.tree_leaves_with_path(different)
        if is_moved
    }
    assert moved == kernels | {"head/kernel", "head/bias"}

    target = expected_state(config, one_device_mesh()).params
    trained, _ = restore_weights(finished, 6, target)
    adapters = trained["depth"]["groups"]["mlp_layer"]["up"]
    product = adapters["lora_a"] @ adapters["lora_b"]
    kernel = was["depth"]["groups"]["mlp_layer"]["up"]["kernel"]
    found = now["depth"]["groups"]["mlp_layer"]["up"]["kernel"]
    np.testing.assert_allclose(found, kernel + 8.0 / 4 * product, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(product)) > 1e-3

    model, _ = load_model(finished)
    data = load_splits(config)["test"]
    images = data.standardise(data.to_unit(data.images[:8]))
    apply = jax.jit(model.apply)
    merged = apply({"params": merge(config, trained, was)}, images)
    unmerged = apply(adapted(config, trained, was), images)
    np.testing.assert_allclose(unmerged, merged, rtol=1e-6, atol=1e-6)

    # The predictor reads the merged weights, and the run was scored with them.
    predicted = load_predictor(finished).predict(data.images)
    right = np.mean(
        [int(p.label) == label for p, label in zip(predicted, data.labels, strict=True)]
    )
    assert right == pytest.approx(read_metrics(finished)[-1]["test/accuracy"], abs=1e-6)


def test_an_interrupted_run_ends_as_one_that_was_not(base, finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            train(make_adapted(base), tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [3]

    # The base may have been moved: it is known by what it holds.
    shutil.copytree(base, tmp_path / "moved")
    train(make_adapted(tmp_path / "moved"), tmp_path / "run")
    was, now = (read_metadata(workdir, 6) for workdir in (finished, tmp_path / "run"))
    assert now.leaves == was.leaves and now.base == was.base
    lines = [list(map(timeless, read_metrics(w))) for w in (finished, tmp_path / "run")]
    assert lines[0] == lines[1]


def test_another_base_is_refused(finished, tmp_path):
    other = make_adapted()
    other.seed = 1
    save(other, tmp_path / "other", shaken)
    message = "does not hold the weights that the adapters of step 6 were trained of"
    with pytest.raises(BadInput, match=message):
        train(make_adapted(tmp_path / "other"), finished)
    with pytest.raises(BadInput, match=message):
        load_model(finished, {"init.path": str(tmp_path / "other")})
    with pytest.raises(BadInput, match=r"init\.path=/nowhere is neither a workdir nor a model"):
        load_model(finished, {"init.path": "/nowhere"})

    # Without its base a run can still be listed and verified.
    assert [entry.state for entry in list_checkpoints(finished, verified_config(finished))] == [
        SOUND,
        SOUND,
    ]


def test_a_head_of_other_classes_is_new(base, capsys):
    config = from_config_dict(make_adapted(base))
    weights, mesh = load_params(base, from_config_dict(make_adapted())), one_device_mesh()

    def based(weights, classes):
        source = find_source(config)
        model = dataclasses.replace(source.model, classes=classes)
        source = dataclasses.replace(source, trained=model, model=model)
        plan = plan_initial(config, source)
        return make_base(config, source, plan, weights, step=1, mesh=mesh)

    same = based(weights, 10)
    warn_of_new_head(config, same)
    assert capsys.readouterr().err == "" and same.head is not None

    seven = {name: leaf[..., :7] for name, leaf in weights["head"].items()}
    other = based(weights | {"head": seven}, 7)
    warn_of_new_head(config, other)
    assert "has no head of 10 classes: this run begins with a new one" in capsys.readouterr().err
    assert other.head is None and other.digest == same.digest

    # Where it fits, a run begins with the base's, as copies: the step donates what it trains.
    new = {name: leaf + 1 for name, leaf in weights["head"].items()}
    begun = init_trained(config, 0, weights, head={"head": new})["head"]
    jax.tree.map(np.testing.assert_array_equal, begun, new)
    assert all(begun[name] is not new[name] for name in new)
    begun = init_trained(config, 0, weights)["head"]
    jax.tree.map(np.testing.assert_array_equal, begun, weights["head"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": 17}, r"config\.lora: rank=17 is more than .* 16 x 48: take 16 or less"),
        ({"lora.targets": ("qvk",)}, r"config\.lora: targets: unknown .* Did you mean 'qkv'"),
        ({"model.mlp": 64}, "do not fit the model: depth/groups/mlp_layer/down/kernel is .* with$"),
        ({"init.path": "/nowhere"}, "config.init.path=/nowhere is neither a workdir nor a model"),
        ({"init.path": None}, r"config\.lora\.rank=4 adapts weights .* config\.init\.path"),
        ({"lora.rank": None}, r"config\.lora\.alpha=8\.0 has no effect without adapters"),
        ({"lora.rank": None, "lora.alpha": None}, r"config\.lora\.targets=\['qkv'.*no effect"),
        ({"init.exclude": ("head",)}, r"init\.exclude=\['head'\] has no effect with adapters"),
        ({"optimizer.freeze": ("norm",)}, r"'norm' matches no parameter: there are depth/"),
    ],
)
def test_refusals(base, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        train(from_config_dict(make_adapted(base), changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_adapters_of_itself_is_refused(base, tmp_path):
    """As a second start finds it whose first was stopped before its first checkpoint."""
    config = from_config_dict(make_adapted(base), {"init.path": str(tmp_path)})
    record_run(epath.Path(tmp_path), config, load_splits(config)["train"])
    with pytest.raises(BadInput, match="it is the run's own folder: take another folder"):
        train(config, tmp_path)


def test_adapters_of_a_reversible_pair(base, tmp_path):
    """Trained and validated; the state at depth 0 is recovered with the merged weights."""
    depth = {"solver": "midpoint", "reversible": 0.999, "adjoint": "reversible"}
    changes = {f"depth.{name}": value for name, value in depth.items()}
    train(from_config_dict(make_adapted(base), changes), tmp_path / "run")
    *_, validated = (m for m in read_metrics(tmp_path / "run") if "val/loss" in m)
    assert 0 < validated["val/reversible_error"] < 1e-5 < validated["val/reversible_gap"]


def test_adapters_decay_as_kernels_do(base):
    config = from_config_dict(make_adapted(base, targets=("qkv",)))
    mask = decay_mask(expected_state(config, one_device_mesh()).params)
    assert mask == {
        "depth": {"groups": {"attention_layer": {"qkv": {"lora_a": True, "lora_b": True}}}},
        "head": {"kernel": True, "bias": False},
    }


@pytest.mark.slow
def test_adapters_on_text(tmp_path):
    """They are refused on other tokens than the base's, and leave a tied head alone."""
    cfg = make_tiny_language()
    cfg.data.files = str(ROOT / "README.md")
    save(cfg, tmp_path / "base", shaken)
    cfg.init.path, cfg.lora.rank = str(tmp_path / "base"), 2
    cfg.data.files = str(ROOT / "LICENSE")
    with pytest.raises(BadInput, match=r"another tokeniser: .*data\.tokenizer=.*tokenizer\.json"):
        train(cfg, tmp_path / "run")

    cfg.data.tokenizer = str(tmp_path / "base/tokenizer.json")
    train(cfg, tmp_path / "run")
    leaves = read_metadata(tmp_path / "run", 6).leaves
    assert {name.split("/")[1] for name in leaves if name.startswith("params/")} == {"depth"}
    text = load_predictor(tmp_path / "run").predict("The ", max_new_tokens=3, temperature=0.0)
    model, variables = load_model(tmp_path / "run")
    tokenizer = read_tokenizer(tmp_path / "run")
    prompt = [[tokenizer.end, *tokenizer.encode(["The "])[0].tolist()]]
    new = generate(model, variables, prompt, max_new_tokens=3, temperature=0.0, end=tokenizer.end)
    assert text == tokenizer.decode(new[0])


def test_the_bytes_of_adapters_of_gpt_small():
    """Weights and moments in float32: 12 layers of rank 8, and less than 2 % of the full state."""
    cfg = lm1b.get_config()
    cfg.model.preset = "gpt_small"
    config = from_config_dict(cfg, {"init.path": "/x", "lora.rank": 8, "optimizer.ema_decay": None})
    full = from_config_dict(cfg, {"optimizer.ema_decay": None})
    mesh = one_device_mesh()
    sizes = []
    for one in (config, full):
        state = expected_state(one, mesh)
        sizes.append(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)))

    width, mlp = 768, 3072
    rows_and_columns = (width + 3 * width) + (width + width) + 2 * (width + mlp)
    weights = 12 * 8 * rows_and_columns
    others = 4 * (2 * 128 + 2 + 3)  # the guard's, the steps of it, of AdamW, of its schedule
    assert sizes[0] == 3 * 4 * weights + others
    assert sizes[0] < 0.02 * sizes[1]
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_base(config, mesh))) > 1e8
