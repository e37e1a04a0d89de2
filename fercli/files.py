"""Files that are written whole or not at all, locks of folders, and errors of the disk."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fercli import console
from fercli.errors import FercliError

#: The file in a folder by which one process keeps others out (`only_one`).
LOCK = ".lock"

#: Bytes of a file's name that every file system takes, less the dot of a hidden one.
_LONGEST_NAME = 254
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_file_name(name: str) -> bool:
    """Whether a name is one that a file or folder may have, and leads to no other folder."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\") and name.isprintable()


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file, for reading too, that takes the place of `path` once it is written and on the disk.

    A kill at any moment leaves the old file or the new one; a failure leaves the old one and no litter. Symbolic links
    are followed: the file behind them is replaced. A device, a FIFO or an open file (``/dev/stdout``) is not replaced
    but written to (`is_stream`).

    Args:
        path: the file.
        temporary: where to write meanwhile, in the same folder. The default differs from process to process; a large
            file with one writer names its own, so that the next write covers what a kill left.
    """
    if is_stream(path):
        with open_stream(path) as file:
            yield file
        return
    path = real_path(path)
    temporary = _beside(path) if temporary is None else path.with_name(temporary.name)
    try:
        with temporary.open("w+b") as file:
            yield file
            to_disk(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_stream(path: Path) -> bool:
    """Whether a path is written to rather than replaced: a device, a FIFO, or a file that a process holds open."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and _is_open_file(path))


def open_stream(path: Path) -> IO[bytes]:
    """Open what `is_stream` says is one; a FIFO waits for its reader, as in the shell. Nothing is cut off."""
    return path.open("ab")


def _is_open_file(path: Path) -> bool:
    """Whether a path, or a link on its way, names a process's open file: ``/dev/stdout``, ``/proc/self/fd/3``."""
    for _ in range(40):  # as many links as the system follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd|/dev/fd", folder):
            return True
        try:
            path = Path(folder, os.readlink(Path(folder, path.name)))
        except OSError:
            return False
    return False


def real_path(path: Path) -> Path:
    """Where a path leads: absolute, every symbolic link followed, whether the file is there or not."""
    return Path(os.path.realpath(path))


def beside(path: Path, ending: str) -> Path:
    """A file next to another, by its name and an ending; a name that is too long is shortened to its check sum."""
    name = path.name
    if len(os.fsencode(name)) + len(ending) > _LONGEST_NAME:
        name = f"{zlib.crc32(os.fsencode(name)):08x}"
    return path.with_name(name + ending)


def _beside(path: Path) -> Path:
    """A hidden file next to another, different from process to process."""
    hidden = beside(path, f".{platform.node()}-{os.getpid()}.tmp")
    return hidden.with_name(f".{hidden.name}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `replacing` does; FercliError where the disk is full."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as failure:
        raise disk_error(failure, path) from failure


def os_error_behind(failure: BaseException) -> OSError | None:
    """The failure of the operating system that another error hides, or None where there is none."""
    problem: BaseException | None = failure
    while problem is not None and not isinstance(problem, OSError):
        problem = problem.__cause__ or problem.__context__
    return problem


def disk_error(failure: OSError, path: Path) -> Exception:
    """Return the FercliError for a full disk, or the failure itself if it is another."""
    if failure.errno in _FULL:
        return FercliError(
            f"the disk is full while writing {path} (or takes no file this large)",
            "make room and run the same command again to go on",
        )
    return failure


def cannot_write(path: Path, failure: OSError) -> Exception:
    """Return the one line of a file that cannot be written."""
    known = disk_error(failure, path)
    return known if isinstance(known, FercliError) else FercliError(f"cannot write {path}: {failure.strerror}")


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Tell in one line, as `cannot_write`, that the block cannot write a file; None is stdout, which others report."""
    try:
        yield
    except OSError as failure:
        if path is None:
            raise
        raise cannot_write(path, failure) from None


class AtWork(FercliError):
    """Another process is at the same work in a folder."""


@contextmanager
def only_one(folder: Path, work: str, waiting: str | None = None) -> Iterator[None]:
    """Keep other processes from the same work in a folder as long as the block runs; a kill ends that too.

    The lock is the file `LOCK` in the folder, which stays. What a kill left half written there is removed.

    Args:
        folder: where the work is done.
        work: what it is called.
        waiting: said where another process is at work, which is then waited for.

    Raises:
        AtWork: another process is at work there, and it is not waited for.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        try:
            lock.acquire()
        except Timeout:
            if waiting is None:
                raise
            console.say(waiting)
            lock.acquire(timeout=-1)
    except Timeout:
        raise AtWork(f"another fercli {work} is at work in {folder}", "wait for it, or stop it") from None
    except (OSError, NotImplementedError) as failure:
        # Where nothing can be written nobody else writes either, and the work itself tells.
        if os.access(folder, os.W_OK) and getattr(failure, "errno", None) not in _FULL:
            console.warn(f"{folder} cannot be locked ({failure}): make sure that no other fercli works there")
        yield
        return
    try:
        remove_half_written(folder)
        yield
    finally:
        lock.release()


def remove_half_written(folder: Path, name: str = "*") -> None:
    """Remove what a kill left of files that were being written (`replacing`); nobody else may be at work on them.

    Args:
        folder: where they lie.
        name: a pattern of their names.
    """
    for left in folder.glob(f".{name}.tmp"):
        left.unlink(missing_ok=True)


def empty_folder(folder: Path, first: Iterable[str]) -> None:
    """Remove all that a folder holds but its lock, these files first."""
    for name in first:
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def to_disk(file: IO[bytes] | IO[str]) -> None:
    """Bring what was written to the disk itself, past the system's caches."""
    file.flush()
    os.fsync(file.fileno())
