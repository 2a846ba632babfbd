"""Runs killed around the refinement of their weights over depth, in processes of their own."""

import signal

import pytest

from tests.helpers.survival import child
from tests.helpers.survival.runs import Start, check_same, finish, newest, outcome, start_server
from tests.helpers.tiny import make_tiny

DEPTHS = {
    "constant": dict(layers=4, share=4, solver="euler"),
    "legendre": dict(layers=4, share=1, basis="legendre", coefficients=2, solver="midpoint"),
}
REFINED_AT = 3
# The newest checkpoint where a run is killed: the refined state of step 3 is not saved, or is.
NEWEST = {"before": 2, "after": 2, "saved": 3}


def make_config(basis):
    cfg = make_tiny()
    cfg.depth.update(DEPTHS[basis], refine_at=(REFINED_AT,))
    cfg.optimizer.ema_decay = 0.9
    cfg.checkpoint.update(every_steps=1, keep=cfg.train_steps)
    return cfg


def kill_at(moment, folder, cfg, workdir):
    """Starts a run, and kills it at a moment of its refinement."""
    with Start(folder, child.train, cfg, workdir, (), None, moment) as started:
        started.wait_for(started.holds)
        started.signal(signal.SIGKILL)
        assert started.end() == -signal.SIGKILL, started.printed()
    assert newest(workdir) == NEWEST[moment]
    return started


@pytest.mark.slow
@pytest.mark.parametrize("basis", DEPTHS)
def test_a_run_killed_around_its_refinement_ends_as_one_that_was_not(basis, tmp_path):
    """By SIGKILL just before, just after, and once the refined state is saved: bit for bit."""
    start_server()
    cfg = make_config(basis)
    whole = finish(tmp_path, child.train, cfg, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    assert sorted(expected["checkpoints"]) == list(range(1, cfg.train_steps + 1))

    for moment, step in NEWEST.items():
        workdir = tmp_path / moment
        killed = kill_at(moment, tmp_path, cfg, workdir)
        resumed = finish(tmp_path, child.train, cfg, workdir)
        assert max(killed.batches()) == REFINED_AT and min(resumed.batches()) == step + 1
        for part in (killed, resumed):
            assert part.batches().items() <= whole.batches().items()
        check_same(outcome(workdir), expected, stopped=False)
