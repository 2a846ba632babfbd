"""Section 3: what the library's depth costs over scans written by hand, and its choices.

Full train steps with AdamW in bfloat16 on images of noise: DeiT-Ti (32 pixels, patch 4) and
ViT-L/16 (224 pixels).
"""

from collections.abc import Mapping
from typing import Any

from benchmarks import handwritten
from benchmarks.accelerator import models
from benchmarks.accelerator.cases import Case, measure_all
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.tables import Line, Table, number, ratio, stamp

MODELS = {"deit_ti": "DeiT-Ti", "vit_l": "ViT-L/16"}
LAYERS = {"lie_trotter": "sequential", "euler": "parallel", "rk4": "RK4"}
DOTS = "dots_with_no_batch_dims_saveable"
# Each against the plain row of its solver: title, solver, fields of DepthConfig, of the model's
# config, and the update.
CHOICES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], str]] = {
    "euler, fused": ("fused=True", "euler", {}, {"fused": True}, "plain"),
    "euler, store": ("adjoint 'store'", "euler", {"adjoint": "store"}, {}, "plain"),
    "euler, dots kept": (f"policy '{DOTS}'", "euler", {"policy": DOTS}, {}, "plain"),
    "euler, cond": ("update by `lax.cond`", "euler", {}, {}, "cond"),
    "euler, where": ("update by `where`", "euler", {}, {}, "where"),
    "rk4, store": ("adjoint 'store'", "rk4", {"adjoint": "store"}, {}, "plain"),
    "lie_trotter, store": ("adjoint 'store'", "lie_trotter", {"adjoint": "store"}, {}, "plain"),
}
STAGES_KEPT = "rk4, by hand, stages kept"


def cases(tiny: bool) -> dict[str, Case]:
    """Returns what is timed, in order of worth: overhead of both models, then the choices."""
    result = {}
    # At a rehearsal's sizes the second model is the first one again.
    names = ("deit_ti",) if tiny else tuple(MODELS)
    for name in names:
        for solver in LAYERS:
            config = models.vit(name, tiny, {"solver": solver})
            batch = models.batch_size(name, tiny)
            by_hand = models.forward_by_hand(config, handwritten.LAYERS[solver])
            row = f"{name}, {solver}"
            result[f"{row}, by hand"] = Case(config, batch, by_hand)
            result[row] = Case(config, batch, reference=f"{row}, by hand")
    for choice in (*CHOICES, STAGES_KEPT):
        for name in names:
            result[f"{name}, {choice}"] = _choice(name, choice, tiny)
    return result


def _choice(name: str, choice: str, tiny: bool) -> Case:
    batch = models.batch_size(name, tiny)
    if choice == STAGES_KEPT:
        config = models.vit(name, tiny, {"solver": "rk4"})
        forward = models.forward_by_hand(config, handwritten.rk4_layer, recompute_stages=False)
        return Case(config, batch, forward, reference=f"{name}, rk4, by hand")
    _, solver, depth, changes, update = CHOICES[choice]
    config = models.vit(name, tiny, {"solver": solver} | depth, **changes)
    return Case(config, batch, update=update, reference=f"{name}, {solver}")


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows."""
    measure_all(rows, cases(tiny), tiny)


def tables(lines: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
    """
    overhead, choices = [], []
    for name, title in MODELS.items():
        for solver, layer in LAYERS.items():
            line, by_hand = lines.get(f"{name}, {solver}"), lines.get(f"{name}, {solver}, by hand")
            overhead.append(
                (
                    title,
                    f"{layer} (`{solver}`)",
                    number(by_hand, "ms", ".1f"),
                    number(line, "ms", ".1f"),
                    ratio(line, by_hand, "ms"),
                    ratio(line, by_hand, "memory_gb"),
                    number(line, "examples_per_sec", ",.0f"),
                    number(line, "memory_gb", ".1f"),
                )
            )
        for choice in (*CHOICES, STAGES_KEPT):
            told, solver = CHOICES[choice][:2] if choice in CHOICES else (choice, "rk4")
            plain = f"{name}, {solver}" + (", by hand" if choice == STAGES_KEPT else "")
            line = lines.get(f"{name}, {choice}")
            choices.append(
                (
                    title,
                    f"`{solver}`",
                    "stages kept, by hand" if choice == STAGES_KEPT else told,
                    ratio(line, lines.get(plain), "ms"),
                    ratio(line, lines.get(plain), "memory_gb"),
                    number(line, "memory_gb", ".1f"),
                )
            )
    batches = ", ".join(f"{MODELS[name]} {models.BATCH[name]}" for name in MODELS)
    return [
        Table(
            f"The depth against scans by hand: AdamW steps in bf16, batch {batches}",
            ("model", "layer", "by hand, ms", "ms", "time", "memory", "images/s", "GB"),
            overhead,
            stamp(lines),
        ),
        Table(
            "Choices, over the same step with the defaults (adjoint 'checkpoint', plain update)",
            ("model", "solver", "choice", "time", "memory", "GB"),
            choices,
            stamp(lines),
        ),
    ]
