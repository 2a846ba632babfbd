"""Preparing image sets: what tensorflow-datasets reads back is what the archive holds."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.helpers.archives import published, tar
from tests.helpers.checkout import ROOT
from tests.helpers.disk import full_disk
from train.errors import BadInput
from train.prepare.__main__ import main
from train.prepare.archive import Archive
from train.prepare.build import prepare
from train.prepare.mnist import FILES
from train.prepare.sets import find

RNG = np.random.default_rng(0)
CIFAR = {  # folder, files of the splits, label files with their number of names
    "cifar10": (
        "cifar-10-batches-bin",
        {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        },
        {"batches.meta.txt": 10},
    ),
    "cifar100": (
        "cifar-100-binary",
        {"train": ["train.bin"], "test": ["test.bin"]},
        {"coarse_label_names.txt": 20, "fine_label_names.txt": 100},
    ),
}
PER_FILE = 7


def make_cifar(name):
    """Returns the members of a small archive in the binary format, and the splits' records."""
    prefix, files, label_files = CIFAR[name]
    splits, members = {}, {}
    for split, names in files.items():
        labels = [
            RNG.integers(0, classes, (len(names) * PER_FILE, 1)) for classes in label_files.values()
        ]
        pixels = RNG.integers(0, 256, (len(names) * PER_FILE, 3072))
        splits[split] = np.concatenate([*labels, pixels], axis=1).astype(np.uint8)
        for file, part in zip(names, np.split(splits[split], len(names)), strict=True):
            members[f"{prefix}/{file}"] = part.tobytes()
    for file, classes in label_files.items():
        text = "".join(f"{file[0]}_{i}\n" for i in range(classes)) + "\n"
        members[f"{prefix}/{file}"] = text.encode()
    return members, splits


def publish(name, folder):
    """Returns a small set of that name, its archive in the folder and the splits' records."""
    members, splits = make_cifar(name)
    path = folder / find(name).archives[0].name
    tar(path, members)
    return dataclasses.replace(find(name), archives=(published(path),)), path, splits


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    return publish("cifar100", tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_records_equal_the_archives(name, tmp_path):
    images, path, splits = publish(name, tmp_path)
    data_dir = tmp_path / "data"
    assert "is prepared in" in prepare(images, data_dir, path)
    assert sorted(p.name for p in data_dir.iterdir()) == [name]
    stock = tfds.builder(name, data_dir=data_dir)
    assert isinstance(stock, getattr(tfds.image_classification, name.capitalize()))
    label_names = [f"{'f' if name == 'cifar100' else 'b'}_{i}" for i in range(int(name[5:]))]
    assert stock.info.features["label"].names == label_names
    labels = 2 if name == "cifar100" else 1
    for split, records in splits.items():
        source = stock.as_data_source(split)
        assert len(source) == len(records) == stock.info.splits[split].num_examples
        by_id = {example["id"].decode(): example for example in source}
        for i, record in enumerate(records):
            example = by_id[f"{split}_{i:05d}"]
            pixels = record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(example["image"], pixels)
            assert example["label"] == record[labels - 1]
            assert labels == 1 or example["coarse_label"] == record[0]
    where = tfds.builder_from_directory(data_dir / name / str(stock.version))
    assert [e["id"] for e in where.as_data_source("train")] == [
        e["id"] for e in stock.as_data_source("train")
    ]
    assert "tensorflow" not in sys.modules


def idx(array):
    """An array in the IDX format, compressed."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def publish_mnist(name, folder):
    """Returns a small set of that name, its files in the folder, and images and labels by split."""
    folder.mkdir()
    arrays = {}
    for split, files in FILES.items():
        arrays[split] = (RNG.integers(0, 256, (5, 28, 28)), RNG.integers(0, 10, 5))
        for file, array in zip(files, arrays[split], strict=True):
            (folder / file).write_bytes(idx(array))
    return republish(find(name), folder), arrays


def republish(images, folder):
    archives = tuple(published(folder / archive.name) for archive in images.archives)
    return dataclasses.replace(images, archives=archives)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_records_equal_the_files(name, tmp_path):
    images, arrays = publish_mnist(name, tmp_path / "files")
    prepare(images, tmp_path / "data", tmp_path / "files")
    stock = tfds.builder(name, data_dir=tmp_path / "data")
    for split, (pixels, labels) in arrays.items():
        found = {e["image"].tobytes(): e["label"] for e in stock.as_data_source(split)}
        wanted = zip(pixels.astype(np.uint8), labels, strict=True)
        assert found == {image.tobytes(): label for image, label in wanted}


def test_mnist_files_of_another_content(tmp_path):
    folder = tmp_path / "files"
    images, arrays = publish_mnist("mnist", folder)
    pixels, labels = FILES["train"]
    whole = gzip.decompress((folder / pixels).read_bytes())
    with pytest.raises(BadInput, match="is not a folder: give one that holds .*t10k-images"):
        prepare(images, tmp_path / "data", folder / pixels)
    for name, content, message in (
        (labels, idx(arrays["train"][1][:4]), "5 images, .*labels-idx1-ubyte.gz 4 labels"),
        (pixels, idx(arrays["train"][1]), f"{pixels} is not an IDX file of uint8 with 3 axes"),
        (pixels, gzip.compress(whole[:-1]), "not an IDX"),
        (pixels, gzip.compress(b"\0\0\x09" + whole[3:]), "not an IDX"),
        (pixels, b"x", f"{pixels} cannot be unpacked"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(BadInput, match=message):
            prepare(republish(images, folder), tmp_path / "data", folder)
    assert list((tmp_path / "data").iterdir()) == []


def test_official_files():
    (archive,) = find("cifar100").archives
    assert archive == Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    )
    for name in ("cifar10", "mnist", "fashion_mnist"):
        assert all(len(archive.sha256) == 64 for archive in find(name).archives)


def test_a_prepared_set_is_left_alone(cifar100, tmp_path):
    images, path, _ = cifar100
    prepare(images, tmp_path, path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert "is prepared already" in prepare(images, tmp_path, tmp_path / "no archive is needed")
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


def test_what_lies_there_unreadable_is_refused(cifar100, tmp_path):
    images, path, _ = cifar100
    (tmp_path / "cifar100" / "3.0.2").mkdir(parents=True)
    with pytest.raises(BadInput, match="holds no prepared set: remove it"):
        prepare(images, tmp_path, path)
    prepare(images, tmp_path / "data", path)
    (info,) = tmp_path.glob("data/*/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(BadInput, match="in the file format tfrecord, which needs TensorFlow"):
        prepare(images, tmp_path / "data", path)


@pytest.fixture
def served(tmp_path):
    """A folder, and the address under which an HTTP server on this machine offers it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds a poll
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        """Files named 'cut-...' end before they are whole."""
        name = self.path[1:]
        if not name.startswith("cut-"):
            return super().do_GET()
        content = (pathlib.Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])


def offer(cifar100, served, name):
    images, path, _ = cifar100
    folder, address = served
    (folder / name).write_bytes(path.read_bytes())
    return dataclasses.replace(images, archives=(published(path, f"{address}/{name}"),))


def test_download(cifar100, served, tmp_path):
    prepare(offer(cifar100, served, "whole.tar.gz"), tmp_path / "data")
    source = tfds.builder("cifar100", data_dir=tmp_path / "data").as_data_source("test")
    assert len(source) == PER_FILE
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["cifar100"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut-short.tar.gz", "http.*cut-short.tar.gz (is truncated: |cannot be fetched)"),
        ("missing.tar.gz", "http.*missing.tar.gz cannot be fetched .*404.*by hand.*--archive"),
    ],
)
def test_failed_downloads_leave_nothing(cifar100, served, tmp_path, name, message):
    images = offer(cifar100, served, name)
    (served[0] / "missing.tar.gz").unlink(missing_ok=True)
    with pytest.raises(BadInput, match=message):
        prepare(images, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_no_network(cifar100, tmp_path):
    images, *_ = cifar100
    archive = dataclasses.replace(images.archives[0], url="http://127.0.0.1:9/x.tar.gz")
    with pytest.raises(BadInput, match="127.0.0.1:9/x.tar.gz cannot be fetched .*refused.*by hand"):
        prepare(dataclasses.replace(images, archives=(archive,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_archives(cifar100, tmp_path):
    images, path, _ = cifar100
    whole = path.read_bytes()
    flipped = bytes((whole[0], whole[1] ^ 1)) + whole[2:]
    cases = {
        "short": (whole[:-9], f"truncated: {len(whole) - 9} of the {len(whole)} bytes"),
        "long": (whole + b"x", f"is longer than .*, which has {len(whole)} bytes"),
        "flipped": (
            flipped,
            f"SHA-256 {hashlib.sha256(flipped).hexdigest()}; .* is {images.archives[0].sha256}",
        ),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=message):
            prepare(images, tmp_path / "data", tmp_path / name)
    with pytest.raises(BadInput, match="missing cannot be read .*No such file.* fetch https://"):
        prepare(images, tmp_path / "data", tmp_path / "missing")
    assert list((tmp_path / "data").iterdir()) == []


def test_archives_of_another_content(tmp_path):
    members, _ = make_cifar("cifar100")
    tar(tmp_path / "lacking", dict(list(members.items())[:3]))
    tar(tmp_path / "longer", members | {"cifar-100-binary/test.bin": bytes(3075)})
    (tmp_path / "other").write_bytes(b"no archive")
    for name, message in {
        "lacking": "lacks cifar-100-binary/fine_label_names.txt",
        "longer": "test.bin of .* is 3075 bytes long.*record's 3074",
        "other": "cannot be unpacked",
    }.items():
        path = tmp_path / name
        images = dataclasses.replace(find("cifar100"), archives=(published(path),))
        with pytest.raises(BadInput, match=message):
            prepare(images, tmp_path / "data", path)
    assert list((tmp_path / "data").iterdir()) == []


def test_data_dir_that_cannot_be_written(cifar100, tmp_path):
    images, path, _ = cifar100
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file cannot be written .*another --data_dir"):
        prepare(images, tmp_path / "file", path)
    with (
        full_disk(limit=20_000),
        pytest.raises(BadInput, match="data cannot be written .*File too large"),
    ):
        prepare(images, tmp_path / "data", path)
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(BadInput, match="gs://bucket is not local"):
        prepare(images, "gs://bucket", path)


def start_download(data_dir, listener):
    """Starts the program behind a proxy that takes its request and never answers."""
    proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
    command = [sys.executable, "-m", "train.prepare", "cifar100", f"--data_dir={data_dir}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "https_proxy": proxy, "no_proxy": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    connection, _ = listener.accept()
    return process, connection


def test_a_stopped_program(cifar100, tmp_path):
    """One at a time; SIGTERM cleans up, and after SIGKILL the next run does."""
    images, path, _ = cifar100
    data_dir = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process, connection = start_download(data_dir, listener)
        with process, connection:
            with pytest.raises(BadInput, match="another process prepares the same set"):
                prepare(images, data_dir, path)
            process.send_signal(signal.SIGTERM)
            assert "interrupted" in process.communicate(timeout=30)[1]
            assert process.returncode == 1 and list(data_dir.iterdir()) == []
        process, connection = start_download(data_dir, listener)
        with process, connection:
            process.kill()
            process.wait(timeout=30)
    (left,) = data_dir.iterdir()
    (left / "cifar100" / "3.0.2").mkdir(parents=True)
    prepare(images, data_dir, path)
    assert [p.name for p in data_dir.iterdir()] == ["cifar100"]
    assert len(tfds.builder("cifar100", data_dir=data_dir).as_data_source("train")) == PER_FILE


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["cifar101"],
            "unknown set 'cifar101'; accepted: cifar10, cifar100, mnist, .*Did you",
        ),
        (["imagenet2012"], "imagenet2012 is not prepared here: .* TensorFlow"),
        (["cifar10", "mnist"], "give one set"),
        (["cifar10", "--archve=x"], "unknown flag '--archve'.*Did you mean '--archive'"),
    ],
)
def test_refusals(args, message):
    with pytest.raises(BadInput, match=message):
        main(["prepare", *args])
