"""`fercli predict` from inputs to outputs, with all that can end it early."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fercli import console
from fercli.predict.inputs import Input, Reader
from fercli.predict.stream import Picture
from fercli.predict.tracking import Tracker
from fercli.predict.writing import Writing
from fercli.recognizer import Face, Recognizer
from fercli.workers import Workers

#: Pictures from which on processes are started: they take a second or two to load.
_WORTH_IT = 12

#: What is counted over all starts of a run.
_COUNTS = ("pictures", "frames", "empty", "faces", "errors", "first_error")


@dataclass
class Totals:
    """What became of the inputs.

    Attributes:
        pictures: pictures and frames answered; `frames` of them are of videos, `empty` show no face.
        faces: faces answered.
        errors: pictures and videos that could not be read, or not to their end; the first, and why.
        seconds: wall time; `before`: pictures and frames that an earlier start of the run has answered.
        stopped: by Ctrl-C or a signal; `left`: by the reader of stdout, who has gone.
    """

    pictures: int = 0
    frames: int = 0
    empty: int = 0
    faces: int = 0
    errors: int = 0
    first_error: tuple[str, str] = ("", "")
    seconds: float = 0.0
    before: int = 0
    stopped: bool = False
    left: bool = False
    by_video: dict[str, list[int]] = field(default_factory=dict)

    def add(self, picture: Picture, faces: list[Face] | None) -> None:
        """Count one picture or frame."""
        if picture.error is not None:
            self.errors += 1
            if self.errors == 1:
                self.first_error = picture.name, picture.error
        if faces is None:
            return
        self.pictures += 1
        self.faces += len(faces)
        self.empty += not faces
        if picture.frame is not None:
            self.frames += 1
            counts = self.by_video.setdefault(picture.name, [0, 0])
            counts[0] += 1
            counts[1] += len(faces)

    def restore(self, counts: dict[str, Any]) -> None:
        """Take over what `counts` gave when a run was stopped."""
        for name in _COUNTS:
            setattr(self, name, counts.get(name, getattr(self, name)))
        self.first_error, self.before = tuple(self.first_error), self.pictures

    def counts(self) -> dict[str, Any]:
        """What a run that goes on with this one takes over."""
        return {name: getattr(self, name) for name in _COUNTS}

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
    resume: bool = False,
    model: Path | None = None,
) -> Totals:
    """Answer all inputs in their order and write the answers.

    Ctrl-C, SIGTERM and SIGHUP end it, and so does whoever reads stdout by closing it. A file of answers takes its place
    when all is answered (a camera: when it is stopped); until then, and however it ends, what was answered is in the
    part file beside it (`fercli.predict.resume`).

    Args:
        files: where ``jsonl``, ``csv`` (``-`` is stdout) and ``annotate`` go; None for nowhere.
        stdout: of bytes; None where nothing goes there.
        smooth_s: track faces in videos and smooth over so many seconds.
        every, batch, force, resume: as the options of the command.
        workers: as the option, or processes that are there already and stay.
        model: the file of the recognizer's model, which no output may replace.

    Raises:
        FercliError: an output exists or cannot be written, there is no such camera, a worker was killed, or the files
            are of another run than the one to go on with.
    """
    totals, started = Totals(), time.monotonic()
    live = any(one.kind == "camera" for one in inputs)
    options = {"smooth": smooth_s, "every": every, "batch": batch, "device": recognizer.device.type}
    given = isinstance(workers, Workers)
    trackers: dict[int, Tracker] = {}
    with (
        _heeding_signals(),
        _ending(totals, stdout),
        Writing(files, inputs, stdout, options, model, totals, live, force, resume) as writing,
    ):
        reader = Reader(inputs, every, writing.start.inputs)
        count = 0 if live else reader.count()
        pool = workers if given else Workers(1 if live or count < _WORTH_IT else workers)
        shown = console.progress("predict", count) if count else nullcontext()
        with nullcontext() if given else pool, shown as bar:
            for picture, faces in recognizer.stream(reader, batch, pool, live):
                if smooth_s is not None and faces is not None and picture.frame is not None:
                    tracker = trackers.setdefault(picture.number, Tracker(smooth_s))
                    faces = tracker(faces, picture.time_s or 0.0)
                writing.add(picture, faces)
                if bar is not None:
                    bar.advance(1, f"{totals.faces} faces")
        writing.finish()
    totals.seconds = time.monotonic() - started
    return totals


@contextmanager
def _heeding_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP where it is heeded at all, end the block as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere signals keep their meaning
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ending(totals: Totals, stdout: IO[bytes] | None) -> Iterator[None]:
    """Take an end that the user wants for no failure."""
    try:
        yield
    except KeyboardInterrupt:
        totals.stopped = True
    except BrokenPipeError:
        totals.left = True
        console.forget(stdout)
