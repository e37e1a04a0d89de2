"""Files that are whole or not there, whenever the machine stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fercli.errors import FercliError


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of `path` once it is written and on the disk.

    A kill at any moment leaves the old file or the new one; a failure leaves the old one and no litter.

    Args:
        path: the file.
        temporary: where to write meanwhile, in the same folder. The default differs from process to process; a large
            file with one writer names its own, so that the next write covers what a kill left.
    """
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            to_disk(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `replacing` does; FercliError where the disk is full."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as failure:
        raise disk_error(failure, path) from failure


def disk_error(failure: OSError, path: Path) -> Exception:
    """Return the FercliError for a full disk, or the failure itself if it is another."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return FercliError(f"the disk is full while writing {path}; make room and run the same command again to go on")
    return failure


def to_disk(file: IO[bytes] | IO[str]) -> None:
    """Bring what was written to the disk itself, past the system's caches."""
    file.flush()
    os.fsync(file.fileno())
