"""Archives as they are published."""

import hashlib
import io
import tarfile

from train.prepare.archive import Archive


def tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def published(path, url=None):
    """Describes a file as if its makers had published it."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Archive(url or f"https://nowhere.invalid/{path.name}", len(content), digest)
