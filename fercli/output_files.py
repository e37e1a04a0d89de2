"""Where a command may write: said before the work, in one place for every command that writes a file of the user's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from fercli.errors import FercliError, SpecError
from fercli.files import cannot_write, is_stream, real_path

#: Files of a run's stage folder and of a prepared store that other commands read; each folder is known by its marks.
_KEPT = (
    ("a run", ("best.ckpt", "last.ckpt"), ("best.ckpt", "last.ckpt", "spec.yaml", "metrics.jsonl", "environment.json")),
    ("a run", ("source/best.ckpt", "source/last.ckpt"), ("spec.yaml",)),
    ("a run's results", ("results.json",), ("results.json", "results.csv")),
    ("a run's results", ("../results.json",), (".csv",)),
    ("a prepared store", ("faces.npy", "meta.json"), (".npy", "meta.json", "manifest.csv")),
)


class Outputs:
    """The outputs of one command, checked one by one before any of them is written.

    Args:
        reads: files that the command reads: inputs, the model.
        force: whether files that are there already are replaced.
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
            option: what named it, as messages say it.
            path: a file, there or not, a device or a FIFO; symbolic links are followed.
            beside: files that are written beside it, for the while or for good.
            again: it is the command's own from an earlier start, and replaced without `force`.

        Raises:
            SpecError: the command reads it, or it is another of its outputs.
            FercliError: it is a folder, there already without `force`, a file of a run or of a prepared store, or
                cannot be written.
        """
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as failure:  # too long a name, links in a circle
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
                raise SpecError(f"{option} would write over {self._inputs[key]}, which is read", "name another file")
        owner = _owner(real_path(path)) if found is not None else None
        if owner is not None:
            raise FercliError(f"{path} belongs to {owner}; {option} would write over it: name another file")
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
                raise SpecError(f"{other[0]} {other[1]} and {option} {path} are the same file", "name two")

    def take(self, option: str, file: IO[bytes]) -> None:
        """Take a file that is open already, such as stdout: no other output may be the same one."""
        try:
            found = os.fstat(file.fileno())
        except (OSError, ValueError):
            return
        if stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode):
            self._taken[(found.st_dev, found.st_ino)] = (option, Path("-"))


def check_output(option: str, path: Path, force: bool, reads: Iterable[str | Path | None] = ()) -> None:
    """Do `Outputs.check` for a command's only output."""
    Outputs(reads, force).check(option, path)


def _keys(path: Path) -> Iterable[object]:
    """What two paths share that are one file: where they lead, and of a file that is there its number (hard links)."""
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
    """What a file belongs to that other commands read; None where it is of no such kind."""
    for name, marks, kept in _KEPT:
        if any((path.parent / mark).exists() for mark in marks) and (path.name in kept or path.suffix in kept):
            return f"{name} ({path.parent})"
    return None


def _check_folder(path: Path) -> None:
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise FercliError(f"cannot write {path}: {folder} is no folder", "name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FercliError(f"cannot write {path}: {folder} may not be written to", "name another place")
