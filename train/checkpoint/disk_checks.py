"""Whether a workdir's disk has room for a checkpoint."""

import shutil

from etils import epath

from train.checkpoint.workdir import checkpoint_folder, has_vanished
from train.devices.processes import all_agree, is_primary
from train.files import is_local


def check_disk(workdir: epath.Path, size: int) -> None:
    """Refuses, in every process, a local workdir that has no room for a state.

    Args:
      workdir: of the run.
      size: of the state, bytes.

    Raises:
      OSError: it cannot be written, or its disk is too full.
    """
    trouble: OSError | None = None
    if is_primary() and is_local(workdir):
        try:
            _probe(workdir, size)
        except OSError as error:
            trouble = error

    if not all_agree(trouble is None):
        raise trouble or OSError(f"the first process cannot write into {workdir}")


def _probe(workdir: epath.Path, size: int) -> None:
    # A workdir that has vanished is not made again: its disk may be unmounted, and the run would
    # write into the mount point.
    if has_vanished(workdir):
        raise FileNotFoundError(f"{workdir} has vanished")

    folder = checkpoint_folder(workdir)
    probe = folder / ".probe"
    folder.mkdir(exist_ok=True)
    probe.write_text("can this be written?")
    probe.unlink()

    # On a full disk the threads of orbax wait for one another for minutes until they fail.
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"the disk has {free:,} bytes left, and the state takes {size:,}")
