"""Atomic file writes, folder locks, and disk errors."""

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

#: The lock file with which one process keeps others out of a folder (`only_one`).
LOCK = ".lock"

#: Bytes in a file name that every file system accepts, minus the dot of a hidden file.
_LONGEST_NAME = 254
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_file_name(name: str) -> bool:
    """Return whether a name is valid for a file or folder and does not lead to another folder."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\") and name.isprintable()


@contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file, also readable, that replaces `path` once it is written and on the disk.

    A kill at any moment leaves the old file or the new one. A failure leaves the old one and no temporary file.
    Symbolic links are followed: their target is replaced. A device, a FIFO or an open file (``/dev/stdout``) is not
    replaced but written to (`is_stream`).

    Args:
        path: the file.
        temporary: the temporary file, in the same folder. The default is unique to the process. A large file with a
            single writer names its own, so that the next write overwrites what a kill left.
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
    """Return whether a path is written to, not replaced: a device, a FIFO, or a file that a process holds open."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and _is_open_file(path))


def open_stream(path: Path) -> IO[bytes]:
    """Open a path for which `is_stream` is true. A FIFO waits for its reader, as in the shell. Nothing is truncated."""
    return path.open("ab")


def _is_open_file(path: Path) -> bool:
    """Return whether a path, or a link it passes, is a process's open file: ``/dev/stdout``, ``/proc/self/fd/3``."""
    for _ in range(40):  # the number of links that the system follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(r"/proc/\d+(/task/\d+)?/fd|/dev/fd", folder):
            return True
        try:
            path = Path(folder, os.readlink(Path(folder, path.name)))
        except OSError:
            return False
    return False


def real_path(path: Path) -> Path:
    """Return the absolute path with every symbolic link resolved, whether the file exists or not."""
    return Path(os.path.realpath(path))


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file next to another: its name plus an ending. A name that is too long becomes its CRC."""
    name = path.name
    if len(os.fsencode(name)) + len(ending) > _LONGEST_NAME:
        name = f"{zlib.crc32(os.fsencode(name)):08x}"
    return path.with_name(name + ending)


def _beside(path: Path) -> Path:
    """Return the path of a hidden file next to another, unique to the process."""
    hidden = beside(path, f".{platform.node()}-{os.getpid()}.tmp")
    return hidden.with_name(f".{hidden.name}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `replacing` does; raise FercliError where the disk is full."""
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as failure:
        raise disk_error(failure, path) from failure


def os_error_behind(failure: BaseException) -> OSError | None:
    """Return the operating-system error that caused another error, or None if there is none."""
    problem: BaseException | None = failure
    while problem is not None and not isinstance(problem, OSError):
        problem = problem.__cause__ or problem.__context__
    return problem


def disk_error(failure: OSError, path: Path) -> Exception:
    """Return the FercliError for a full disk, or the failure itself if it is a different one."""
    if failure.errno in _FULL:
        return FercliError(
            f"the disk is full while writing {path} (or does not accept a file this large)",
            "free some space, then run the same command again to resume",
        )
    return failure


def cannot_write(path: Path, failure: OSError) -> Exception:
    """Return the one-line error for a file that cannot be written."""
    known = disk_error(failure, path)
    return known if isinstance(known, FercliError) else FercliError(f"cannot write {path}: {failure.strerror}")


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Raise the one-line error of `cannot_write` if the block fails to write a file.

    Args:
        path: the file; None is stdout, whose errors are reported elsewhere.
    """
    try:
        yield
    except OSError as failure:
        if path is None:
            raise
        raise cannot_write(path, failure) from None


class AtWork(FercliError):
    """Another process is doing the same work in a folder."""


@contextmanager
def only_one(folder: Path, work: str, waiting: str | None = None) -> Iterator[None]:
    """Keep other processes from doing the same work in a folder while the block runs; a kill releases the lock too.

    The lock is the file `LOCK` in the folder, which stays. Half-written files that a kill left there are removed.

    Args:
        folder: where the work is done.
        work: the name of the work.
        waiting: message to print before waiting for another process; None to fail instead.

    Raises:
        AtWork: another process is working there, and `waiting` is None.
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
        raise AtWork(f"another fercli {work} is running in {folder}", "wait for it, or stop it") from None
    except (OSError, NotImplementedError) as failure:
        # If the folder is read-only or full, no other process writes there, and the work itself reports the error.
        if os.access(folder, os.W_OK) and getattr(failure, "errno", None) not in _FULL:
            console.warn(f"cannot lock {folder} ({failure}); make sure that no other fercli runs there")
        yield
        return
    try:
        remove_half_written(folder)
        yield
    finally:
        lock.release()


def remove_half_written(folder: Path, name: str = "*") -> None:
    """Remove half-written files that a kill left (`replacing`); no other process may be writing them.

    Args:
        folder: the folder that holds them.
        name: a pattern for their names.
    """
    for left in folder.glob(f".{name}.tmp"):
        left.unlink(missing_ok=True)


def empty_folder(folder: Path, first: Iterable[str]) -> None:
    """Remove everything in a folder except its lock, the files in `first` before the others."""
    for name in first:
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def to_disk(file: IO[bytes] | IO[str]) -> None:
    """Flush written data to the disk itself, past the system's caches."""
    file.flush()
    os.fsync(file.fileno())
