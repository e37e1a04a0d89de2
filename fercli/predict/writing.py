"""The outputs of a `fercli predict` run: checked before it, kept if it is stopped, moved into place at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from fercli import console
from fercli.errors import SpecError
from fercli.faces.failures import reason
from fercli.files import is_stream, open_stream, real_path, writing
from fercli.output_files import Outputs
from fercli.predict.inputs import Input
from fercli.predict.recognizer import Face
from fercli.predict.results import FORMS, Annotated, Lines, form
from fercli.predict.resume import Log, PartFile, Position, description, find_position, log_of, part_of
from fercli.predict.stream import Picture
from fercli.predict.test_time import Adaptation
from fercli.predict.totals import Totals

#: Advice for a run that cannot be resumed.
_AGAIN = "start again with --force"


class _Target(NamedTuple):
    lines: Lines
    path: Path | None
    to: PartFile | IO[bytes]


class Writing:
    """The outputs of one run; a context manager.

    Args:
        files, stdout, force, resume, model: as `fercli.predict.run.predict` takes them.
        inputs: all inputs.
        options: the run's options; a run can be resumed only with the same ones.
        totals: counts what is added; a resumed run continues its earlier counts.
        live: whether the run ends only when the user stops it.
        adaptation: how the model adapts to the faces, if it does. A continual run cannot be resumed, because what the
            model learnt is lost.

    Attributes:
        start: where the run resumes.
        finished: whether the files are in place.

    Raises:
        FercliError: an output may not or cannot be written, or the existing files belong to a different run.
    """

    def __init__(
        self,
        files: dict[str, str | None],
        inputs: Sequence[Input],
        stdout: IO[bytes] | None,
        options: dict[str, Any],
        model: Path | None,
        totals: Totals,
        live: bool,
        force: bool,
        resume: bool,
        adaptation: Adaptation | None = None,
    ):
        self._inputs, self._stdout, self._totals, self._live = inputs, stdout, totals, live
        self._adapted = None if adaptation is None else adaptation.label
        continual = adaptation is not None and not adaptation.episodic
        self._resumes = not live and not continual
        self._stack = ExitStack()
        self._named = {name: files[name] for name in FORMS if files.get(name) is not None}
        paths = [Path(to) for to in self._named.values() if to != "-"]
        self._kept = [path for path in paths if not is_stream(path)]
        to = Path(files["annotate"]) if files.get("annotate") is not None else None
        self._begun_with = {}
        if self._kept:
            self._begun_with = description(inputs, model, options, [*self._kept, *filter(None, [to])])
        if live and resume:
            raise SpecError("--resume does not work with a camera: its earlier frames are gone", "name another file")
        if continual and resume:
            raise SpecError(
                "--resume does not work with a continual --adapt: what the model learnt from earlier faces is gone",
                f"{_AGAIN}; a run with --episodic can be resumed",
            )
        at = find_position(self._kept, self._begun_with, resume, force)
        self.start, self._goes_on = at or Position(sizes=(0,) * len(self._kept)), at is not None
        self._annotated = None if to is None else Annotated(to, inputs, self.start.inputs)
        self._check([model, *(one.path for one in inputs)] if paths or to is not None else [], force)
        self._targets: list[_Target] = []
        self._log: Log | None = None
        self._number, self._settled, self.finished = self.start.inputs, False, False
        self._answered = self._goes_on
        totals.restore(self.start.totals)

    def _check(self, reads: Sequence[Path | None], force: bool) -> None:
        outputs = Outputs(reads, force)
        if "-" in self._named.values() and self._stdout is not None:
            outputs.take("stdout", self._stdout)
        for name, to in self._named.items():
            if to != "-":
                path = Path(to)
                beside = [part_of(path), log_of(path)] if path in self._kept else []
                outputs.check(f"--{name}", path, beside, again=self._goes_on)
        if self._annotated is not None:
            for path in self._annotated.paths[self.start.inputs :]:
                outputs.check("--annotate", path, again=self._goes_on)

    @property
    def part_files(self) -> list[Path]:
        """The part files that hold predictions and are not yet moved into place."""
        return [target.to.part for target in self._targets if isinstance(target.to, PartFile)]

    def __enter__(self) -> Writing:
        if not self.start.complete:
            try:
                self._open()
            except BaseException as failure:
                self.__exit__(type(failure), failure, None)
                raise
        return self

    def _open(self) -> None:
        sizes = dict(zip(self._kept, self.start.sizes, strict=True))
        for name, to in self._named.items():
            path = None if to == "-" else Path(to)
            head, lines = form(name, self._adapted)
            with writing(path):
                if path is None:
                    opened = self._stdout
                elif path in sizes:
                    opened = PartFile(path, sizes[path])
                else:
                    opened = self._stack.enter_context(open_stream(path))
                self._targets.append(_Target(lines, path, opened))
                if not sizes.get(path):
                    self._write(self._targets[-1], head)
        if self._kept:
            log = log_of(self._kept[0])
            with writing(log):
                self._log = Log(log, None if self._goes_on else self._begun_with)
        if self._goes_on:
            console.say(f"resuming after {self.start.inputs} of {len(self._inputs)} inputs")

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        """Write an image's predictions and its copy, to stdout at once. An error is reported in its own line."""
        if picture.number != self._number:
            self._end_input()
            self._note(picture.number)
            self._number = picture.number
        try:
            if self._annotated is not None:
                picture.error = self._annotated.add(picture, faces) or picture.error
            lines = [target.lines(picture, faces) for target in self._targets]
        except Exception as failure:
            picture.error, faces = reason(failure, picture.name), None
            lines = [target.lines(picture, faces) for target in self._targets]
        for target, line in zip(self._targets, lines, strict=True):
            self._write(target, line)
        self._totals.add(picture, faces)
        self._answered, self._settled = True, picture.settled
        if self._inputs[picture.number].kind == "picture":
            self._note(picture.number + 1)

    def _end_input(self) -> None:
        """Move a video's copy into place; if it has none, write the reason as a separate line."""
        why = None if self._annotated is None else self._annotated.finish(self._number)
        if why is not None:
            last = Picture(self._inputs[self._number].name, None, self._number, error=why)
            for target in self._targets:
                self._write(target, target.lines(last, None))
            self._totals.add(last, None)

    def _note(self, inputs: int, complete: bool = False) -> None:
        if self._log is not None and (self._settled or complete):
            sizes = tuple(target.to.size for target in self._targets if isinstance(target.to, PartFile))
            with writing(self._log.path):
                self._log.note(Position(inputs, sizes, self._totals.counts(), complete))
            self._settled = False

    def _write(self, target: _Target, lines: bytes) -> None:
        with writing(target.path):
            target.to.write(lines)
            if not isinstance(target.to, PartFile):
                target.to.flush()

    def finish(self) -> None:
        """Move the files into place."""
        if not self.start.complete:
            if self._answered:
                self._end_input()
            for target in self._targets:
                if isinstance(target.to, PartFile):
                    with writing(target.path):
                        target.to.close(to_the_disk=True)
            self._note(len(self._inputs), complete=True)
        if self._log is not None:
            self._log.close()
        for path in self._kept:
            part = part_of(path)
            with writing(path):
                if part.exists() or not self.start.complete:
                    os.replace(part, real_path(path))
        if self._kept:
            log_of(self._kept[0]).unlink(missing_ok=True)
        self.finished = True

    def __exit__(self, kind: type[BaseException] | None, failure: BaseException | None, _: object) -> None:
        try:
            if self._live and self._answered and isinstance(failure, KeyboardInterrupt):
                self.finish()
            elif failure is not None and not self.finished:
                self._keep(failure)
        finally:
            with suppress(OSError):  # reported when it was written
                self._stack.close()

    def _keep(self, failure: BaseException) -> None:
        """Keep the predictions in the part files; delete the part files if there are none."""
        if self._annotated is not None:
            self._annotated.close(failure)
        for target in self._targets:
            if isinstance(target.to, PartFile):
                target.to.close()
        if self._log is not None:
            self._log.close()
        if not self._answered:
            for path in [*self.part_files, *([self._log.path] if self._log is not None else [])]:
                path.unlink(missing_ok=True)
        elif self.part_files:
            parts = " and ".join(map(str, self.part_files))
            advice = "to continue, run the same command with --resume"
            console.warn(f"the predictions so far are in {parts}; {advice if self._resumes else _AGAIN}")
