"""Llama, Qwen2 and Qwen3 as the library transformers stores them.

Sources: Touvron et al., 'LLaMA', 2023, arXiv 2302.13971; Dubey et al., 'The Llama 3 Herd of
Models', 2024, arXiv 2407.21783; Yang et al., 'Qwen2 Technical Report', 2024, arXiv 2407.10671; Yang
et al., 'Qwen3 Technical Report', 2025, arXiv 2505.09388.
"""

from typing import Any

from odeformer.errors import check_name
from odeformer.interop.checks import check_keys, check_value, check_windows
from odeformer.interop.layout import Layout, Leaf, of_layers, same, transposed
from odeformer.interop.settings import WRITTEN, Raw, activation
from odeformer.models.lm import LMConfig
from odeformer.transformer.heads import heads_of
from odeformer.transformer.rotary import Rotary

# By architecture, what an absent key of config.json means there.
DEFAULTS: dict[str, Raw] = {
    "LlamaForCausalLM": dict(
        vocab_size=32000, intermediate_size=11008, max_position_embeddings=2048
    ),
    "Qwen2ForCausalLM": dict(
        vocab_size=151936,
        intermediate_size=22016,
        max_position_embeddings=32768,
        num_key_value_heads=32,
    ),
    "Qwen3ForCausalLM": dict(
        vocab_size=151936,
        intermediate_size=22016,
        max_position_embeddings=32768,
        num_key_value_heads=32,
        head_dim=128,
    ),
}
LLAMA, QWEN2, QWEN3 = DEFAULTS
_MODEL_TYPES = {LLAMA: "llama", QWEN2: "qwen2", QWEN3: "qwen3"}

# Their kinds of rotary positions, and our scalings.
_SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
_ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def read(raw: Raw) -> dict[str, Any]:
    """Returns the fields of an LMConfig that a config.json describes, and the layers."""
    name = raw["architectures"][0]
    raw = DEFAULTS[name] | raw
    width, layers = raw.get("hidden_size", 4096), raw.get("num_hidden_layers", 32)
    heads, keys = raw.get("num_attention_heads", 32), raw.get("num_key_value_heads")
    size = raw.get("head_dim")
    check_windows(raw, layers)

    # Qwen2 always has biases of queries, keys and values; the others only if their config says so.
    biases = name == QWEN2 or bool(raw.get("attention_bias"))
    return dict(
        vocabulary=raw["vocab_size"],
        block_size=raw["max_position_embeddings"],
        width=width,
        heads=heads,
        kv_heads=None if keys == heads else keys,
        head_size=None if size is None or size * heads == width else size,
        qk_norm=name == QWEN3,
        qkv_bias=biases,
        out_bias=biases and name != QWEN2,
        mlp=raw["intermediate_size"],
        mlp_bias=name == LLAMA and bool(raw.get("mlp_bias")),
        gated=True,
        activation=activation(raw, "hidden_act", "silu"),
        norm="rms",
        norm_epsilon=raw.get("rms_norm_eps", 1e-6),
        tied=raw.get("tie_word_embeddings", False),
        positions="rotary",
        layers=layers,
        **_rotary(raw),
    )


def _rotary(raw: Raw) -> dict[str, Any]:
    """The settings of rotary positions, under the newer key or the two older ones."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    rope = {"rope_theta": raw.get("rope_theta", 10_000.0)} | rope
    check_value(raw | rope, "partial_rotary_factor", 1.0, default=1.0)

    kind = rope.get("rope_type", rope.get("type", "default"))
    check_name("rope_type in config.json", kind, _SCALINGS)
    check_keys(rope, f"of rope_type {kind!r}", _ROPE_KEYS[kind])
    found = dict(rotary_base=rope["rope_theta"], rotary_scaling=_SCALINGS[kind])
    if kind == "default":
        return found

    found |= dict(rotary_factor=rope["factor"])
    if kind == "linear":
        return found

    length = rope.get("original_max_position_embeddings", raw["max_position_embeddings"])
    return found | dict(
        rotary_low_turns=rope["low_freq_factor"],
        rotary_high_turns=rope["high_freq_factor"],
        rotary_length=length,
    )


def architecture(config: LMConfig) -> str:
    """Returns the architecture that fits a model with RMS norms best; `needs` says if it fits."""
    if config.qk_norm:
        return QWEN3

    return LLAMA if config.qkv_bias == config.out_bias else QWEN2


def needs(config: LMConfig) -> dict[str, tuple[Any, Any]]:
    """Returns what the layout needs of a model: by key, the model's value and the accepted one."""
    name = architecture(config)
    needed: dict[str, tuple[Any, Any]] = {
        "model.gated": (config.gated, True),
        "model.positions": (config.positions, "rotary"),
        "model.rotary_fraction": (config.rotary_fraction, 1),
        "model.layer_scale": (config.layer_scale, None),
    }
    if name == LLAMA:
        # transformers refuses a Llama whose heads do not divide the width, whatever their size.
        return needed | {"model.width % model.heads": (config.width % config.heads, 0)}

    if name == QWEN2:
        needed |= {"model.qkv_bias": (config.qkv_bias, True)}
    else:
        needed |= {"model.out_bias": (config.out_bias, config.qkv_bias)}
    return needed | {"model.mlp_bias": (config.mlp_bias, False)}


def write(config: LMConfig) -> Raw:
    """Returns the config.json of a model."""
    name, heads = architecture(config), heads_of(config)
    parameters = _rope(config.rotary)
    raw = {
        "architectures": [name],
        "model_type": _MODEL_TYPES[name],
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth.layers,
        "num_attention_heads": heads.queries,
        "num_key_value_heads": heads.keys,
        "head_dim": heads.size,
        "intermediate_size": config.mlp,
        "hidden_act": WRITTEN[config.activation],
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
        # The second and third key are those that transformers read before version 5.
        "rope_parameters": {"rope_theta": config.rotary_base} | parameters,
        "rope_theta": config.rotary_base,
        "rope_scaling": None if config.rotary_scaling == "none" else parameters,
        # The model knows no tokeniser.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if name != QWEN2:
        raw["attention_bias"] = config.qkv_bias
    if name == LLAMA:
        return raw | {"mlp_bias": config.mlp_bias}

    layers = ["full_attention"] * config.depth.layers
    return raw | {"use_sliding_window": False, "layer_types": layers}


def _rope(rotary: Rotary) -> Raw:
    """The settings of rotary positions, apart from the base, under the names of transformers."""
    kinds = {ours: theirs for theirs, ours in _SCALINGS.items()}
    found: Raw = {"rope_type": kinds[rotary.scaling]}
    if rotary.scaling != "none":
        found["factor"] = rotary.factor
    if rotary.scaling == "llama3":
        found["low_freq_factor"] = rotary.low_turns
        found["high_freq_factor"] = rotary.high_turns
        found["original_max_position_embeddings"] = rotary.length

    return found


def layout(config: LMConfig) -> Layout:
    """Returns which tensors make up the model's parameters."""
    width, layer = config.width, "model.layers.{}"
    leaves = {
        "embedding/embedding": same("model.embed_tokens.weight", config.vocabulary, width),
        **of_layers(
            {
                "attention_norm/scale": same(f"{layer}.input_layernorm.weight", width),
                **_attention(config, f"{layer}.self_attn"),
                "mlp_norm/scale": same(f"{layer}.post_attention_layernorm.weight", width),
                **_mlp(config, f"{layer}.mlp"),
            }
        ),
        "norm/scale": same("model.norm.weight", width),
    }
    if not config.tied:
        leaves["head/kernel"] = transposed("lm_head.weight", config.vocabulary, width)

    return leaves


def _attention(config: LMConfig, name: str) -> dict[str, Leaf]:
    heads, keys, size = heads_of(config)
    if keys == heads:
        leaves = _input(config, "qkv", (f"{name}.{part}_proj" for part in "qkv"), heads)
    else:
        leaves = _input(config, "q", [f"{name}.q_proj"], heads)
        leaves |= _input(config, "kv", (f"{name}.{part}_proj" for part in "kv"), keys)

    if config.qk_norm:
        for part in "qk":
            leaves[f"{part}_norm/scale"] = same(f"{name}.{part}_norm.weight", size)

    theirs = (config.width, heads * size)
    leaves["out/kernel"] = Leaf(
        (f"{name}.o_proj.weight",),
        theirs,
        (config.width, heads, size),
        (1, 2, 0),
        (heads, size, config.width),
    )
    if config.out_bias:
        leaves["out/bias"] = same(f"{name}.o_proj.bias", config.width)

    return {f"attention_layer/{path}": leaf for path, leaf in leaves.items()}


def _input(config: LMConfig, path: str, names: Any, heads: int) -> dict[str, Leaf]:
    """Input products for that many heads; several of them make up one array of ours."""
    names, size, width = list(names), heads_of(config).size, config.width
    parts = (len(names),) if len(names) > 1 else ()
    ours = (*parts, heads, size)
    leaves = {
        f"{path}/kernel": Leaf(
            tuple(f"{name}.weight" for name in names),
            (heads * size, width),
            (*ours, width),
            (len(ours), *range(len(ours))),
            (width, *ours),
        )
    }
    if config.qkv_bias:
        biases = tuple(f"{name}.bias" for name in names)
        leaves[f"{path}/bias"] = Leaf(biases, (heads * size,), ours, tuple(range(len(ours))), ours)

    return leaves


def _mlp(config: LMConfig, name: str) -> dict[str, Leaf]:
    leaves, sizes = {}, (config.width, config.mlp)
    for part, (inputs, outputs) in dict(gate=sizes, up=sizes, down=sizes[::-1]).items():
        path = f"mlp_layer/{part}"
        leaves[f"{path}/kernel"] = transposed(f"{name}.{part}_proj.weight", outputs, inputs)
        if config.mlp_bias:
            leaves[f"{path}/bias"] = same(f"{name}.{part}_proj.bias", outputs)

    return leaves


def stored_as(name: str, config: LMConfig) -> str | None:
    """Returns the layout's name of a stored tensor; None if it is not a weight of the model."""
    # Old files hold the angles of rotary positions, too, and some a copy of the tied head.
    if name.endswith(".rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight"):
        return None

    return name
