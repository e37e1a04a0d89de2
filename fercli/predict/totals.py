"""What `fercli predict` counts: over all inputs, and over all starts of a resumed run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fercli.predict.recognizer import Face
from fercli.predict.stream import Picture

#: What is counted over all starts of a run.
_COUNTS = ("pictures", "frames", "empty", "faces", "expressions", "errors", "first_error")


@dataclass
class Totals:
    """What became of the inputs.

    Attributes:
        pictures: images and frames predicted; `frames` of them come from videos, `empty` show no face.
        faces: faces predicted; `expressions`: how many of them show each expression.
        errors: images and videos that could not be read, or not to their end; `first_error`: the first one's name and
            reason.
        seconds: wall time; `before`: images and frames that an earlier start of the run predicted.
        adapted: how the model adapts to the faces (`fercli.predict.test_time.Adaptation.label`), if it does.
        stopped: whether Ctrl-C or a signal ended the run; `left`: whether the reader of stdout closed it.
        by_video: for each video, its frames and its faces.
    """

    pictures: int = 0
    frames: int = 0
    empty: int = 0
    faces: int = 0
    expressions: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    first_error: tuple[str, str] = ("", "")
    seconds: float = 0.0
    before: int = 0
    adapted: str | None = None
    stopped: bool = False
    left: bool = False
    by_video: dict[str, list[int]] = field(default_factory=dict)

    def add(self, picture: Picture, faces: list[Face] | None) -> None:
        """Count one image or frame."""
        if picture.error is not None:
            self.errors += 1
            if self.errors == 1:
                self.first_error = picture.name, picture.error
        if faces is None:
            return
        self.pictures += 1
        self.faces += len(faces)
        self.empty += not faces
        for face in faces:
            self.expressions[face.expression] = self.expressions.get(face.expression, 0) + 1
        if picture.frame is not None:
            self.frames += 1
            counts = self.by_video.setdefault(picture.name, [0, 0])
            counts[0] += 1
            counts[1] += len(faces)

    def restore(self, counts: dict[str, Any]) -> None:
        """Restore the `counts` of a stopped run."""
        for name in _COUNTS:
            setattr(self, name, counts.get(name, getattr(self, name)))
        self.first_error, self.before = tuple(self.first_error), self.pictures

    def counts(self) -> dict[str, Any]:
        """The counts that a resumed run restores."""
        return {name: getattr(self, name) for name in _COUNTS}

    @property
    def faceless_videos(self) -> list[tuple[str, int]]:
        """Videos without a face in any frame, and their number of frames."""
        return [(name, frames) for name, (frames, faces) in self.by_video.items() if not faces]

    def document(self, files: dict[str, str | None]) -> dict[str, Any]:
        """The summary that ``--json`` prints."""
        counts = {
            name: getattr(self, name)
            for name in ("pictures", "frames", "faces", "expressions", "empty", "errors", "seconds")
        }
        if self.adapted is not None:
            counts["adapted"] = self.adapted
        return {**counts, "files": {name: path for name, path in files.items() if path is not None}}
