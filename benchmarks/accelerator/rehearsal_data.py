"""Tiny sets in the published formats, prepared as the real ones are, for a rehearsal."""

import contextlib
import hashlib
import io
import pathlib
import tarfile

import numpy as np

PER_FILE = 40  # images
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 200


def make(data_dir: pathlib.Path) -> None:
    """Prepares 'cifar10' and 'tiny_shakespeare' of noise and of one sentence.

    Args:
      data_dir: the folder of the sets; what lies there already is left alone.

    Raises:
      ModuleNotFoundError: the trainer's packages are not installed.
    """
    from train.prepare.archive import Archive
    from train.prepare.build import prepare
    from train.prepare.cifar import Cifar10
    from train.prepare.sets import Source
    from train.prepare.shakespeare import TinyShakespeare

    data_dir.mkdir(parents=True, exist_ok=True)
    archive, text = data_dir / "cifar.tar.gz", data_dir / "text"
    _write_cifar(archive)
    text.write_text(TEXT)
    for builder, path in ((Cifar10, archive), (TinyShakespeare, text)):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        published = Archive(f"https://nowhere.invalid/{path.name}", len(content), digest)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(Source(builder, (published,)), data_dir, path)


def _write_cifar(path: pathlib.Path) -> None:
    """Writes noise as the binary version of CIFAR-10's archive holds its images."""
    rng = np.random.default_rng(0)
    files = {"batches.meta.txt": "\n".join(f"class{i}" for i in range(10)).encode()}
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (PER_FILE, 1 + 3 * 32 * 32), np.uint8)
        records[:, 0] = np.arange(PER_FILE) % 10
        files[name] = records.tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
