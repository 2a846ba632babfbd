"""Section 2: whether the accelerator computes what the host's CPU computes.

Logits and gradients of a vision transformer and of a language model, 2 layers of width 64, in
float32 with the highest precision of products: every solver, every adjoint. Then bfloat16 against
float32, cuDNN's attention against XLA's, and train steps that are donated, skipped, resumed and
repeated.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.accelerator import models
from benchmarks.accelerator.cases import threads
from benchmarks.accelerator.rows import Rows, Unavailable, WrongAnswer
from benchmarks.accelerator.tables import Line, Table, number, stamp
from odeformer import LMConfig, ViTConfig, presets, solvers
from odeformer.ode.problem import ADJOINTS

FLOAT32, BFLOAT16 = 1e-4, 2e-2  # accepted differences, relative, over the whole tree
RTOL = 1e-3  # of the adaptive solves
WIDTH, BATCH, STEPS = 64, 8, 4
KINDS = {"vit": "ViT", "lm": "LM"}
LOW = ("euler", "lie_trotter", "rk4")  # solvers that are computed in bfloat16, too
STEP_ROWS = ("donated", "skipped, cond", "skipped, where", "resumed", "repeated")

Config = ViTConfig | LMConfig
Comparison = tuple[Config, Config, bool, float]  # of a row; whether the second runs on the CPU


def config(kind: str, dtype: str = "float32", attention: str = "xla", **depth: Any) -> Config:
    """Returns the small model of a kind."""
    sizes = dict(width=WIDTH, heads=4, mlp=128, dtype=dtype, attention=attention)
    depth = {"layers": 2} | depth
    if kind == "vit":
        return presets.vit("digits", depth=depth, **sizes)
    return presets.lm("gpt_nano", depth=depth, vocabulary=64, block_size=32, **sizes)


def comparisons(tiny: bool) -> dict[str, Comparison]:
    """Returns what is compared, by the row's name."""
    some = ("euler", "rk4") if tiny else solvers.NAMES
    rows: dict[str, Comparison] = {}

    def against_cpu(name: str, config: Config) -> None:
        rows[name] = (config, config, True, FLOAT32)

    for kind in KINDS:
        for solver in some:
            against_cpu(f"{kind}, {solver}", config(kind, solver=solver))
        for adjoint in () if tiny and kind == "lm" else ADJOINTS[1:]:
            against_cpu(f"{kind}, rk4, {adjoint}", config(kind, solver="rk4", adjoint=adjoint))
    for adjoint in ("checkpoint",) if tiny else ("checkpoint", "recursive", "direct", "backsolve"):
        adaptive = config("vit", solver="tsit5", rtol=RTOL, adjoint=adjoint)
        against_cpu(f"vit, tsit5, rtol {RTOL:g}, {adjoint}", adaptive)
    for kind in KINDS:
        for solver in LOW[:1] if tiny else LOW:
            low, high = (config(kind, dtype, solver=solver) for dtype in ("bfloat16", "float32"))
            rows[f"{kind}, {solver}, bfloat16"] = (low, high, False, BFLOAT16)
    return rows


def run(rows: Rows, tiny: bool) -> None:
    """Measures the section's rows, several at a time: it is the compilers that take long."""
    checks: dict[str, Callable[[], dict[str, Any]]] = {}
    # What stands once comes before the many solvers, should the time not suffice.
    for kind in KINDS:
        checks[f"{kind}, cudnn attention"] = functools.partial(_compare_cudnn, kind)
    for kind in ("vit",) if tiny else KINDS:
        for name, check in zip(STEP_ROWS, _step_checks(kind), strict=True):
            checks[f"{kind}, {name}"] = check
    for name, each in comparisons(tiny).items():
        checks[name] = functools.partial(_compare, *each)

    def begin(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        rows.check_time()
        return check()

    due = [name for name in checks if rows.is_due(name)]
    with ThreadPoolExecutor(threads(tiny)) as pool:
        names = {pool.submit(begin, checks[name]): name for name in due}
        for result in as_completed(names):
            rows.record(names[result], result.result)


def _compare(first: Config, second: Config, on_cpu: bool, accepted: float) -> dict[str, float]:
    """Relative errors of logits and gradients, if they are accepted."""
    program = _logits_and_gradients(first)
    arrays = _arrays(exact(first))
    result = program(*arrays)
    if on_cpu:
        reference = program(*jax.device_put(arrays, jax.devices("cpu")[0]))
    else:
        reference = _logits_and_gradients(second)(*arrays)
    errors = {
        "logits": _relative_error(result[0], reference[0]),
        "gradients": _relative_error(result[1], reference[1]),
    }
    if not all(error <= accepted for error in errors.values()):  # a NaN too
        raise WrongAnswer(f"relative errors {errors} where {accepted:g} is accepted")
    return errors | {"accepted": accepted}


def _relative_error(tree: Any, reference: Any) -> float:
    """The norm of the difference over the norm of the reference, on the host."""
    pairs = zip(*(jax.tree.leaves(_on_host(each)) for each in (tree, reference)), strict=True)
    difference, norm = np.sum([(np.sum((a - b) ** 2), np.sum(b**2)) for a, b in pairs], axis=0)
    return float(np.sqrt(difference / norm))


def _on_host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def exact(config: Config) -> Config:
    """Returns the config in float32 whose parameters serve this one, too."""
    return dataclasses.replace(models.plain(config), dtype="float32")


def _logits_and_gradients(config: Config) -> Callable[..., Any]:
    """The jitted function (params, batch) -> (logits, gradients of the mean loss)."""
    forward = models.forward(config)

    def loss_fn(params: Any, batch: models.Batch) -> tuple[jax.Array, jax.Array]:
        logits = forward(params, batch[0])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return loss, logits

    def program(params: Any, batch: models.Batch) -> tuple[jax.Array, Any]:
        # Inside, for the setting belongs to the thread that traces.
        with jax.default_matmul_precision("highest"):
            (_, logits), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return logits, gradients

    return jax.jit(program)


@functools.cache
def _state(config: Config) -> models.State:
    return models.make_state(config)


@functools.cache
def _arrays(config: Config) -> tuple[Any, models.Batch]:
    """Parameters, none of which is zero, and a batch."""
    return _state(config)[0], models.example(config, BATCH)


def _compare_cudnn(kind: str) -> dict[str, float]:
    if jax.default_backend() != "gpu":
        raise Unavailable(f"not on this backend ({jax.default_backend()})")
    first, second = (config(kind, "bfloat16", attention) for attention in ("cudnn", "xla"))
    return _compare(first, second, on_cpu=False, accepted=BFLOAT16)


def _step_checks(kind: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """The checks of STEP_ROWS, on one compiled step for each update."""
    small = config(kind)
    batch = models.example(small, BATCH)
    initial = functools.partial(_state, models.plain(small))

    forward = models.forward(small)
    steps = {update: jax.jit(models.make_step(forward, update)) for update in ("cond", "where")}
    steps["donated"] = jax.jit(models.make_step(forward, "cond"), donate_argnums=0)

    def advance(state: models.State, times: int, step: str = "cond") -> models.State:
        state = jax.tree.map(jnp.copy, state)
        for _ in range(times):
            state, _ = steps[step](state, batch)
        return state

    def donated() -> dict[str, Any]:
        return _equal(advance(initial(), STEPS, "donated"), advance(initial(), STEPS))

    def skipped(update: str) -> dict[str, Any]:
        params, opt_state = initial()
        leaves, tree = jax.tree.flatten(params)
        spoilt = jax.tree.unflatten(tree, [leaves[0] * jnp.nan, *leaves[1:]]), opt_state
        state, loss = steps[update](spoilt, batch)
        if bool(jnp.isfinite(loss)):
            raise WrongAnswer(f"a model with a NaN has the loss {float(loss):g}")
        return _equal(state, spoilt)

    def resumed() -> dict[str, Any]:
        half = flax.serialization.to_bytes(advance(initial(), STEPS // 2))
        restored = jax.device_put(flax.serialization.from_bytes(initial(), half))
        return _equal(advance(restored, STEPS // 2), advance(initial(), STEPS))

    def repeated() -> dict[str, Any]:
        return _equal(advance(initial(), STEPS), advance(initial(), STEPS), must=False)

    yield donated
    yield functools.partial(skipped, "cond")
    yield functools.partial(skipped, "where")
    yield resumed
    yield repeated


def _equal(first: Any, second: Any, must: bool = True) -> dict[str, Any]:
    """Whether two states are equal bit for bit, and how far they are apart."""
    pairs = list(zip(*(jax.tree.leaves(_on_host(tree)) for tree in (first, second)), strict=True))
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    apart = max(float(np.nanmax(np.abs(a - b), initial=0.0)) for a, b in pairs)
    if must and not apart <= FLOAT32:
        raise WrongAnswer(f"the states differ by {apart:g}, where {FLOAT32:g} is accepted")
    return {"bitwise": "yes" if same else "no", "apart": apart}


def tables(lines: Mapping[str, Line]) -> list[Table]:
    """Returns the section's tables.

    Args:
      lines: the newest line of each row, by its name.
    """
    compared = [*comparisons(tiny=False), *(f"{kind}, cudnn attention" for kind in KINDS)]
    return [
        Table(
            "Relative errors against the host's CPU in float32 (1e-4 accepted), of bfloat16 "
            "against float32 and of cuDNN's attention against XLA's (2e-2 accepted)",
            ("solver, adjoint", *_columns("logits", "gradients")),
            _by_kind(lines, compared, {"logits": ".0e", "gradients": ".0e"}),
            stamp(lines),
        ),
        Table(
            f"States of train steps, compared after {STEPS} of them; apart: at most, any entry",
            ("steps", *_columns("equal bit for bit", "apart")),
            _by_kind(
                lines,
                [f"{kind}, {row}" for kind in KINDS for row in STEP_ROWS],
                {"bitwise": "", "apart": ".0e"},
            ),
            stamp(lines),
        ),
    ]


def _columns(*names: str) -> list[str]:
    return [f"{title}: {name}" for title in KINDS.values() for name in names]


def _by_kind(
    lines: Mapping[str, Line], names: Iterable[str], forms: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """A row for each comparison, with the figures of both kinds of model side by side."""
    known = set(names)
    bare = dict.fromkeys(name.split(", ", 1)[1] for name in names)

    def cells(name: str) -> list[str]:
        return [
            number(lines.get(name), key, form) if name in known else "-"
            for key, form in forms.items()
        ]

    return [(each, *(cell for kind in KINDS for cell in cells(f"{kind}, {each}"))) for each in bare]
