"""What a run's metrics outlive: full disks, workdirs that vanish, starts that were killed."""

import os
import struct

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from tests.helpers.disk import full_disk
from train.errors import warn
from train.logs import events
from train.logs.curves import plot_curves
from train.logs.metrics import MetricsWriter, read_metrics, read_scores, write_scores


def losses(workdir):
    return {line["step"]: line["train/loss"] for line in read_metrics(workdir)}


def warnings(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_number_that_is_not_finite_becomes_null(tmp_path):
    with MetricsWriter(epath.Path(tmp_path), 0) as writer:
        writer.write(1, {"train/loss": float("nan")})
        writer.write(2, {"train/loss": 0.5})
    assert losses(tmp_path) == {1: None, 2: 0.5}
    assert plot_curves(tmp_path).exists()


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 2.0}]


def test_a_start_cuts_the_file_back_only_where_it_must(workdir):
    with MetricsWriter(workdir, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": 0.1 * step})
    path = workdir / "metrics.jsonl"
    before, inode = path.read_text(), os.stat(path).st_ino
    with MetricsWriter(workdir, 3):
        pass
    assert (path.read_text(), os.stat(path).st_ino) == (before, inode)
    for behind in (
        '{"step": 4, "tr',
        '{"step": 4, "train/loss": 1.0}\n',
        '{"step": 3, "test/a": 1}\n',
    ):
        path.write_text(before + behind)
        with MetricsWriter(workdir, 3):
            pass
        assert path.read_text() == before


def test_a_start_that_cannot_cut_the_file_back_leaves_it_whole(workdir, capsys):
    text = "".join(f'{{"step": {step}, "train/loss": 1.0}}\n' for step in (1, 2, 3))
    (workdir / "metrics.jsonl").write_text(text)
    with full_disk():
        writer = MetricsWriter(workdir, 2)
    assert (workdir / "metrics.jsonl").read_text() == text
    with writer:
        writer.write(3, {"train/loss": 0.5})
    assert losses(workdir) == {1: 1.0, 2: 1.0, 3: 0.5}
    assert any("metrics.jsonl cannot be written" in line for line in warnings(capsys))


def test_lines_of_a_full_disk_are_written_when_it_has_room(workdir, capsys):
    with MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"train/loss": 1.0})
        for first in (2, 5):
            size = os.stat(workdir / "metrics.jsonl").st_size
            with full_disk(limit=size + 10):  # a part of the next line has room
                for step in (first, first + 1):
                    writer.write(step, {"train/loss": 1 / step})
                assert losses(workdir) == {step: 1 / step for step in range(1, first)}
            writer.write(first + 2, {"train/loss": 1 / (first + 2)})
            assert losses(workdir) == {step: 1 / step for step in range(1, first + 3)}
            failed, again = [line for line in warnings(capsys) if "metrics.jsonl" in line]
            assert "cannot be written: [Errno 27] File too large" in failed
            assert "Training continues" in failed and "is written again" in again
    assert sorted(os.listdir(workdir)) == ["config.json", "events", "metrics.jsonl"]


def test_what_was_kept_is_written_by_a_flush(workdir):
    with MetricsWriter(workdir, 0) as writer:
        with full_disk():
            writer.write(1, {"train/loss": 1.0})
            writer.flush()
        assert losses(workdir) == {}
        writer.flush()
        assert losses(workdir) == {1: 1.0}


def test_an_interrupted_write_is_made_good(workdir, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with MetricsWriter(workdir, 0) as writer, monkeypatch.context() as patch:
        patch.setattr(type(workdir), "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.write(1, {"train/loss": 1.0})
    assert losses(workdir) == {1: 1.0}


def test_a_workdir_that_vanished_is_not_made_anew(workdir, tmp_path, capsys):
    with MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"train/loss": 1.0})
        workdir.rename(tmp_path / "away")
        writer.write(2, {"train/loss": 0.5})
        assert os.listdir(tmp_path) == ["away"]
        workdir.mkdir()  # the folder that the disk was mounted at
        writer.write(3, {"train/loss": 0.25})
        writer.flush()
        assert os.listdir(workdir) == []
        (failed,) = warnings(capsys)
        assert "its config.json is gone" in failed
        workdir.rmdir()
        (tmp_path / "away").rename(workdir)
        writer.write(4, {"train/loss": 0.125})
        assert losses(workdir) == {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.125}
        workdir.rename(tmp_path / "away")
    assert len(warnings(capsys)) == 1  # it is written again; nothing was lost at the end
    assert os.listdir(tmp_path) == ["away"]


def test_lines_that_are_lost_are_told_at_the_end(workdir, tmp_path, capsys):
    with MetricsWriter(workdir, 0) as writer:
        workdir.rename(tmp_path / "away")
        writer.write(1, {"train/loss": 1.0})
    assert "at the end: it lacks lines" in warnings(capsys)[-1]


def read_events(folder):
    """The events of the one file in the folder."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_events_tell_where_the_run_goes_on(workdir, monkeypatch):
    with MetricsWriter(workdir, 7) as writer:
        writer.write(8, {"train/loss": 0.5, "train/nfe": 16})
        assert len(read_events(workdir / "events")) == 2
        writer.flush()
        version, start, *scalars = read_events(workdir / "events")
        monkeypatch.setattr(events, "FLUSH_SECS", 0)
        writer.write(9, {"train/loss": 0.25})
        assert read_events(workdir / "events")[-1].step == 9
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (8, start.session_log.START)
    values = [(e.step, v.tag, v.simple_value) for e in scalars for v in e.summary.value]
    assert values == [(8, "train/loss", 0.5), (8, "train/nfe", 16.0)]


def test_events_that_fail_neither_stop_nor_block(workdir, capsys, monkeypatch):
    monkeypatch.setattr(events, "FLUSH_SECS", 0)
    with MetricsWriter(workdir, 0) as writer:
        with full_disk(limit=200):
            for step in range(1, 200):
                writer.write(step, {"train/loss": 1.0, "train/nfe": 16.0})
            writer.flush()
        writer.write(200, {"train/loss": 1.0})
    assert sorted(losses(workdir)) == list(range(1, 201))
    told = [line for line in warnings(capsys) if "TensorBoard" in line]
    assert len(told) == 1 and "File too large" in told[0]


def test_events_that_cannot_be_opened_are_told_once(workdir, capsys):
    (workdir / "events").write_text("")
    with MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"train/loss": 1.0})
        writer.flush()
    assert losses(workdir) == {1: 1.0}
    (told,) = warnings(capsys)
    assert "no more TensorBoard events" in told


def test_a_warning_is_told_at_once_and_stops_nothing(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("sys.stderr", log)
        warn("the disk is full")
        assert (tmp_path / "log").read_text() == "warning: the disk is full\n"
    returned = False
    with pytest.raises(OSError, match="No space"), open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        warn("so is this one")
        returned = True  # the error is that of closing the file, which writes once more
    assert returned


def test_scores_and_curves_are_replaced_whole(workdir):
    with MetricsWriter(workdir, 0) as writer:
        writer.write(1, {"train/loss": 1.0})
    scores = {"correct": np.arange(5.0), "loss": np.ones(5)}
    write_scores(workdir, scores)
    curves = plot_curves(workdir).read_bytes()
    with full_disk(limit=100):
        for write in (
            lambda: write_scores(workdir, {"loss": np.ones(9)}),
            lambda: plot_curves(workdir),
        ):
            with pytest.raises(OSError, match="too large"):
                write()
    read = read_scores(workdir)
    assert sorted(read) == ["correct", "loss"]
    np.testing.assert_array_equal(read["correct"], scores["correct"])
    assert (workdir / "curves.png").read_bytes() == curves
