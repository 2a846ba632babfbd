"""What a run does a second, and the share of the chip's peak; traces of single steps."""

import gzip
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from odeformer import flops
from tests.helpers.tiny import make_tiny
from train.config.border import from_config_dict
from train.data.pipeline import train_batches
from train.data.sources import load_splits
from train.devices import chips
from train.devices.mesh import device_mesh, local_rows, put_batch
from train.errors import BadInput
from train.gradient import make_gradient
from train.logs.metrics import read_metrics
from train.logs.run_log import RunLog
from train.logs.throughput import Throughput
from train.logs.tracing import Span, Trace, parse_span
from train.optimizer import make_optimizer
from train.state import init_state, make_init
from train.step import make_train_step
from train.tasks import make_task

PEAK = 275e12  # of a TPU v4


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("train.logs.throughput.time.perf_counter", lambda: self.now)


class Page:
    """Writer and progress in one: keeps what it is given."""

    def __init__(self):
        self.written, self.shown = [], []

    def write(self, step, values):
        self.written.append((step, values))

    def show(self, step, values):
        self.shown.append((step, values))


def make_throughput(kind="TPU v4", devices=4, start=0, **changes):
    """The throughput of a tiny run on so many devices of a kind, and the run's config."""
    cfg = make_tiny()
    cfg.update_from_flattened_dict(changes)
    config = from_config_dict(cfg)
    chip = types.SimpleNamespace(device_kind=kind)
    mesh = types.SimpleNamespace(devices=np.full((devices, 1, 1), chip), size=devices)
    task = types.SimpleNamespace(unit="tokens", units_per_example=5)
    return Throughput(config, task, mesh, start), config


def flush(throughput, page):
    """Writes what the throughput gives, as the run's log does."""
    pending = throughput.take()
    if pending is not None:
        page.write(*pending)
        page.show(*pending)


def log(throughput, page, step, nfe=16.0):
    throughput.hold(step, {"loss": jnp.float32(0.5), "nfe": jnp.float32(nfe)})
    flush(throughput, page)


@pytest.mark.parametrize("start", [0, 7])
def test_metrics_go_one_step_late(monkeypatch, start):
    """And a start that goes on logs the steps of one that never stopped."""
    clock, page = Clock(monkeypatch), Page()
    throughput, _ = make_throughput(start=start, **{"log.every_steps": 5})
    flush(throughput, page)
    assert page.written == []
    for step in range(start + 1, 21):
        flush(throughput, page)
        throughput.hold(step, {"loss": jnp.float32(step), "nfe": jnp.float32(16)})
        clock.now += 0.5
    assert [step for step, _ in page.written] == ([10, 15] if start else [1, 5, 10, 15])
    if start == 0:  # without a speed: the first step's time is the compiler's
        assert page.written[0][1] == {"train/loss": 1.0, "train/nfe": 16.0}
    assert page.written[-2][1]["train/loss"] == 10.0
    assert page.written[-2][1]["train/steps_per_sec"] == pytest.approx(1 / 0.5)
    assert page.written[-1][1]["train/steps_per_sec"] == pytest.approx(5 / 2.5)
    assert page.shown == page.written


def test_speeds(monkeypatch):
    clock, page = Clock(monkeypatch), Page()
    throughput, config = make_throughput()
    log(throughput, page, 1)
    clock.now += 2.0
    log(throughput, page, 5)
    clock.now += 60.0  # an evaluation
    throughput.restart_clock(5)
    clock.now += 0.5
    log(throughput, page, 7)
    # By hand: two steps of four stages; 16 patches of 2 x 2 pixels, width 16, MLP 32.
    assert (config.model.depth.layers, config.model.depth.solver) == (2, "rk4")
    assert config.model.pool == "mean"
    both = 8 * 16 * 16**2 + 4 * 16**2 * 16 + 4 * 16 * 16 * 32
    example = 3 * (8 * both + 2 * 16 * 10) + 2 * (2 * 16 * 4 * 16)
    for (_, values), steps_per_sec in zip(page.written[1:], (2.0, 4.0), strict=True):
        assert values["train/steps_per_sec"] == pytest.approx(steps_per_sec)
        assert values["train/tokens_per_sec"] == pytest.approx(32 * 5 * steps_per_sec)
        device = 32 * example * steps_per_sec / 4
        assert values["train/tflops_per_sec"] == pytest.approx(device / 1e12)
        assert values["train/mfu"] == pytest.approx(device / PEAK)


def test_adaptive_steps_count_what_the_model_reported(monkeypatch):
    clock, page = Clock(monkeypatch), Page()
    adaptive = {"depth.solver": "tsit5", "depth.steps": None, "depth.rtol": 1e-2}
    throughput, config = make_throughput(**adaptive)
    for step, nfe in ((1, 60.0), (2, 60.0), (3, 75.0)):
        clock.now += 1.0
        log(throughput, page, step, nfe)
    for (_, values), nfe in zip(page.written[1:], (30, 37.5), strict=True):
        device = 32 * flops.training(config.model, (nfe, nfe)) / 4
        assert values["train/mfu"] == pytest.approx(device / PEAK, rel=1e-9)


def test_the_work_of_a_batch_is_that_of_its_gradient():
    """Counted in the gradient that a step computes, in two parts: no product is left out."""
    cfg = make_tiny()
    cfg.depth.update(adjoint="store", solver="lie_trotter")
    cfg.parallel.accumulate = 2
    config = from_config_dict(cfg)
    data = load_splits(config)["train"]
    params = jax.eval_shape(make_init(config, optax.sgd(0.1)), 0).params
    images = jax.ShapeDtypeStruct((32, 8, 8, 1), jnp.float32)
    targets = jax.ShapeDtypeStruct((32, 10), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    gradient = make_gradient(config, make_task(config, data))
    counted = flops.count(gradient, params, (images,), targets, jax.random.key(0))
    assert counted == 32 * flops.training(config.model)


def test_no_peak_is_made_up(monkeypatch):
    clock, page = Clock(monkeypatch), Page()
    throughput, _ = make_throughput(kind=jax.devices("cpu")[0].device_kind)
    log(throughput, page, 1)
    clock.now += 1.0
    log(throughput, page, 2)
    assert "train/mfu" not in page.written[1][1]
    assert page.written[1][1]["train/tflops_per_sec"] > 0


def test_chips_are_found_by_their_whole_names():
    found = {kind: chips.find(kind) for kind in ("TPU v5 lite", "TPU v5", "NVIDIA H100 80GB HBM3")}
    assert [chip and chip.name for chip in found.values()] == ["v5e", "v5p", "H100"]
    for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "TPU v9"):
        assert chips.find(kind) is None
    assert chips.CHIPS["v5e"] == ("v5e", 197e12, 16 * 2**30)


def make_run(**changes):
    """A tiny run of one layer, not augmented: its step, state, batches, mesh and config."""
    cfg = make_tiny()
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0)
    cfg.depth.update(layers=1, share=1, solver="euler")
    cfg.update_from_flattened_dict(changes)
    config = from_config_dict(cfg)
    mesh = device_mesh(config.mesh)
    data = load_splits(config)["train"]
    rows = local_rows(mesh, config.batch_size)
    batches = train_batches(data, config.batch_size, config.train_steps, config.seed, rows=rows)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    step = make_train_step(config, optimizer, make_task(config, data), mesh)
    return step, init_state(config, optimizer, mesh), batches, mesh, config


def read_trace(workdir):
    """The events of the one Perfetto trace under a workdir."""
    (path,) = (workdir / "profile").rglob("perfetto_trace.json.gz")
    (other,) = path.parent.glob("*.xplane.pb")  # what TensorBoard reads
    assert list(jax.profiler.ProfileData.from_file(str(other)).planes)
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_a_trace_holds_the_steps_asked_for(tmp_path):
    train_step, state, batches, mesh, config = make_run()
    notes = []
    start = 1  # as if one step had been done before
    with Trace(epath.Path(tmp_path), Span(2, 3), start, config.train_steps, notes.append) as p:
        for step, batch in zip(range(start + 1, config.train_steps + 1), batches, strict=False):
            with p.step(step):
                state, metrics = train_step(state, put_batch(mesh, batch, config.batch_size))
            assert p.finish(step, metrics) == (step == 4)
            assert len(notes) == (step >= 4)
    events = read_trace(tmp_path)
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [3, 4]
    assert len(events) > 20
    assert notes == [f"profile: {tmp_path / 'profile'}"]


class Output:
    """An array that says when it is waited for."""

    def __init__(self, waited, step):
        self._waited, self._step = waited, step

    def block_until_ready(self):
        self._waited.append(self._step)


def test_a_trace_is_of_whole_steps_and_kept_when_a_run_fails(tmp_path, monkeypatch):
    waited, calls = [], []
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(f"jax.profiler.{name}", lambda *_, **__: calls.append(len(waited)))
    workdir = epath.Path(tmp_path)
    with Trace(workdir, Span(3, 4), 0, 6, print) as profile:
        for step in range(1, 7):
            with profile.step(step):
                pass
            profile.finish(step, [Output(waited, step)])
    assert waited == [2, 4] and calls == [1, 2]  # the device is idle at both ends
    failing = Trace(workdir, Span(1, 4), 0, 6, print)
    with pytest.raises(KeyboardInterrupt), failing, failing.step(1):
        raise KeyboardInterrupt
    assert len(calls) == 4


def test_processes_trace_into_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Trace(epath.Path(tmp_path), Span(1, 1), 0, 6, print) as profile:
        with profile.step(1):
            output = jnp.ones(3) + 1
        profile.finish(1, output)
    assert list((tmp_path / "profile").iterdir()) == [tmp_path / "profile" / "process_1"]
    assert read_trace(tmp_path)


@pytest.mark.parametrize("text", ["", "3", "0:2", "5:4", "a:b", "-1:2", "1:2:3", "1.0:2", " 1:2"])
def test_steps_that_are_none(text):
    with pytest.raises(BadInput, match=f"--profile_steps={text}: .* e.g. --profile_steps=10:15"):
        parse_span(text)


def test_steps_beyond_the_start(tmp_path):
    assert parse_span("10:15") == Span(10, 15)
    workdir = epath.Path(tmp_path)
    Trace(workdir, Span(1, 4), 2, 6, print)
    with pytest.raises(BadInput, match=r"2:5 goes beyond this start, which takes 4 steps \(2 of 6"):
        Trace(workdir, Span(2, 5), 2, 6, print)


def test_an_evaluation_is_no_training(monkeypatch, tmp_path):
    """Its minute counts in no speed, and the line of its step is written before it."""
    clock, cfg = Clock(monkeypatch), make_tiny()
    cfg.train_steps = 6
    config = from_config_dict(cfg)
    task = types.SimpleNamespace(unit="images", units_per_example=1)
    workdir, mesh = epath.Path(tmp_path), device_mesh(config.mesh)
    with RunLog(workdir, config, task, mesh, start_step=0) as log:
        for step in range(1, 4):
            log.train(step, {"loss": jnp.float32(step), "nfe": jnp.float32(16)})
            clock.now += 0.5
            if step == 2:
                log.write_pending()
                assert [line["step"] for line in read_metrics(workdir)] == [1, 2]
                clock.now += 60.0
                log.validation(step, {"loss": 1.0}, {})
        log.flush()
    trained = [line for line in read_metrics(workdir) if "train/loss" in line]
    assert [line.get("train/steps_per_sec") for line in trained] == [None, 2.0, 2.0]
