"""Section 6: tokens per second of greedy decoding with caches, in bfloat16.

Random weights and prompts. The prompts' reading is left out: the time of a few tokens is taken
from that of many.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.accelerator import models
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.tables import Line, Table, number, ratio, stamp
from odeformer import LM, LMConfig, generate

MODELS = ("gpt_small", "gpt_nano")
SOLVERS = ("euler", "rk4")
BATCHES, TINY_BATCHES = (1, 64, 8), (1, 2)  # in order of worth
PROMPT = 16
FEW, MANY = 8, 136  # new tokens
TINY_PROMPT, TINY_FEW, TINY_MANY = 4, 2, 6
REPEATS = 2
NOTE = (
    "Our parameters are float32 and cast at each step, theirs are bfloat16; `gpt_nano` has rotary "
    "positions, theirs learned ones."
)


def names(tiny: bool = False) -> list[str]:
    """Returns the rows, in order of worth."""
    batches = TINY_BATCHES if tiny else BATCHES
    return [
        f"{name}, {solver}, batch {batch}"
        for batch in batches
        for name in MODELS
        for solver in SOLVERS
    ]


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows, in order of worth."""
    for row in names(tiny):
        rows.measure(row, functools.partial(_measure, row, tiny))


class _Decoder:
    """Decodes for one row."""

    def __init__(self, row: str, tiny: bool):
        name, solver, batch = row.split(", ")
        self.batch = int(batch.removeprefix("batch "))
        self.few, self.many = (TINY_FEW, TINY_MANY) if tiny else (FEW, MANY)
        self.config: LMConfig = models.lm(name, tiny, {"solver": solver})
        self._prompts = prompts(self.config, self.batch, TINY_PROMPT if tiny else PROMPT)

    def __call__(self, new: int) -> None:
        """Continues the prompts by that many tokens."""
        generate(LM(self.config), self.variables(), self._prompts, new, temperature=0.0)

    def variables(self) -> Any:
        """Returns the model's parameters, which all of its rows share."""
        return _variables(models.plain(self.config))


@functools.lru_cache(maxsize=2)
def _variables(config: LMConfig) -> Any:
    return {"params": models.make_params(config)}


def prompts(config: LMConfig, batch: int, length: int) -> list[list[int]]:
    """Returns random prompts of that length."""
    rng = np.random.default_rng(0)
    return rng.integers(0, config.vocabulary, (batch, length)).tolist()


def _measure(row: str, tiny: bool) -> dict[str, Any]:
    decoder = _Decoder(row, tiny)
    return time_decoding(decoder, decoder.batch, decoder.few, decoder.many)


def time_decoding(decode: Callable[[int], None], batch: int, few: int, many: int) -> dict[str, Any]:
    """Returns what a token takes once the prompt is read.

    Args:
      decode: generates that many new tokens, and returns when they are there.
      batch: how many sequences.
      few: new tokens of the runs that are subtracted.
      many: new tokens of the other runs.
    """
    decode(few)
    taken = {}
    for new in (few, many):
        runs = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            decode(new)
            runs.append(time.perf_counter() - start)
        taken[new] = min(runs)  # what slows a run down is never the device's
    secs = max(taken[many] - taken[few], 1e-9)
    return {
        "ms_per_token": 1e3 * secs / (many - few),
        "tokens_per_sec": batch * (many - few) / secs,
        "batch": batch,
        "new_tokens": many,
    }


def tables(lines: Mapping[str, Line], theirs: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
      theirs: those of transformers.
    """
    cells = []
    for name in MODELS:
        for batch in sorted(BATCHES):
            eager, compiled = (
                theirs.get(f"{name}, {mode}, batch {batch}") for mode in ("eager", "compile")
            )
            euler, rk4 = (lines.get(f"{name}, {solver}, batch {batch}") for solver in SOLVERS)
            cells.append(
                (
                    f"`{name}`",
                    str(batch),
                    *(number(x, "tokens_per_sec", ",.0f") for x in (euler, rk4, eager, compiled)),
                    ratio(euler, eager, "tokens_per_sec"),
                    ratio(euler, compiled, "tokens_per_sec"),
                )
            )
    notes = " ".join(filter(None, (stamp(lines), stamp(theirs), NOTE)))
    columns = ("model", "batch", "`euler`", "`rk4`", "transformers", "compiled")
    return [
        Table(
            f"Greedy decoding in bf16, tokens per second over {MANY} new ones, caches of a whole "
            "block, against transformers' GPT-2 of the same sizes with a static cache",
            (*columns, "`euler` / transformers", "/ compiled"),
            cells,
            notes,
        )
    ]
