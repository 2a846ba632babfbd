"""Files that are whole whenever the process dies, and what cannot be written."""

import errno
import os
import subprocess
import sys
import time

import pytest
from etils import epath

from tests.helpers.checkout import ROOT
from tests.helpers.disk import full_disk
from train.files import write_atomic
from train.logs.progress import RunProgress


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = epath.Path(tmp_path) / "file"
    for content, bytes_ in (("ä\n", "ä\n".encode()), (b"\r\n\0", b"\r\n\0"), ("", b"")):
        (tmp_path / ".file.tmp").write_bytes(b"of a process that was killed")
        write_atomic(path, content)
        assert path.read_bytes() == bytes_
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "disk"])
def test_a_failure_leaves_the_old_content(failing, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "no space")

    path = epath.Path(tmp_path) / "file"
    write_atomic(path, "old")
    if failing == "disk":
        (tmp_path / ".file.tmp").symlink_to("/dev/full")
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match=r"(?i)no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_half_a_file_is_not_left(tmp_path):
    path = epath.Path(tmp_path) / "file"
    with full_disk(limit=1000):
        write_atomic(path, bytes(1000))
        with pytest.raises(OSError, match="too large"):
            write_atomic(path, bytes(1001))
    assert path.read_bytes() == bytes(1000)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_gone_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(epath.Path(tmp_path) / "gone" / "file", "new")
    (tmp_path / "folder").write_text("")
    with pytest.raises(NotADirectoryError):
        write_atomic(epath.Path(tmp_path) / "folder" / "file", "new")
    assert os.listdir(tmp_path) == ["folder"]


LOOP = """
import itertools, pathlib, sys
from etils import epath
from train.files import write_atomic
from train.logs.progress import RunProgress
path = epath.Path(sys.argv[1])
for i in itertools.count():
    write_atomic(path, bytes([i % 256]) * 1_000_000)
"""


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, path], cwd=ROOT) for path in paths]
    try:
        deadline = time.monotonic() + 30
        while not all(path.exists() for path in paths) and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(30):  # no reader ever sees a part, either
            assert all(is_whole(path) for path in paths)
            time.sleep(0.005)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert all(is_whole(path) for path in paths)
    for path in paths:
        write_atomic(epath.Path(path), "next")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def is_whole(path):
    content = path.read_bytes()
    return len(content) == 1_000_000 and len(set(content)) == 1


class Bucket:
    """The one method that is used of a gs:// address."""

    def __init__(self, error=None):
        self.content, self._error = None, error

    def __str__(self):
        return "gs://bucket/file"

    def write_bytes(self, content):
        if self._error is not None:
            raise self._error
        self.content = content


def test_a_bucket_is_written_at_once():
    bucket = Bucket()
    write_atomic(bucket, "text")
    assert bucket.content == b"text"
    for error in (RuntimeError("403 Forbidden"), PermissionError("403 Forbidden")):
        with pytest.raises(OSError, match="403 Forbidden"):
            write_atomic(Bucket(error), "text")


def test_a_full_disk_behind_standard_output_stops_no_run(monkeypatch):
    full = open("/dev/full", "w")  # noqa: SIM115, closing it fails
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with RunProgress(0, 3) as progress:
            progress.note("a line")
            progress.show(1, {"train/loss": 0.5})
            progress.advance(1)
    with pytest.raises(OSError, match="No space left"):  # so it was the disk that was written to
        full.close()
