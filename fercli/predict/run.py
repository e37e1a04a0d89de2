"""`fercli predict` from inputs to outputs, with all that can end it early."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fercli import console
from fercli.predict.inputs import Input, Reader
from fercli.predict.results import Annotated, Lines, Sink, Table, Written, refuse_existing
from fercli.predict.stream import Picture
from fercli.predict.tracking import Tracker
from fercli.predict.workers import Workers
from fercli.recognizer import Face, Recognizer

#: Pictures from which on processes are started: they take a second or two to load.
_WORTH_IT = 12


@dataclass
class Totals:
    """What became of the inputs.

    Attributes:
        pictures: pictures and frames answered; `frames` of them are of videos, `empty` show no face.
        faces: faces answered.
        errors: pictures and videos that could not be read, or not to their end; the first, and why.
        seconds: wall time.
        stopped: by Ctrl-C.
    """

    pictures: int = 0
    frames: int = 0
    empty: int = 0
    faces: int = 0
    errors: int = 0
    first_error: tuple[str, str] = ("", "")
    seconds: float = 0.0
    stopped: bool = False
    by_video: dict[str, list[int]] = field(default_factory=dict)

    def add(self, picture: Picture, faces: list[Face] | None) -> None:
        """Count one picture or frame."""
        if faces is None:
            self.errors += 1
            if self.errors == 1:
                self.first_error = picture.name, str(picture.error)
            return
        self.pictures += 1
        self.faces += len(faces)
        self.empty += not faces
        if picture.frame is not None:
            self.frames += 1
            counts = self.by_video.setdefault(picture.name, [0, 0])
            counts[0] += 1
            counts[1] += len(faces)

    @property
    def faceless_videos(self) -> list[tuple[str, int]]:
        """Videos without a face in any frame, and their frames."""
        return [(name, frames) for name, (frames, faces) in self.by_video.items() if not faces]

    def document(self, files: dict[str, str | None]) -> dict[str, Any]:
        """The summary that ``--json`` prints."""
        counts = {name: getattr(self, name) for name in ("pictures", "frames", "faces", "empty", "errors", "seconds")}
        return {**counts, "files": {name: path for name, path in files.items() if path is not None}}


def predict(
    recognizer: Recognizer,
    inputs: list[Input],
    files: dict[str, str | None],
    stdout: IO[bytes] | None,
    smooth_s: float | None = None,
    every: int = 1,
    batch: int = 64,
    workers: int | Workers = 0,
    force: bool = False,
) -> Totals:
    """Answer all inputs in their order and write the answers.

    Ctrl-C ends it, and so does whoever reads stdout by closing it: files then hold what was answered until then. Any
    other failure leaves no file.

    Args:
        files: where ``jsonl``, ``csv`` (``-`` is stdout) and ``annotate`` go; None for nowhere.
        stdout: of bytes; None where nothing goes there.
        smooth_s: track faces in videos and smooth over so many seconds.
        every, batch, force: as the options of the command.
        workers: as the option, or processes that are there already and stay.

    Raises:
        FercliError: an output exists or cannot be written, there is no such camera, or a worker was killed.
    """
    reader, totals, started = Reader(inputs, every), Totals(), time.monotonic()
    live = any(one.kind == "camera" for one in inputs)
    count = 0 if live else reader.count()
    given = isinstance(workers, Workers)
    pool = workers if given else Workers(1 if live or count < _WORTH_IT else workers)
    trackers: dict[int, Tracker] = {}
    shown = console.progress("predict", count) if count else nullcontext()
    with _sinks(files, inputs, stdout, force, totals) as sinks, nullcontext() if given else pool, shown as bar:
        for picture, faces in recognizer.stream(reader, batch, pool, live):
            if smooth_s is not None and faces is not None and picture.frame is not None:
                tracker = trackers.setdefault(picture.number, Tracker(smooth_s))
                faces = tracker(faces, picture.time_s or 0.0)
            for sink in sinks:
                sink.add(picture, faces)
            totals.add(picture, faces)
            if bar is not None:
                bar.advance(1, f"{totals.faces} faces")
    totals.seconds = time.monotonic() - started
    return totals


@contextmanager
def _sinks(
    files: dict[str, str | None],
    inputs: list[Input],
    stdout: IO[bytes] | None,
    force: bool,
    totals: Totals,
) -> Iterator[list[Sink]]:
    """Open the outputs; close them whatever ends the block. An end that the user wants is none of its failures."""
    kinds = [(kind, files[name]) for name, kind in (("jsonl", Lines), ("csv", Table)) if files.get(name) is not None]
    named = [(kind, None if to == "-" else Path(to)) for kind, to in kinds]
    for _, path in named:
        if path is not None:
            refuse_existing(path, force)
    drawn = [Annotated(Path(files["annotate"]), inputs, force)] if files.get("annotate") is not None else []
    sinks: list[Sink] = list(drawn)
    failure: BaseException | None = None
    try:
        sinks += [Written(kind, path, stdout) for kind, path in named]
        yield sinks
    except KeyboardInterrupt:
        totals.stopped = True
    except BrokenPipeError:
        # What python flushes at its end must not fail again.
        _forget(stdout)
    except BaseException as problem:
        failure = problem
        raise
    finally:
        for sink in sinks:
            sink.close(failure)


def _forget(stdout: IO[bytes] | None) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
