"""Makes the golden values of tests/interop: random models of transformers, and what they say.

    python tests/data/interop/recipe.py FOLDER [MODEL ...]

needs torch and transformers (2.13.0 and 5.24.0 made what is stored), and nothing of this project.
Each folder that it makes holds a tiny model, in float32, with noise on every parameter, and
golden.npz: the inputs and the logits, or the normed tokens of a model without a head; for a
language model also 32 tokens of greedy text.
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
}
NEW_TOKENS = 32


def make(folder, name, seed):
    family, kind, sizes = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        if family == "GPT2":
            vary(model.transformer)

    # What is stored is what is computed with: read again.
    model.save_pretrained(folder / name)
    model = type(model).from_pretrained(folder / name, attn_implementation="eager").eval()
    np.savez(folder / name / "golden.npz", **say(model, config))
    (folder / name / "generation_config.json").unlink(missing_ok=True)


def vary(model):
    """Lets the place and the context decide, so that greedy text does not repeat one token."""
    model.wpe.weight *= 5
    model.ln_f.bias *= 0.1
    for block in model.h:
        block.attn.c_proj.weight *= 5
        block.mlp.c_proj.weight *= 5


def say(model, config):
    """The inputs, and what the model makes of them."""
    return language(model, config) if config.model_type == "gpt2" else images(model, config)


@torch.no_grad()
def images(model, config):
    size = config.image_size
    sides = size if isinstance(size, (list, tuple)) else (size, size)
    inputs = torch.randn(3, config.num_channels, *sides)
    said = model(inputs)
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
