"""Section 5: model FLOP utilisation, of the matrix rate that section 1 measured.

Model FLOPs are those of `flops.training`: what the adjoint recomputes is time, not work.
"""

from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.accelerator import models
from benchmarks.accelerator.cases import Case, measure_all
from benchmarks.accelerator.rows import Rows, Unavailable
from benchmarks.accelerator.tables import NOT_MEASURED, Line, Table, number, stamp
from odeformer import LMConfig, ViTConfig, flops

MODELS = {"vit_b": "ViT-B/16", "vit_l": "ViT-L/16", "gpt_small": "`gpt_small`, block 1,024"}
SOLVER = "lie_trotter"  # the sequential layer, whose utilisation others report
# Of a row: attention and adjoint.
CHOICES = {
    "xla": ("xla", "checkpoint"),
    "cudnn": ("cudnn", "checkpoint"),
    "cudnn, store": ("cudnn", "store"),
}


def config(name: str, choice: str, tiny: bool) -> ViTConfig | LMConfig:
    """Returns the model of a row."""
    attention, adjoint = CHOICES[choice]
    make = models.lm if name.startswith("gpt") else models.vit
    return make(name, tiny, {"solver": SOLVER, "adjoint": adjoint}, attention=attention)


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    cases = {}
    for choice, (attention, _) in CHOICES.items():
        for name in MODELS:
            row = f"{name}, {choice}"
            if attention == "cudnn" and jax.default_backend() != "gpu":
                rows.measure(row, _not_here)
            else:
                cases[row] = Case(config(name, choice, tiny), models.batch_size(name, tiny))
    measure_all(rows, cases, tiny)


def _not_here() -> dict[str, Any]:
    raise Unavailable(f"not on this backend ({jax.default_backend()})")


def tables(lines: Mapping[str, Line], card: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
      card: those of section 1.
    """
    cells = []
    for name, title in MODELS.items():
        for choice, (attention, adjoint) in CHOICES.items():
            line = lines.get(f"{name}, {choice}")
            cells.append(
                (
                    title,
                    attention,
                    f"`{adjoint}`",
                    str(models.BATCH[name]),
                    number(line, "ms", ".1f"),
                    number(line, "memory_gb", ".1f"),
                    _utilisation(line, card.get("matmul"), config(name, choice, tiny=False)),
                )
            )
    return [
        Table(
            "Model FLOP utilisation of a full train step in bf16, of the measured matrix rate",
            ("model", "attention", "adjoint", "batch", "ms", "GB", "utilisation"),
            cells,
            stamp(lines),
        )
    ]


def _utilisation(
    line: Mapping[str, Any] | None,
    matmul: Mapping[str, Any] | None,
    config: ViTConfig | LMConfig,
) -> str:
    if line is None or "values" not in line or line.get("rehearsal"):
        return number(line, "utilisation", ".2f")
    if matmul is None or "values" not in matmul or matmul["card"] != line["card"]:
        return f"{NOT_MEASURED}: section 1 on this card"
    flops_per_sec = flops.training(config) * line["values"]["examples_per_sec"]
    return f"{flops_per_sec / (1e12 * matmul['values']['tflops_per_sec']):.2f}"
