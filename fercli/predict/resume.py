"""Part files of predictions, and the position from which a stopped run resumes.

Predictions are written to ``NAME.part``, line by line. The file is moved into place when all inputs are done, so a file
without that ending is complete. ``NAME.part.log`` beside the first of them records what the run was started with. For
every batch it also records how many inputs are completely done and how long each file was then. The predictions
themselves need not be read: whatever a kill left after the last whole batch is cut off and predicted again. The files
end up with the same bytes as those of a run that was not stopped.
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

#: What a run must have in common with the one it resumes, and how messages name a difference.
_SAME = {
    "fercli": "another version of fercli",
    "model": "another model",
    "inputs": "other inputs (names, sizes or modification times)",
    "options": "another --smooth, --every, --batch, --device or --adapt",
    "outputs": "other outputs",
}


def part_of(path: Path) -> Path:
    """Return the part file of `path`, which holds its predictions so far."""
    return beside(real_path(path), ".part")


def log_of(path: Path) -> Path:
    """Return the log file of `path`, beside `part_of`, which records where to resume."""
    return beside(real_path(path), ".part.log")


@dataclass(frozen=True)
class Position:
    """Where a run resumes.

    Attributes:
        inputs: number of inputs that are completely done, counted from the first.
        sizes: size of each part file at that point, in bytes.
        totals: the counts at that point (`fercli.predict.totals.Totals`).
        complete: whether all inputs are done, so that the files only have to be moved into place.
    """

    inputs: int = 0
    sizes: tuple[int, ...] = ()
    totals: dict[str, Any] = field(default_factory=dict)
    complete: bool = False


def description(
    inputs: Sequence[Input], model: Path | None, options: dict[str, Any], outputs: Sequence[Path]
) -> dict[str, str]:
    """Describe what a run is started with; it must be the same when the run is resumed."""
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
    """Return where a run resumes; None if it starts from the beginning.

    Args:
        paths: the files to write.
        begun_with: `description` of this run.
        resume, force: as the command's options.

    Raises:
        SpecError: both options are given, or there is no file to resume.
        FercliError: part files exist and neither option is given, or the part files belong to a different run.
    """
    if resume and force:
        raise SpecError("--resume continues a run and --force starts again", "use only one of them")
    if resume and not paths:
        raise SpecError("--resume needs an output file", "name one with --jsonl or --csv")
    there = [path for path in map(part_of, paths) if os.path.exists(path)]
    log = log_of(paths[0]) if paths else None
    if force or not (there or (log is not None and os.path.exists(log))):
        return None
    first = there[0] if there else log
    if not resume:
        raise FercliError(
            f"{first} contains the predictions of a stopped run",
            "continue it with --resume, or start again with --force",
        )
    header, positions = _read_log(log)
    if header is None:
        raise FercliError(f"{first} cannot be resumed: {log} is missing or damaged", "start again with --force")
    for key, name in _SAME.items():
        if header.get(key) != begun_with[key]:
            why = f"it was started with {name}; use the same, or start again with --force"
            raise FercliError(f"{first} cannot be resumed: {why}")
    for position in reversed(positions):
        fits = len(position.sizes) == len(paths)
        if fits and (position.complete or all(map(_reaches, map(part_of, paths), position.sizes))):
            return position
    return Position(sizes=(0,) * len(paths))


def _reaches(part: Path, size: int) -> bool:
    """Return whether a part file has at least `size` bytes and a line ends there."""
    if not size:
        return True
    try:
        with part.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"
    except OSError:
        return False


def _read_log(path: Path) -> tuple[dict[str, Any] | None, list[Position]]:
    """Return a log's first line and its positions; reading stops at a torn or damaged line."""
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
        size: bytes of the part file to keep; anything after them is cut off.

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
        """Close the file, which remains a part file."""
        if to_the_disk:
            to_disk(self._file)
        self._file.close()


class Log:
    """The log of a run, open for writing.

    Args:
        path: the file.
        begun_with: `description`; None to continue the existing log.
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
        """Append a position; what it describes must already be in the files."""
        self._file.write(json.dumps(vars(position)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
