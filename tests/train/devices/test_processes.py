"""Runs of several processes: they train as one does, and say which of them are missing."""

import json
import re
import socket
import sys

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

import train.__main__ as program
from tests.helpers.processes import TINY, finish, free_port, launch, launch_both, restored
from tests.helpers.programs import start
from train.devices import processes
from train.devices.cluster import Cluster, find_cluster
from train.devices.processes import is_primary
from train.errors import BadInput, ProcessError
from train.logs import metrics
from train.logs.metrics import MetricsWriter, read_metrics
from train.logs.progress import RunProgress

JOIN = """
import sys
from train import command_line
from train.devices import processes
join = lambda argv: processes.start(argv[1], int(argv[2]), int(argv[3]), int(argv[4]))
sys.exit(command_line.run(join, sys.argv, None, None))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What came of runs that were started side by side: the workdirs, and each program's end.

    The run of one process is trained in this one, on its one device; test_mesh spreads it.
    """
    folder = tmp_path_factory.mktemp("processes")
    first, second = launch_both(folder / "two")
    started = {
        "first": first,
        "second": second,
        "first alone": launch(1, "-c", JOIN, f"127.0.0.1:{free_port()}", 3, 0, 3),
        "second alone": launch(1, "-c", JOIN, f"127.0.0.1:{free_port()}", 3, 1, 3),
    }
    with pytest.MonkeyPatch.context() as patch:
        start(patch, program, *TINY, f"--workdir={folder / 'one'}")
    return folder, {name: finish(process) for name, process in started.items()}


def test_two_processes_train_as_one_does(runs):
    folder, ends = runs
    for name in ("first", "second"):
        assert ends[name][0] == 0, ends[name][2]
    one, two = read_metrics(folder / "one"), read_metrics(folder / "two")
    assert [line["step"] for line in two if "train/loss" in line] == [1, 2, 3]
    assert [line["step"] for line in two if "val/loss" in line] == [3]
    assert [sorted(line) for line in two] == [sorted(line) for line in one]
    for a, b in zip(one, two, strict=True):
        for name in a:
            if name.endswith("/loss"):
                assert b[name] == pytest.approx(a[name], rel=1e-5), (a["step"], name)


def test_the_first_process_alone_prints_and_writes(runs):
    folder, ends = runs
    assert "step      3/3" in ends["first"][1] and "curves: " in ends["first"][1]
    assert ends["second"][1] == ""
    workdir = folder / "two"
    assert sorted(path.name for path in workdir.iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )
    assert len(list((workdir / "events").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first alone", "process 0 of 3 .* waited for 3 s, and the others did not all come"),
        ("second alone", "process 1 of 3 .* waited for 3 s, and nothing answers"),
    ],
)
def test_a_process_that_never_comes(runs, name, message):
    code, out, err = runs[1][name]
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert re.search(message, err), err
    for text in ("coordinator 127.0.0.1:", "all 3 processes", "firewall", "--join_timeout_secs"):
        assert text in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "go together, --coordinator and --process_id missing"),
        (["--coordinator=a:1", "--process_id=0"], "--num_processes missing"),
        (["--coordinator=auto", "--process_id=0"], "--num_processes missing"),
        (["--coordinator=host", "--num_processes=2", "--process_id=0"], "give HOST:PORT"),
        (["--coordinator=:80", "--num_processes=2", "--process_id=0"], "give HOST:PORT"),
        (["--coordinator=a:99999", "--num_processes=2", "--process_id=0"], "give HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "give 1 or more"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
        (["--join_timeout_secs=0"], "join_timeout_secs"),
    ],
)
def test_flags_that_do_not_go_together(monkeypatch, tmp_path, flags, message):
    monkeypatch.delattr(jax.distributed, "initialize")  # which would wait
    with pytest.raises(BadInput, match=message):
        start(monkeypatch, program, *TINY, f"--workdir={tmp_path}", *flags)
    assert not list(tmp_path.iterdir())


def test_the_flags_reach_the_join(monkeypatch, tmp_path):
    joined = []
    monkeypatch.setattr(processes, "start", lambda *args: joined.append(args))
    monkeypatch.setattr(program, "train", lambda cfg, workdir, _: joined.append(workdir))
    flags = ["--coordinator=a:1", "--num_processes=2", "--process_id=1", "--join_timeout_secs=9"]
    start(monkeypatch, program, *TINY, f"--workdir={tmp_path}", *flags)
    assert joined == [("a:1", 2, 1, 9), str(tmp_path)]


SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "cluster"),
    [
        ({}, None),
        (SRUN, Cluster("slurm", None, 4, 3)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # the shell of salloc
        ({k: v for k, v in SRUN.items() if "STEP" not in k}, None),  # the script of sbatch
        (MPIRUN | URI, Cluster("ompi", None, 4, 2)),
        (SRUN | MPIRUN | URI, Cluster("ompi", None, 4, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (GKE, Cluster("gketpu", None, 2, 1)),
        (GKE | SLICES, Cluster("gketpu", None, 4, 3)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "", "TPU_WORKER_ID": "0"}, None),
        (GKE | {"TPU_PROCESS_ADDRESSES": "localhost:8476"}, None),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"} | SLICES,
            Cluster("gketpu", None, 2, 1),
        ),
    ],
)
def test_environments_of_several_processes(environ, cluster):
    assert find_cluster(None, None, None, environ) == cluster


def test_flags_come_before_the_environment():
    assert find_cluster("a:1", 2, 1, SRUN) == Cluster("deactivate", "a:1", 2, 1)
    assert find_cluster("a:1", 1, 0, SRUN) is None
    assert find_cluster("auto", None, None, {}) == Cluster(None)


def test_an_open_mpi_that_jax_cannot_ask():
    with pytest.raises(BadInput, match="mpirun started 4 processes.*OMPI_COMM_WORLD_RANK"):
        find_cluster(None, None, None, MPIRUN)


def test_a_process_alone_asks_nobody(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network is asked")

    for name in (*SRUN, *MPIRUN, *URI, *GKE, *SLICES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    processes.start()
    assert is_primary()
    processes.barrier("alone")


def test_a_slice_of_several_hosts_is_joined_or_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(BadInput, match="4 hosts.*--coordinator=auto"):
        processes.start()


def test_what_jax_is_asked_and_how_it_fails(monkeypatch):
    asked = []

    def initialize(*args, **kwargs):
        asked.append((args, kwargs["cluster_detection_method"]))
        if failure is not None:
            raise failure

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    failure = None
    processes.start("10.0.0.1:1234", 2, 1)
    failure = RuntimeError("Failed to start RPC server")
    with pytest.raises(ProcessError, match=r"process 0 of 2 \(coordinator a:1\).*RPC server"):
        processes.start("a:1", 2, 0)
    failure = ValueError("coordinator_address should be defined.")
    with pytest.raises(BadInput, match="jax finds no other processes"):
        processes.start("auto")
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match=r"process 3 of 4 \(coordinator as SLURM says\)"):
        processes.start()
    assert asked == [
        (("10.0.0.1:1234", 2, 1), "deactivate"),
        (("a:1", 2, 0), "deactivate"),
        ((None, None, None), None),
        ((None, 4, 3), "slurm"),
    ]


@pytest.mark.parametrize(("error", "code"), [(BadInput("x"), 2), (OSError("x"), 1)])
def test_a_process_that_fails_keeps_its_exit_code(monkeypatch, error, code):
    registered = []
    monkeypatch.setattr(processes.atexit, "register", lambda *args: registered.append(args[1]))
    for joined in (False, True):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda joined=joined: joined)
        with pytest.raises(type(error)), processes.exiting_together():
            raise error
    assert registered == [code]


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    with MetricsWriter(epath.Path(tmp_path), 0, enabled=False) as writer:
        writer.write(1, {"train/loss": 0.5})
        writer.flush()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    with RunProgress(0, 3, visible=False) as progress:
        progress.note("unseen")
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("", "a warning\n")


class Bucket(MemoryFileSystem):
    """A gs:// address in memory, whose files cannot be appended to."""

    protocol, store, pseudo_dirs = "gcs", {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", "memory://"))

    def _open(self, path, mode="rb", **kwargs):
        assert "a" not in mode
        return super()._open(path, mode=mode, **kwargs)


def test_metrics_in_a_bucket(monkeypatch, capsys):
    bucket = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: bucket)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    workdir = epath.Path("gs://bucket/run")
    steps = lambda: [line["step"] for line in read_metrics(workdir)]
    with MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"train/loss": 0.5})
        assert steps() == []
        writer.flush()
        assert steps() == [1]
        monkeypatch.setattr(metrics, "REWRITE_SECS", 0)
        writer.write(2, {"train/loss": 0.25})
        assert steps() == [1, 2]
        monkeypatch.setattr(metrics, "REWRITE_SECS", 1000)
        writer.write(3, {"train/loss": 0.125})
    assert steps() == [1, 2, 3]
    with MetricsWriter(workdir, 2) as writer:
        writer.write(3, {"train/loss": 0.1})
    assert [line["train/loss"] for line in read_metrics(workdir)] == [0.5, 0.25, 0.1]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("pip install google-cloud-storage" in line for line in told)


@pytest.mark.slow
def test_states_move_between_numbers_of_processes(tmp_path):
    """Saved by one or by two, split over all devices, and restored by the other."""
    sharded = ["--config.mesh.fsdp=8", "--config.checkpoint.keep=1"]
    one = launch(8, "-m", "train", *TINY, f"--workdir={tmp_path / 'one'}", *sharded)
    for process in (*launch_both(tmp_path / "two", *sharded), one):
        code, _, err = finish(process)
        assert code == 0, err
    for name in ("one", "two"):
        a, b = (restored(tmp_path, tmp_path / name, both) for both in (False, True))
        assert set(a) == set(b) and any(np.any(x) for x in a.values())
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / name)[:3]]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["mesh"]["fsdp"] == 8
