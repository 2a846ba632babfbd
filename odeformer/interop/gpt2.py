"""GPT-2 as the library transformers stores it.

Source: Radford et al., 'Language Models are Unsupervised Multitask Learners', 2019.
"""

import re
from typing import Any

from odeformer.interop.checks import check_value
from odeformer.interop.layout import Layout, Leaf, norm, of_layers, same, transposed
from odeformer.interop.settings import WRITTEN, Raw, activation
from odeformer.models.lm import LMConfig

ARCHITECTURE = "GPT2LMHeadModel"
_PREFIX = "transformer."

# Masks, which old files hold in addition to the weights.
_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")


def read(raw: Raw) -> dict[str, Any]:
    """Returns the fields of an LMConfig that a config.json describes, and the layers."""
    check_value(raw, "scale_attn_weights", True, default=True)
    check_value(raw, "scale_attn_by_inverse_layer_idx", False, default=False)
    check_value(raw, "add_cross_attention", False, default=False)

    width = raw.get("n_embd", 768)
    return dict(
        vocabulary=raw.get("vocab_size", 50257),
        block_size=raw.get("n_positions", 1024),
        width=width,
        heads=raw.get("n_head", 12),
        mlp=raw["n_inner"] if raw.get("n_inner") is not None else 4 * width,
        positions="learned",
        tied=raw.get("tie_word_embeddings", True),
        activation=activation(raw, "activation_function", "gelu_new"),
        norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
        layers=raw.get("n_layer", 12),
    )


def write(config: LMConfig) -> Raw:
    """Returns the config.json of a model."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt2",
        "vocab_size": config.vocabulary,
        "n_positions": config.block_size,
        "n_embd": config.width,
        "n_layer": config.depth.layers,
        "n_head": config.heads,
        "n_inner": config.mlp,
        "tie_word_embeddings": config.tied,
        "activation_function": WRITTEN[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "attn_pdrop": 0.0,
        # The model knows no tokeniser; the default, 50256, may be outside of the vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def layout(config: LMConfig) -> Layout:
    """Returns which tensors make up the model's parameters."""
    width, heads, mlp = config.width, config.heads, config.mlp
    size, layer = width // heads, f"{_PREFIX}h.{{}}"
    inputs, out = f"{layer}.attn.c_attn", f"{layer}.attn.c_proj"

    # Their dense layers keep kernels as we do, [inputs, outputs].
    leaves = {
        "embedding/embedding": same(f"{_PREFIX}wte.weight", config.vocabulary, width),
        "position_embedding/embedding": same(f"{_PREFIX}wpe.weight", config.block_size, width),
        **of_layers(
            {
                **norm("attention_norm", f"{layer}.ln_1", width),
                "attention_layer/qkv/kernel": _split(
                    f"{inputs}.weight", (width, 3 * width), (width, 3, heads, size)
                ),
                "attention_layer/qkv/bias": _split(
                    f"{inputs}.bias", (3 * width,), (3, heads, size)
                ),
                "attention_layer/out/kernel": _split(
                    f"{out}.weight", (width, width), (heads, size, width)
                ),
                "attention_layer/out/bias": same(f"{out}.bias", width),
                **norm("mlp_norm", f"{layer}.ln_2", width),
                "mlp_layer/up/kernel": same(f"{layer}.mlp.c_fc.weight", width, mlp),
                "mlp_layer/up/bias": same(f"{layer}.mlp.c_fc.bias", mlp),
                "mlp_layer/down/kernel": same(f"{layer}.mlp.c_proj.weight", mlp, width),
                "mlp_layer/down/bias": same(f"{layer}.mlp.c_proj.bias", width),
            }
        ),
        **norm("norm", f"{_PREFIX}ln_f", width),
    }
    if not config.tied:
        leaves["head/kernel"] = transposed("lm_head.weight", config.vocabulary, width)

    return leaves


def _split(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> Leaf:
    """A tensor whose axes we split into parts and heads, in the order in which they stand."""
    return Leaf((name,), theirs, ours, tuple(range(len(ours))), ours)


def stored_as(name: str, config: LMConfig) -> str | None:
    """The layout's name of a stored tensor; None for what is no weight of the model."""
    # The first published files hold the model without its head, and so without the prefix.
    bare = name.removeprefix(_PREFIX)
    if _BUFFER.fullmatch(bare) or (config.tied and bare == "lm_head.weight"):
        return None

    return bare if bare == "lm_head.weight" else f"{_PREFIX}{bare}"
