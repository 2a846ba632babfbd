"""Runs that are killed or told to stop: they end as if nothing had been, bit for bit."""

import builtins
import os
import signal
import threading
import time

import pytest
from etils import epath

from tests.helpers.processes import free_port
from tests.helpers.survival import child
from tests.helpers.survival.runs import (
    STOPS_SECS,
    Moments,
    Start,
    check_same,
    finish,
    newest,
    outcome,
    start_server,
)
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from train.checkpoint.workdir import locked, saved_steps, unfinished_saves
from train.errors import BadInput, Stopped
from train.logs.metrics import read_metrics
from train.signals import StopSignals

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TOLD = "the run saves its state after this step, and stops; a second signal stops it at once"
APART_SECS = 0.7  # signals that are closer together are one


@pytest.fixture(scope="module", autouse=True)
def server():
    """What processes are forked from."""
    start_server()


def make_quick(train_steps=12, every_steps=2):
    """A run of images that is saved and scored all the time, and compiled in a second or two."""
    cfg = make_tiny()
    cfg.train_steps = train_steps
    cfg.data.augment.update(shift_px=0.0, rotate_degrees=0.0, zoom=0.0, flip=True)
    cfg.depth.update(layers=1, share=1, solver="euler", adjoint="store")
    cfg.checkpoint.every_steps = every_steps
    cfg.eval.update(every_steps=3, batch_size=360)
    cfg.regularise.update(kinetic=0.01, end_time=0.5)
    cfg.log.every_steps = 2
    return cfg


def make_quick_language():
    """A run of a language model that is compiled as quickly."""
    cfg = make_tiny_language()
    cfg.depth.update(layers=1, share=1, solver="euler", adjoint="store")
    return cfg


def make_images():
    """A run in which everything is random that can be."""
    cfg = make_tiny()
    cfg.train_steps, cfg.data.repeats_per_batch = 10, 2
    cfg.data.augment.update(
        crop_padding_px=1,
        crop_min_area=0.5,
        flip=True,
        randaugment_ops=2,
        erasing=0.5,
        mixup=0.8,
        cutmix=1.0,
    )
    cfg.log.every_steps = 2
    return cfg


def reference(folder, cfg):
    """What an uninterrupted run leaves, and its batches; its metrics lack no step."""
    workdir = folder / "whole"
    started = finish(folder, child.train, cfg, workdir)
    lines = read_metrics(workdir)
    for key, every in (("train/loss", cfg.log.every_steps), ("val/loss", cfg.eval.every_steps)):
        due = [step for step in range(1, cfg.train_steps + 1) if step % every == 0]
        first = [1] if key == "train/loss" and every > 1 else []
        last = [cfg.train_steps] if key == "val/loss" and cfg.train_steps % every else []
        assert [line["step"] for line in lines if key in line] == first + due + last
    assert sorted(started.batches()) == list(range(1, cfg.train_steps + 1))
    return outcome(workdir), started.batches()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run: its config, what it leaves, its batches."""
    cfg = make_quick(every_steps=4)
    return cfg, *reference(tmp_path_factory.mktemp("quick"), cfg)


def kill(moments, folder, cfg, workdir):
    """Starts a run, and kills it at some moment; returns the start."""
    with Start(folder, child.train, cfg, workdir) as started:
        moments.wait(started, cfg.train_steps)
        started.signal(signal.SIGKILL)
        code = started.end()
        print(f"  killed at {max(started.batches(), default=None)}: {code}")
        assert code in (-signal.SIGKILL, 0), started.printed()
    read_metrics(workdir)  # it can be read, whatever was being written
    return started


def stop(started, cfg, workdir, number):
    """Sends a signal to a run, and makes sure that it stops as it should."""
    before = newest(workdir)
    started.signal(number)
    code = started.end(STOPS_SECS)
    batches = started.batches()
    print(f"  {signal.Signals(number).name} at {max(batches, default=None)}: {code}")
    if code == 75:
        assert "stopped: " in started.printed()
        assert newest(workdir) == max(batches, default=before)  # no step is lost that was begun
        assert newest(workdir) not in unfinished_saves(workdir).values()
    else:
        # Before the run listens, and once it has ended, a signal does what it does to any program.
        ends = 1 if number == signal.SIGINT else -number
        is_over = any("test/loss" in line for line in read_metrics(workdir))
        allowed = {0, ends} if is_over else {ends} if not started.lines() else {75}
        assert code in allowed, started.printed()


def check_batches(started, batches):
    """Every batch was the one of its step, and none came out of turn."""
    taken = [start.batches() for start in started]
    for each in taken:
        assert list(each) == list(range(min(each, default=1), min(each, default=1) + len(each)))
        for step, checksum in each.items():
            assert checksum == batches[step], step


def stop_at(step, folder, cfg, workdir):
    """Starts a run that stops behind a step; returns the start."""
    with Start(folder, child.train, cfg, workdir, (), step) as started:
        assert started.end() == 75, started.printed()
    assert newest(workdir) == max(started.batches()) == step
    return started


def test_stopped_and_killed(quick, tmp_path):
    cfg, expected, batches = quick
    moments, workdir = Moments(), tmp_path / "cut"
    started = [stop_at(5, tmp_path, cfg, workdir)]
    started.append(kill(moments, tmp_path, cfg, workdir))
    with Start(tmp_path, child.train, cfg, workdir) as one:
        moments.wait(one, cfg.train_steps)
        stop(one, cfg, workdir, signal.SIGINT)
    started.append(one)
    started.append(kill(moments, tmp_path, cfg, workdir))
    started.append(finish(tmp_path, child.train, cfg, workdir))
    assert started[0].batches().keys().isdisjoint(started[1].batches())  # it goes on, not back
    check_batches(started, batches)
    check_same(outcome(workdir), expected)


def check_resumed(folder, cfg, at):
    """Stops a run behind a step, goes on with it, and compares it with an uninterrupted one."""
    expected, batches = reference(folder, cfg)
    workdir = folder / "cut"
    first = stop_at(at, folder, cfg, workdir)
    second = finish(folder, child.train, cfg, workdir)
    assert min(second.batches()) == at + 1
    check_batches([first, second], batches)
    check_same(outcome(workdir), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "language", "sentences"])
def test_every_kind_of_run_goes_on(kind, tmp_path, opinions_dir):
    cfg = {
        "images": make_images,
        "language": make_tiny_language,
        "sentences": lambda: make_tiny_sentences(opinions_dir),
    }[kind]()
    check_resumed(tmp_path, cfg, at=cfg.train_steps // 2 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_images, make_tiny_language])
def test_the_same_seed_twice(make, tmp_path):
    outcomes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        outcomes.append(reference(tmp_path / name, make()))
    check_same(*(found for found, _ in outcomes))
    assert outcomes[0][1] == outcomes[1][1]


def repeat(folder, cfg, times, interrupt, stopped):
    """Interrupts runs so often, each resumed to its end, and compares each with a whole one."""
    expected, batches = reference(folder, cfg)
    moments, started, workdir = Moments(), [], None
    for n in range(times):
        if workdir is None:
            workdir, started = folder / f"cut-{n}", []
        started.append(interrupt(moments, workdir))
        if started[-1].process.exitcode == 0:
            check_batches(started, batches)
            check_same(outcome(workdir), expected, stopped)
            workdir = None
    if workdir is not None:
        started.append(finish(folder, child.train, cfg, workdir))
        check_batches(started, batches)
        check_same(outcome(workdir), expected, stopped)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("images", 40), ("language", 10)])
def test_killed_often(kind, times, tmp_path):
    cfg = make_quick(48) if kind == "images" else make_quick_language()

    def interrupt(moments, workdir):
        return kill(moments, tmp_path, cfg, workdir)

    repeat(tmp_path, cfg, times, interrupt, stopped=False)


@pytest.mark.slow
def test_stopped_often(tmp_path):
    cfg = make_quick(48, every_steps=5)

    def interrupt(moments, workdir):
        with Start(tmp_path, child.train, cfg, workdir) as started:
            moments.wait(started, cfg.train_steps)
            stop(started, cfg, workdir, moments.random.choice(SIGNALS))
        return started

    repeat(tmp_path, cfg, 20, interrupt, stopped=True)


def both(folder, cfg, workdir):
    """Starts the two processes of a run."""
    address = f"127.0.0.1:{free_port()}"
    return [Start(folder, child.train, cfg, workdir, (address, 2, n)) for n in range(2)]


def finish_both(folder, cfg, workdir):
    started = both(folder, cfg, workdir)
    codes = [one.end() for one in started]
    assert codes == [0, 0], [one.printed() for one in started]
    return started


@pytest.mark.slow
def test_two_processes_stopped_often(tmp_path):
    cfg = make_quick(24, every_steps=5)
    cfg.mesh.fsdp = 2
    whole = finish_both(tmp_path, cfg, tmp_path / "whole")
    expected, moments, workdir = outcome(tmp_path / "whole"), Moments(), tmp_path / "cut"
    for n in range(20):
        started = both(tmp_path, cfg, workdir)
        # A process that dies before it listens leaves the other one waiting: both train first.
        for one in started:
            one.wait_for(one.lines)
        moments.wait(started[0], cfg.train_steps)
        told = moments.random.choice([started[:1], started[1:], started])
        number = moments.random.choice(SIGNALS)
        for one in told:
            one.signal(number)
        codes = [one.end() for one in started]  # told at its last step, a run is scored, too
        print(f"  {signal.Signals(number).name} to {len(told)} at {newest(workdir)}: {codes}")
        texts = [one.printed() for one in started]
        taken = [max(one.batches(), default=0) for one in started]
        assert codes == [75, 75] or cfg.train_steps in taken, texts
        assert taken[0] == taken[1] and (taken[0] in (0, newest(workdir))), texts
        for a, b in zip(started, whole, strict=True):
            check_batches([a], b.batches())
        if taken[0] == cfg.train_steps:
            finish_both(tmp_path, cfg, workdir)
            check_same(outcome(workdir), expected)
            workdir = tmp_path / f"cut-{n}"
    if newest(workdir):
        finish_both(tmp_path, cfg, workdir)
        check_same(outcome(workdir), expected)


def test_processes_leave_together(tmp_path):
    """Whoever is ready last, and however they end, each ends with its own exit code."""
    ends = [
        (75, Stopped("x"), 0, 1.5),
        (75, Stopped("x"), 1, 1.5),
        (0, None, 1, 1.5),
        (2, BadInput("x"), 1, 5),  # as much later as another may read a broken file
    ]
    started = []
    for code, error, late, late_secs in ends:
        address = f"127.0.0.1:{free_port()}"
        for n in (0, 1):
            wait_secs = late_secs if n == late else 0
            one = Start(tmp_path, child.leave, (address, 2, n), error, wait_secs)
            started.append((one, code))
    for one, code in started:
        assert one.end() == code, one.printed()


def test_a_second_trainer_is_refused_while_the_first_one_lives(quick, tmp_path):
    cfg, workdir = quick[0], tmp_path / "run"
    with Start(tmp_path, child.train, cfg, workdir) as first:
        first.wait_for(first.lines)
        with Start(tmp_path, child.train, cfg, workdir) as second:
            assert second.end() == 2, second.printed()
        assert f"is in use: process {first.process.pid} on" in second.printed()
        assert first.process.is_alive()
        first.signal(signal.SIGKILL)
        first.end()
    with locked(epath.Path(workdir)):  # at once
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number, tmp_path):
    with Start(tmp_path, child.compute) as started:
        started.wait_for(started.lines)
        started.signal(number)
        started.wait_for(lambda: f"{signal.Signals(number).name}: {TOLD}" in started.printed())
        time.sleep(APART_SECS)
        started.signal(signal.SIGTERM)
        assert started.end(STOPS_SECS) == 128 + signal.SIGTERM
    assert "SIGTERM for the second time: nothing more is saved" in started.printed()


def test_signals_at_once_are_one(tmp_path):
    with Start(tmp_path, child.compute, 2) as started:
        started.wait_for(started.lines)
        time.sleep(APART_SECS)
        assert started.process.is_alive() and started.printed().count(TOLD) == 1
        started.signal(signal.SIGINT)
        assert started.end(STOPS_SECS) == 128 + signal.SIGINT


@pytest.mark.slow
def test_a_second_signal_during_a_save(tmp_path):
    with Start(tmp_path, child.save_slowly, tmp_path) as started:
        started.wait_for(started.lines)
        started.signal(signal.SIGTERM)
        started.wait_for(lambda: TOLD in started.printed())
        time.sleep(APART_SECS)
        started.signal(signal.SIGTERM)
        assert started.end(STOPS_SECS) == 128 + signal.SIGTERM, started.printed()
    assert saved_steps(tmp_path) == [1] and set(unfinished_saves(tmp_path).values()) == {2}


def test_stop_signals_in_this_process(monkeypatch):
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_stop_signals_in_another_thread():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def enter():
        with StopSignals() as signals:
            seen.extend([signals.received, *map(signal.getsignal, SIGNALS)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None, *before]
