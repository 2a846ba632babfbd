"""Section 4: what a user would take instead: timm's models in PyTorch, torchdiffeq's solver.

The same steps as section 3's: bf16 autocast, the same batches, full train steps with AdamW.
"""

# PyTorch's packages are no dependency of this project.
# pyright: reportMissingImports=false

import functools
import gc
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator import models
from benchmarks.accelerator.cases import SECS, TINY_SECS
from benchmarks.accelerator.overhead import MODELS
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.tables import Line, Table, number, ratio, stamp
from benchmarks.accelerator.timing import time_steps

BLOCKS = {"sequential": "lie_trotter", "parallel": "euler"}  # ours by theirs
MODES = ("eager", "compile")
ODE = "torchdiffeq rk4"


def names() -> list[str]:
    """Returns the rows, in order of worth."""
    blocks = [f"{name}, {block}, {mode}" for block in BLOCKS for mode in MODES for name in MODELS]
    return blocks + [f"{name}, {ODE}, eager" for name in MODELS]


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    for row in names():
        name, block, mode = row.split(", ")
        rows.measure(row, functools.partial(_measure, name, block, mode, tiny))
        if "torch" in sys.modules:
            _free()


def find_device(tiny: bool) -> str:
    """Returns PyTorch's name of the device, which is the host in a rehearsal alone."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if not tiny:
        raise RuntimeError("PyTorch sees no CUDA device: install a build for CUDA")
    return "cpu"


def _measure(name: str, block: str, mode: str, tiny: bool) -> dict[str, Any]:
    """The figures of one train step."""
    import torch

    device = find_device(tiny)
    torch.manual_seed(0)
    model = _make_model(name, block, tiny).to(device)
    batch, size = models.batch_size(name, tiny), models.vit(name, tiny).image_shape
    images = torch.randn(batch, size[2], *size[:2], device=device)
    classes = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.05, fused=device == "cuda"
    )
    if mode == "compile":
        for each in model.blocks:  # one program serves all, where a whole model takes minutes
            each.compile()
    loss: Any = None

    def advance() -> None:
        nonlocal loss
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), classes)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timing = time_steps(advance, wait, TINY_SECS if tiny else SECS)
    return {
        **timing._asdict(),
        "batch": batch,
        "examples_per_sec": 1e3 * batch / timing.ms,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
        "loss": float(loss.detach()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _free() -> None:
    """Gives back what the last model held, one that did not fit too."""
    import torch

    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()


def _make_model(name: str, block: str, tiny: bool) -> Any:
    """timm's vision transformer of the sizes of `models.vit`."""
    from timm.models import vision_transformer as timm_vit

    config = models.vit(name, tiny)
    blocks = {
        "sequential": timm_vit.Block,
        "parallel": timm_vit.ParallelScalingBlock,
        ODE: timm_vit.Block,
    }
    model = timm_vit.VisionTransformer(
        img_size=config.image_shape[:2],
        patch_size=config.patch_size,
        num_classes=config.classes,
        embed_dim=config.width,
        depth=config.depth.layers,
        num_heads=config.heads,
        mlp_ratio=config.mlp / config.width,
        block_fn=blocks[block],
    )
    if block == ODE:
        model.blocks = _integrated(model.blocks)
    return model


def _integrated(blocks: Any) -> Any:
    """The blocks as one ODE each, dy/dt = attention(norm(y)) + mlp(norm(y)), one RK4 step long."""
    import torch
    from torchdiffeq import odeint

    times = torch.tensor([0.0, 1.0])

    class Integrated(torch.nn.Module):
        def __init__(self, block: Any):
            super().__init__()
            self.block = block

        def slope(self, _: Any, y: Any) -> Any:
            block = self.block
            return block.attn(block.norm1(y)) + block.mlp(block.norm2(y))

        def forward(self, y: Any) -> Any:
            return odeint(self.slope, y, times.to(y.device), method="rk4")[-1]

    return torch.nn.Sequential(*(Integrated(block) for block in blocks))


def tables(lines: Mapping[str, Line], ours: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
      ours: those of section 3.
    """
    cells = []
    for row in names():
        name, block, mode = row.split(", ")
        solver = BLOCKS.get(block, "rk4")
        default, stored = ours.get(f"{name}, {solver}"), ours.get(f"{name}, {solver}, store")
        cells.append(
            (
                MODELS[name],
                block,
                "compiled by block" if mode == "compile" else mode,
                number(lines.get(row), "ms", ".1f"),
                number(lines.get(row), "examples_per_sec", ",.0f"),
                number(lines.get(row), "memory_gb", ".1f"),
                ratio(default, lines.get(row), "ms"),
                ratio(stored, lines.get(row), "ms"),
            )
        )
    return [
        Table(
            "What a user would take instead (timm, torchdiffeq): AdamW steps in bf16 autocast, and "
            "our time over theirs, with recomputed layers and with everything stored",
            ("model", "block", "mode", "ms", "images/s", "GB", "ours / theirs", "ours stored"),
            cells,
            stamp(lines),
        )
    ]
