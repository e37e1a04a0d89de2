"""Answers on their way to their files, and from where a run that was stopped goes on.

Answers are written to ``NAME.part``, line by line, and take their place when all inputs are answered: a file without
that ending is complete. ``NAME.part.log`` beside the first of them says what the run was begun with and, for every
batch, how many inputs are answered completely and how long each file is then. So the answers themselves need not be
read: whatever a kill left behind the last whole batch is cut off and answered again, and the files end with the same
bytes as those of a run that was not stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fercli.errors import FercliError, SpecError
from fercli.files import beside, real_path, to_disk
from fercli.predict.inputs import Input
from fercli.version import __version__

#: What a run must have in common with the one that it goes on with, and how messages name it.
_SAME = {
    "fercli": "another version of fercli",
    "model": "another model",
    "inputs": "other inputs (names, sizes or times of change)",
    "options": "another --smooth, --every, --batch, --device or --adapt",
    "outputs": "other outputs",
}


def part_of(path: Path) -> Path:
    """The file that holds what is answered of `path` so far."""
    return beside(real_path(path), ".part")


def log_of(path: Path) -> Path:
    """The file beside `part_of` that says from where to go on."""
    return beside(real_path(path), ".part.log")


@dataclass(frozen=True)
class Position:
    """Where a run goes on.

    Attributes:
        inputs: those answered completely, from the first.
        sizes: of each part file then, in bytes.
        totals: what was counted until then (`fercli.predict.totals.Totals`).
        complete: all is answered: the files only have to take their places.
    """

    inputs: int = 0
    sizes: tuple[int, ...] = ()
    totals: dict[str, Any] = field(default_factory=dict)
    complete: bool = False


def description(
    inputs: Sequence[Input], model: Path | None, options: dict[str, Any], outputs: Sequence[Path]
) -> dict[str, str]:
    """What a run is begun with: it must be the same where it is gone on with."""
    listed = blake2b(digest_size=16)
    for one in inputs:
        of_file = _stamp(one.path) if one.data is None else blake2b(one.data, digest_size=16).hexdigest()
        listed.update(json.dumps([one.name, one.kind, of_file]).encode())
    return {
        "fercli": __version__,
        "model": "" if model is None else f"{model.name} {_stamp(model)}",
        "inputs": f"{len(inputs)} {listed.hexdigest()}",
        "options": json.dumps(options),
        "outputs": json.dumps([str(real_path(path)) for path in outputs]),
    }


def _stamp(path: Path | None) -> str:
    with suppress(OSError, ValueError, AttributeError):
        found = path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"
    return ""


def find_position(paths: Sequence[Path], begun_with: dict[str, str], resume: bool, force: bool) -> Position | None:
    """Return where a run goes on; None where it begins.

    Args:
        paths: the files to write.
        begun_with: `description` of this run.
        resume, force: as the options of the command.

    Raises:
        SpecError: both are given, or there is no file to go on with.
        FercliError: part files are there and neither is given; or they are of another run.
    """
    if resume and force:
        raise SpecError("--resume goes on and --force begins again", "give one of them")
    if resume and not paths:
        raise SpecError("--resume goes on in a file", "name one by --jsonl or --csv")
    there = [path for path in map(part_of, paths) if os.path.exists(path)]
    log = log_of(paths[0]) if paths else None
    if force or not (there or (log is not None and os.path.exists(log))):
        return None
    first = there[0] if there else log
    if not resume:
        raise FercliError(
            f"{first} holds the answers of a run that was stopped",
            "go on behind them with --resume, or begin again with --force",
        )
    header, positions = _read_log(log)
    if header is None:
        raise FercliError(f"{first} cannot be resumed: {log} is missing or damaged", "begin again with --force")
    for key, name in _SAME.items():
        if header.get(key) != begun_with[key]:
            why = f"it was begun with {name}; give the same, or begin again with --force"
            raise FercliError(f"{first} cannot be resumed: {why}")
    for position in reversed(positions):
        fits = len(position.sizes) == len(paths)
        if fits and (position.complete or all(map(_reaches, map(part_of, paths), position.sizes))):
            return position
    return Position(sizes=(0,) * len(paths))


def _reaches(part: Path, size: int) -> bool:
    """Whether a part file has so many bytes, and a line ends there."""
    if not size:
        return True
    try:
        with part.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"
    except OSError:
        return False


def _read_log(path: Path) -> tuple[dict[str, Any] | None, list[Position]]:
    """Return a log's first line and its positions; a line that is torn or damaged ends it."""
    header, positions = None, []
    with suppress(OSError, ValueError, TypeError, KeyError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            if header is None:
                header = entry if isinstance(entry, dict) else {}
                continue
            sizes = tuple(map(int, entry["sizes"]))
            positions.append(Position(int(entry["inputs"]), sizes, dict(entry["totals"]), bool(entry["complete"])))
    return header, positions


class PartFile:
    """The part file of an output, open for writing line by line.

    Args:
        path: the output.
        size: bytes of the part file to keep; what is behind them is cut off.

    Attributes:
        path: the output.
        size: bytes written.
    """

    def __init__(self, path: Path, size: int = 0):
        self.path, self.size, self.part = path, size, part_of(path)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.part.open("r+b" if size else "wb", buffering=0)
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, lines: bytes) -> None:
        """Write whole lines, or none of them."""
        left = memoryview(lines)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise
        self.size += len(lines)

    def close(self, to_the_disk: bool = False) -> None:
        """Close the file, which stays a part."""
        if to_the_disk:
            to_disk(self._file)
        self._file.close()


class Log:
    """The log of a run, open for writing.

    Args:
        path: the file.
        begun_with: `description`; None to go on with the one that is there.
    """

    def __init__(self, path: Path, begun_with: dict[str, str] | None):
        self.path = path
        self._file = path.open("ab" if begun_with is None else "wb", buffering=0)
        if begun_with is None:  # a torn line must not run into the next one
            _, known = _read_log(path)
            whole = path.read_bytes().split(b"\n")[: 1 + len(known)]
            os.truncate(path, sum(len(line) + 1 for line in whole))
        else:
            self._file.write(json.dumps(begun_with).encode() + b"\n")

    def note(self, position: Position) -> None:
        """Append a position: what it says is in the files already."""
        self._file.write(json.dumps(vars(position)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
