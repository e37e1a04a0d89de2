"""`fercli predict`, from inputs to outputs, including everything that can end it early."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from fercli import console
from fercli.parallel import Workers
from fercli.predict.inputs import Input, Reader
from fercli.predict.recognizer import Recognizer
from fercli.predict.totals import Totals
from fercli.predict.tracking import Tracker
from fercli.predict.writing import Writing

#: Fewest images for which worker processes are started: starting them takes a second or two.
_WORTH_IT = 12


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
    """Predict all inputs in order and write the predictions.

    Ctrl-C, SIGTERM and SIGHUP end the run, and so does a reader that closes stdout. An output file is moved into place
    when all inputs are done (with a camera: when it is stopped). Until then, and however the run ends, the predictions
    made so far are in the part file beside it (`fercli.predict.resume`).

    Args:
        files: where ``jsonl``, ``csv`` (``-`` is stdout) and ``annotate`` are written; None for nowhere.
        stdout: a binary stream; None if nothing is written to it.
        smooth_s: track faces in videos and smooth their probabilities over this many seconds.
        every, batch, force, resume: as the command's options.
        workers: as the option, or a running pool, which is left running.
        model: the recognizer's model file, which no output may replace.

    Raises:
        FercliError: an output exists or cannot be written, there is no such camera, a worker was killed, or the part
            files belong to a different run.
    """
    adaptation = recognizer.adaptation
    totals, started = Totals(adapted=None if adaptation is None else adaptation.label), time.monotonic()
    live = any(one.kind == "camera" for one in inputs)
    options = {"smooth": smooth_s, "every": every, "batch": batch, "device": recognizer.device.type}
    options["adapt"] = totals.adapted
    given = isinstance(workers, Workers)
    trackers: dict[int, Tracker] = {}
    with (
        _heeding_signals(),
        _ending(totals, stdout),
        Writing(files, inputs, stdout, options, model, totals, live, force, resume, adaptation) as writing,
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
    """Make SIGTERM and SIGHUP end the block as Ctrl-C does, except where they are ignored."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # other threads cannot set signal handlers
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
    """Do not treat an end that the user asked for as a failure."""
    try:
        yield
    except KeyboardInterrupt:
        totals.stopped = True
    except BrokenPipeError:
        totals.left = True
        console.forget(stdout)
