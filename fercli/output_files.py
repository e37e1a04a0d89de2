"""Check where a command may write, before its work begins; used by every command that writes a user's file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from fercli.errors import FercliError, SpecError
from fercli.files import cannot_write, is_stream, real_path

#: Files that other commands read, of run folders, stage folders and prepared stores; each folder is recognised by its
#: marker files: (name, marker files, protected names or endings).
_KEPT = (
    ("a run", ("best.ckpt", "last.ckpt"), ("best.ckpt", "last.ckpt", "spec.yaml", "metrics.jsonl", "environment.json")),
    ("a run", ("source/best.ckpt", "source/last.ckpt"), ("spec.yaml",)),
    ("a run's results", ("results.json",), ("results.json", "results.csv")),
    ("a run's results", ("../results.json",), (".csv",)),
    ("a prepared store", ("faces.npy", "meta.json"), (".npy", "meta.json", "manifest.csv")),
)


class Outputs:
    """The outputs of one command, each checked before any of them is written.

    Args:
        reads: files that the command reads: inputs, the model.
        force: whether existing files are replaced.
    """

    def __init__(self, reads: Iterable[str | Path | None], force: bool):
        self._force, self._inputs, self._taken = force, {}, {}
        for path in reads:
            if path is not None:
                for key in _keys(Path(path)):
                    self._inputs[key] = path

    def check(self, option: str, path: Path, beside: Iterable[Path] = (), again: bool = False) -> None:
        """Raise unless the command may write `path`.

        Args:
            option: the option that names it, for messages.
            path: a file (existing or not), a device or a FIFO; symbolic links are followed.
            beside: files that are written next to it, temporarily or permanently.
            again: the file is the command's own output of an earlier start, and is replaced without `force`.

        Raises:
            SpecError: the command reads the file, or the file is another of its outputs.
            FercliError: the path is a folder, exists and `force` is false, belongs to a run or a prepared store, or
                cannot be written.
        """
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as failure:  # the name is too long, or links are circular
            raise cannot_write(path, failure) from None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise FercliError(f"cannot write {path}: it is a folder", "give the name of a file")
        if is_stream(path):
            self._claim(option, path, harmless=_same(path, os.devnull))
            return
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise FercliError(
                f"cannot write {path}: it is a {_kind(found.st_mode)}", "name a file, a pipe or a terminal"
            )
        for key in _keys(path):
            if key in self._inputs:
                raise SpecError(f"{option} would overwrite the input {self._inputs[key]}", "name another file")
        owner = _owner(real_path(path)) if found is not None else None
        if owner is not None:
            raise FercliError(f"{option} would overwrite {path}, which belongs to {owner}; name another file")
        if found is not None and not (self._force or again):
            raise FercliError(f"{path} already exists", "name another file, or replace it with --force")
        self._claim(option, path)
        for other in beside:
            self._claim(option, other)
        _check_folder(real_path(path))

    def _claim(self, option: str, path: Path, harmless: bool = False) -> None:
        for key in () if harmless else _keys(path):
            other = self._taken.setdefault(key, (option, path))
            if other != (option, path):
                raise SpecError(
                    f"{other[0]} {other[1]} and {option} {path} are the same file", "name two different files"
                )

    def take(self, option: str, file: IO[bytes]) -> None:
        """Claim a file that is already open, such as stdout: no other output may be the same file."""
        try:
            found = os.fstat(file.fileno())
        except (OSError, ValueError):
            return
        if stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode):
            self._taken[(found.st_dev, found.st_ino)] = (option, Path("-"))


def check_output(option: str, path: Path, force: bool, reads: Iterable[str | Path | None] = ()) -> None:
    """Call `Outputs.check` for a command with a single output."""
    Outputs(reads, force).check(option, path)


def _keys(path: Path) -> Iterable[object]:
    """Yield keys that two paths of the same file share: the real path and, if it exists, its inode (hard links)."""
    yield os.path.normcase(real_path(path))
    try:
        found = path.stat()
    except (OSError, ValueError):
        return
    if found.st_ino:
        yield found.st_dev, found.st_ino


def _same(path: Path, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _kind(mode: int) -> str:
    return "disk" if stat.S_ISBLK(mode) else "socket" if stat.S_ISSOCK(mode) else "special file"


def _owner(path: Path) -> str | None:
    """Return the run or store that a file belongs to; None if it belongs to neither."""
    for name, marks, kept in _KEPT:
        if any((path.parent / mark).exists() for mark in marks) and (path.name in kept or path.suffix in kept):
            return f"{name} ({path.parent})"
    return None


def _check_folder(path: Path) -> None:
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise FercliError(f"cannot write {path}: {folder} is not a folder", "name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FercliError(f"cannot write {path}: no permission to write in {folder}", "name another folder")
