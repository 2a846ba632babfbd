"""Disks that are full."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(limit=0):
    """Has every file of this process fail to grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
