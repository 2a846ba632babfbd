"""Numbers of other people's programs, that ours are compared with; none of it is computed here.

    python -m tests.helpers.references        # writes tests/data/references.json

It takes torch, transformers and timm, which the project does not need otherwise. Each recipe
returns what it was given and what was found, so that a test needs neither them nor their random
numbers.
"""

import importlib.metadata
import json
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[1] / "data/references.json"
PACKAGES = ("torch", "transformers", "timm")


def rotary():
    """transformers' Llama: of queries [N, K] at positions [N]; RoFormer's angles, in halves."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    positions = [0, 1, 2, 7, 300]
    queries = np.random.default_rng(0).normal(size=(len(positions), 8)).round(3)
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, max_position_embeddings=512)
    embedding = modeling_llama.LlamaRotaryEmbedding(config)

    x = torch.tensor(queries, dtype=torch.float32)[None, None]
    cos, sin = embedding(x, torch.tensor([positions]))
    rotated, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)
    return dict(positions=positions, queries=queries.tolist(), rotated=rotated[0, 0].tolist())


def label_smoothing():
    """torch's CrossEntropyLoss(label_smoothing): of logits [B, C], by smoothing."""
    import torch

    logits = np.random.default_rng(1).normal(0, 3, (5, 4)).round(3)
    labels = [0, 3, 1, 1, 2]
    losses = {}
    for smoothing in (0.0, 0.1, 0.3):
        loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
        losses[str(smoothing)] = loss(torch.tensor(logits), torch.tensor(labels)).tolist()
    return dict(logits=logits.tolist(), labels=labels, losses=losses)


def drop_path():
    """timm's rate of each layer, by the number of layers: a linspace from 0."""
    from timm.layers import calculate_drop_path_rates

    rates = {str(layers): calculate_drop_path_rates(0.3, layers) for layers in (1, 2, 5, 12)}
    return dict(rate=0.3, rates=rates)


def mixing():
    """timm's Mixup and cutmix of a batch, with the weight and the box's centre that were drawn.

    Boxes of even sides alone: timm 1.0.31 keeps the last pixel of an odd side, which the program of
    the paper, and so ours, drops.
    """
    import torch
    from timm.data import mixup

    labels, classes, smoothing, (height, width) = [2, 0], 3, 0.1, (6, 8)
    images = np.random.default_rng(2).normal(size=(2, height, width)).round(2)
    # Boxes of 4 rows and 6 columns, and of 2 and 2.
    kept_parts = (0.36, 0.36, 0.36, 0.8775, 0.8775)
    cases = [("mixup", 0.3, 0), *(("cutmix", kept, seed) for seed, kept in enumerate(kept_parts))]
    found = []
    for kind, kept, seed in cases:
        mixer = mixup.Mixup(
            mixup_alpha=float(kind == "mixup"),
            cutmix_alpha=float(kind == "cutmix"),
            label_smoothing=smoothing,
            num_classes=classes,
        )
        mixer._params_per_batch = lambda kept=kept, kind=kind: (kept, kind == "cutmix")
        np.random.seed(seed)
        centre = [int(np.random.randint(0, side)) for side in (height, width)]
        np.random.seed(seed)
        mixed, targets = mixer(torch.tensor(images)[:, None].clone(), torch.tensor(labels))
        found.append(
            dict(kind=kind, kept=kept, centre=centre)
            | dict(images=mixed[:, 0].tolist(), targets=targets.tolist())
        )
    given = dict(images=images.tolist(), labels=labels, classes=classes, smoothing=smoothing)
    return given | dict(cases=found)


def schedule():
    """transformers' get_cosine_schedule_with_warmup: the rate of each step."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    rates = {}
    for warmup in (0, 5):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, 20)
        rates[str(warmup)] = []
        for _ in range(20):
            rates[str(warmup)] += schedule.get_last_lr()
            optimizer.step()
            schedule.step()
    return dict(learning_rate=0.02, train_steps=20, rates=rates)


def adamw():
    """torch's AdamW, of which one group decays, under a schedule and clipping: after each step."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    rng = np.random.default_rng(3)
    start = {name: rng.normal(size=4).round(3) for name in ("kernel", "bias")}
    gradients = {name: rng.normal(size=(8, 4)).round(3) for name in start}
    options = dict(learning_rate=0.1, b1=0.8, b2=0.95, weight_decay=0.3)
    params = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in start.items()
    }
    optimizer = torch.optim.AdamW(
        [
            dict(params=[params["kernel"]], weight_decay=options["weight_decay"]),
            dict(params=[params["bias"]], weight_decay=0.0),
        ],
        lr=options["learning_rate"],
        betas=(options["b1"], options["b2"]),
        eps=1e-8,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, 8)

    after: dict[str, list] = {name: [] for name in params}
    for step in range(8):
        for name, value in params.items():
            value.grad = torch.tensor(gradients[name][step])
        torch.nn.utils.clip_grad_norm_(list(params.values()), 1.5)
        optimizer.step()
        schedule.step()
        for name, value in params.items():
            after[name].append(value.detach().tolist())
    arrays = dict(start=start, gradients=gradients)
    listed = {k: {name: v.tolist() for name, v in each.items()} for k, each in arrays.items()}
    options |= dict(warmup_steps=2, train_steps=8, clip_norm=1.5)
    return dict(options=options, **listed, after=after)


def average():
    """torch's exponential moving average, its decay min(d, (1 + n) / (10 + n)) at update n.

    That decay is the one of TensorFlow's ExponentialMovingAverage(decay, num_updates=n).
    """
    import torch
    from torch.optim.swa_utils import get_ema_avg_fn

    weights = np.random.default_rng(4).normal(size=(120, 2)).round(3)
    mean, means = torch.tensor([5.0, -3.0], dtype=torch.float64), []
    start = mean.tolist()
    for n, value in enumerate(weights):
        decay = min(0.9, (1 + n) / (10 + n))
        mean = get_ema_avg_fn(decay)(mean, torch.tensor(value), torch.tensor(n))
        means.append(mean.tolist())
    return dict(decay=0.9, start=start, weights=weights.tolist(), means=means)


def resampling():
    """A table's places of a grid 5 x 4, on others: torch's bicubic, and timm's, which smooths."""
    import torch
    from timm.layers import resample_abs_pos_embed

    places = np.random.default_rng(5).normal(size=(5, 4, 2)).round(3)
    table, found = torch.tensor(places, dtype=torch.float32).reshape(1, -1, 2), []
    for grid in ((7, 9), (3, 2), (5, 8), (10, 4)):
        square = table.reshape(1, 5, 4, 2).permute(0, 3, 1, 2)
        plain = torch.nn.functional.interpolate(square, size=grid, mode="bicubic")
        smoothed = resample_abs_pos_embed(table, list(grid), [5, 4], num_prefix_tokens=0)
        plain = plain[0].permute(1, 2, 0).tolist()
        found.append(dict(grid=grid, plain=plain, smoothed=smoothed.reshape(*grid, 2).tolist()))
    return dict(places=places.tolist(), cases=found)


RECIPES = (rotary, label_smoothing, drop_path, mixing, schedule, adamw, average, resampling)


def make():
    """All of them, as they are stored."""
    made_with = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"made_with": made_with, **{recipe.__name__: recipe() for recipe in RECIPES}}


if __name__ == "__main__":
    # A recipe a line.
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in make().items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
