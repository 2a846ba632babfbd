"""Which axes of the parameters a mesh splits."""

import jax
import pytest
from jax.sharding import PartitionSpec

from odeformer import LM, TextClassifier, ViT, presets
from odeformer.models.registry import example_inputs
from odeformer.transformer.sharding import parameter_axes
from train.devices.mesh import RULES


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
