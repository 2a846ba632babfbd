"""Tiny Shakespeare, byte by byte, at nanoGPT's two budgets.

    python -m train.prepare tiny_shakespeare
    python -m train --config=configs/shakespeare.py:size=cpu --workdir=runs/shakespeare

A text file of your own: --config.data.name=files --config.data.files=FILE. The argument:
size=cpu|accelerator.

- size=cpu: 4 layers, 4 heads, width 128, blocks of 64, batches of 12, 2,000 steps. Hardware: one
  shared CPU core, 7 minutes. Validation loss: 1.644 nats per byte (21 November 2026).
- size=accelerator: 6 layers, 6 heads, width 384, blocks of 256, batches of 64, 5,000 steps.
  Hardware, time and loss: not measured.

Source: Karpathy, nanoGPT, 2022. Other solvers by flag, e.g. --config.depth.solver=rk4.
"""

from configs import common


def get_config(argument: str | None = None) -> common.Config:
    """Returns the config of the argument's size."""
    choice = common.parse(argument, size=("cpu", "accelerator"))
    return _get_cpu() if choice.size == "cpu" else _get_accelerator()


def _get_cpu() -> common.Config:
    cfg = _get_run(train_steps=2000, batch_size=12)
    cfg.model.update(block_size=64, width=128, heads=4, mlp=512)
    cfg.depth.update(layers=4, adjoint="store")

    cfg.optimizer.learning_rate = 4e-3
    cfg.eval.every_steps = 500
    return cfg


def _get_accelerator() -> common.Config:
    cfg = _get_run(train_steps=5000, batch_size=64)
    cfg.model.update(preset="gpt_nano", dropout=0.2, dtype="bfloat16")

    cfg.optimizer.learning_rate = 1e-3
    cfg.eval.every_steps = 250
    return cfg


def _get_run(train_steps: int, batch_size: int) -> common.Config:
    """What the sizes share."""
    cfg = common.get_run("language", train_steps=train_steps, batch_size=batch_size)
    cfg.data.update(name="tiny_shakespeare", packing="stream")

    cfg.optimizer.update(warmup_steps=100, weight_decay=0.1, b2=0.99, clip_norm=1.0)
    cfg.eval.batch_size = 128
    return cfg
