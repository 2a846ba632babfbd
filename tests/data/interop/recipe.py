"""Makes the golden values of tests/interop: random models of transformers, and what they say.

    python tests/data/interop/recipe.py FOLDER [MODEL ...]

needs torch and transformers (2.13.0 and 5.24.0 made what is stored), and nothing of this project.
Each folder that it makes holds a tiny model, in float32, with noise on every parameter, and
golden.npz: the inputs and the logits, or the normed tokens of a model without a head; for a
language model also 32 tokens of greedy text. Of images whose model was made for square ones
resized.npz holds the same at another size.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

VIT = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
VIT |= dict(image_size=8, patch_size=4, num_labels=3)
DINOV2 = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2)
DINOV2 |= dict(image_size=8, patch_size=4, num_labels=3)
GPT2 = dict(n_embd=8, n_layer=2, n_head=2, n_positions=48, vocab_size=20)
GPT2 |= dict(bos_token_id=None, eos_token_id=None)

LLAMA = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20)
LLAMA |= dict(num_key_value_heads=2, vocab_size=20, max_position_embeddings=48)
LLAMA |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
LINEAR = dict(rope_type="linear", rope_theta=500.0, factor=2.5)
# Of its four waves one is kept, one scaled in part, and two as a whole.
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0)
LLAMA3 |= dict(high_freq_factor=4.0, original_max_position_embeddings=32)

# Each differs from the others in what its config can say: sizes, activation, epsilon, ties.
MODELS = {
    "vit": ("ViT", "ForImageClassification", VIT),
    "vit_wide": (
        "ViT",
        "ForImageClassification",
        VIT
        | dict(hidden_act="relu", layer_norm_eps=1e-3, num_channels=1, num_hidden_layers=3)
        | dict(hidden_size=12, num_attention_heads=3, image_size=[8, 12], num_labels=5),
    ),
    "deit_token": ("DeiT", "ForImageClassification", VIT | dict(hidden_act="gelu_pytorch_tanh")),
    "deit_mean": ("DeiT", "ForImageClassificationWithTeacher", VIT),
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "gpt2_untied": (
        "GPT2",
        "LMHeadModel",
        GPT2
        | dict(n_embd=12, n_layer=1, n_head=3, n_inner=20, vocab_size=23)
        | dict(activation_function="silu", layer_norm_epsilon=1e-3, tie_word_embeddings=False),
    ),
    "dinov2": ("Dinov2", "Model", DINOV2 | dict(layerscale_value=0.1)),
    "dinov2_head": (
        "Dinov2",
        "ForImageClassification",
        DINOV2
        | dict(hidden_size=12, num_attention_heads=3, mlp_ratio=1, hidden_act="silu")
        | dict(num_channels=1, num_labels=5, layer_norm_eps=1e-3, use_mask_token=False),
    ),
    "dinov2_registers": (
        "Dinov2WithRegisters",
        "Model",
        DINOV2 | dict(num_register_tokens=3, num_hidden_layers=3, image_size=12),
    ),
    "dinov2_registers_head": (
        "Dinov2WithRegisters",
        "ForImageClassification",
        DINOV2 | dict(layerscale_value=0.5, hidden_act="relu"),
    ),
    # Keys and values of as many heads as there are, biases, another activation; llama3's waves.
    "llama": (
        "Llama",
        "ForCausalLM",
        LLAMA
        | dict(num_attention_heads=2, attention_bias=True, mlp_bias=True, hidden_act="gelu")
        | dict(rope_parameters=LLAMA3, rms_norm_eps=1e-3),
    ),
    "llama_shared": ("Llama", "ForCausalLM", LLAMA | dict(tie_word_embeddings=True)),
    # One head of keys and values; heads that do not make up the width.
    "llama_single": (
        "Llama",
        "ForCausalLM",
        LLAMA
        | dict(hidden_size=12, num_attention_heads=3, num_key_value_heads=1, head_dim=6)
        | dict(rope_parameters=LINEAR, num_hidden_layers=1, vocab_size=23),
    ),
    "qwen2": ("Qwen2", "ForCausalLM", LLAMA),
    "qwen2_tied": (
        "Qwen2",
        "ForCausalLM",
        LLAMA
        | dict(num_key_value_heads=4, tie_word_embeddings=True, num_hidden_layers=3)
        | dict(hidden_act="gelu_pytorch_tanh")
        | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    ),
    "qwen3": ("Qwen3", "ForCausalLM", LLAMA | dict(head_dim=6, tie_word_embeddings=True)),
    "qwen3_biased": (
        "Qwen3",
        "ForCausalLM",
        LLAMA
        | dict(attention_bias=True, head_dim=4, num_attention_heads=3, num_key_value_heads=3)
        | dict(hidden_act="relu", rope_parameters=LLAMA3, rms_norm_eps=1e-3),
    ),
    "vit_unbiased": ("ViT", "ForImageClassification", VIT | dict(qkv_bias=False)),
    "deit_unbiased": (
        "DeiT",
        "ForImageClassificationWithTeacher",
        VIT | dict(qkv_bias=False, num_channels=1),
    ),
    # The giants: 21 hidden entries become 24; the activation that is named has no effect.
    "dinov2_giant": (
        "Dinov2",
        "Model",
        DINOV2 | dict(use_swiglu_ffn=True, hidden_size=16, layerscale_value=0.5, hidden_act="relu"),
    ),
    "dinov2_registers_giant": (
        "Dinov2WithRegisters",
        "ForImageClassification",
        DINOV2
        | dict(use_swiglu_ffn=True, qkv_bias=False, num_register_tokens=2, hidden_size=12)
        | dict(num_attention_heads=3),
    ),
}
LANGUAGE = ("LMHeadModel", "ForCausalLM")
NEW_TOKENS = 32


def make(folder, name, seed):
    family, kind, sizes = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if kind in LANGUAGE:
            vary(model)

    # What is stored is what is computed with: read again.
    model.save_pretrained(folder / name)
    model = type(model).from_pretrained(folder / name, attn_implementation="eager").eval()
    np.savez(folder / name / "golden.npz", **say(model, config))
    if isinstance(getattr(config, "image_size", None), int):
        np.savez(folder / name / "resized.npz", **images(model, config, (12, 20)))
    (folder / name / "generation_config.json").unlink(missing_ok=True)


def vary(model):
    """Lets the place and the context decide, so that greedy text does not repeat one token."""
    if hasattr(model, "transformer"):
        model.transformer.wpe.weight *= 5
        model.transformer.ln_f.bias *= 0.1
        last = [(block.attn.c_proj, block.mlp.c_proj) for block in model.transformer.h]
    else:
        last = [(layer.self_attn.o_proj, layer.mlp.down_proj) for layer in model.model.layers]
    for products in last:
        for product in products:
            product.weight *= 5


def say(model, config):
    """The inputs and what the model makes of them."""
    kind = type(model).__name__
    return language(model, config) if kind.endswith(LANGUAGE) else images(model, config)


@torch.no_grad()
def images(model, config, other=None):
    size = other or config.image_size
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    inputs = torch.randn(3, config.num_channels, *sides)
    # DINOv2 takes images of any size without being asked to.
    asked = other is not None and not config.model_type.startswith("dinov2")
    said = model(inputs, interpolate_pos_encoding=True) if asked else model(inputs)
    said = said.logits if "logits" in said else said.last_hidden_state
    return dict(images=inputs.permute(0, 2, 3, 1).numpy(), logits=said.numpy())


@torch.no_grad()
def language(model, config):
    tokens = torch.randint(config.vocab_size, (2, 16))
    new = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    logits = model(tokens).logits.numpy()
    return dict(tokens=tokens.numpy(), logits=logits, new=new[:, tokens.shape[1] :].numpy())


if __name__ == "__main__":
    for seed, name in enumerate(MODELS):
        if name in sys.argv[2:] or len(sys.argv) == 2:
            make(pathlib.Path(sys.argv[1]), name, seed)
