"""Makes the golden values of tests/interop/test_timm.py: random models of timm, and what they say.

    python tests/data/timm/recipe.py FOLDER [MODEL ...]

needs torch and timm (2.13.0 and 1.0.31 made what is stored), and nothing of this project. Each
folder that it makes holds a tiny model as timm stores it for the Hub, in float32, with noise on
every parameter, and golden.npz: images and logits, or the normed tokens of a model without a head.
"""

import pathlib
import sys

import numpy as np
import timm
import torch
from timm.models import save_for_hf

SIZES = dict(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=1.5)

# Each differs from the others in what a name or its arguments can say.
MODELS = {
    "vit": ("vit_tiny_patch16_224", SIZES | dict(num_classes=3)),
    "vit_wide": (
        "vit_base_patch16_224",
        SIZES | dict(img_size=(8, 12), in_chans=1, num_classes=5, embed_dim=12, num_heads=3),
    ),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", SIZES | dict(num_classes=3)),
    "deit3": ("deit3_small_patch16_224", SIZES | dict(num_classes=3)),
    "dinov2": ("vit_small_patch14_dinov2", SIZES | dict(num_classes=0, depth=3, mlp_ratio=2)),
    "dinov2_reg4": ("vit_small_patch14_reg4_dinov2", SIZES | dict(num_classes=0, mlp_ratio=2)),
    # Twice a hidden size of 24, which is also what transformers makes of a ratio of 2.
    "dinov2_giant": (
        "vit_giant_patch14_dinov2",
        SIZES | dict(num_classes=0, embed_dim=16, mlp_ratio=3, qkv_bias=False),
    ),
    "dinov2_giant_reg4": (
        "vit_giant_patch14_reg4_dinov2",
        SIZES | dict(num_classes=0, mlp_ratio=4),
    ),
    "vit_unbiased": (
        "vit_small_patch16_224",
        SIZES | dict(num_classes=3, qkv_bias=False, act_layer="gelu_tanh"),
    ),
}


@torch.no_grad()
def make(folder, name, seed):
    torch.manual_seed(seed)
    architecture, arguments = MODELS[name]
    model = timm.create_model(architecture, pretrained=False, **arguments).eval()
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    save_for_hf(model, folder / name, safe_serialization=True)

    size = arguments["img_size"]
    sides = size if isinstance(size, tuple) else (size, size)
    inputs = torch.randn(3, arguments.get("in_chans", 3), *sides)
    said = model(inputs) if model.num_classes else model.forward_features(inputs)
    images = inputs.permute(0, 2, 3, 1).numpy()
    np.savez(folder / name / "golden.npz", images=images, logits=said.numpy())


if __name__ == "__main__":
    for seed, name in enumerate(MODELS):
        if name in sys.argv[2:] or len(sys.argv) == 2:
            make(pathlib.Path(sys.argv[1]), name, seed)
