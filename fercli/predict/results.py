"""Answers as JSON lines and as CSV, and annotated pictures and videos beside them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import cv2
import numpy as np

from fercli.errors import FercliError, SpecError
from fercli.expressions import EXPRESSIONS
from fercli.faces.boxes import scale_box, scale_points
from fercli.faces.images import Decoded, Unreadable, decode
from fercli.files import cannot_write, replacing, write_atomically
from fercli.media import is_picture_name, is_video_name
from fercli.models import HEADS
from fercli.predict.drawing import draw
from fercli.predict.inputs import Input
from fercli.predict.stream import Picture
from fercli.predict.video_writer import VideoWriter
from fercli.recognizer import Face

#: What OpenCV writes; annotated pictures of other kinds become JPEGs.
_WRITTEN = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"))

COLUMNS: tuple[str, ...] = (
    *("input", "frame", "time_s", "face", "track", "expression", "confidence", "rung", "score", "how"),
    *("left", "top", "right", "bottom"),
    *(f"{axis}_{point}" for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for axis in "xy"),
    *(f"p_{name}" for name in EXPRESSIONS),
    *(f"head_{name}" for name in HEADS),
    "error",
)


class Sink(Protocol):
    """Where answers go, picture by picture."""

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        """Take a picture's answers; None where it has an error."""

    def close(self, failure: BaseException | None = None) -> None:
        """Finish what was begun; with a failure leave no half file."""


def document(picture: Picture, faces: Sequence[Face] | None) -> dict[str, Any]:
    """One picture's or frame's line of JSON: pixels to hundredths, probabilities to six digits."""
    line: dict[str, Any] = {"input": picture.name, "frame": picture.frame}
    line["time_s"] = None if picture.time_s is None else round(picture.time_s, 4)
    if faces is None:
        line["error"] = picture.error
    line["faces"] = [_face(face) for face in faces or ()]
    return line


def _face(face: Face) -> dict[str, Any]:
    track = {} if face.track is None else {"track": face.track}
    return {
        **track,
        "expression": face.expression,
        "confidence": round(face.confidence, 6),
        "probabilities": {n: round(float(p), 6) for n, p in zip(EXPRESSIONS, face.probabilities, strict=True)},
        "rung": face.rung,
        "heads": face.heads,
        "box": [round(float(edge), 2) for edge in face.box],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.landmarks],
        "score": round(face.score, 4),
        "how": face.how,
    }


class Lines:
    """JSON lines: one for each picture or frame."""

    def __init__(self, to: IO[bytes]):
        self._to = to

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        # ASCII: names that are no UTF-8 are escaped too.
        self._to.write(json.dumps(document(picture, faces)).encode() + b"\n")


class Table:
    """CSV with a header (`COLUMNS`): a row a face, and one with no face for a picture without any."""

    def __init__(self, to: IO[bytes]):
        self._to = to
        self._write([COLUMNS])

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        line = document(picture, faces)
        about = {name: line[name] for name in ("input", "frame", "time_s")}
        rows = []
        for number, face in enumerate(line["faces"]):
            row = {**about, **face, "face": number, **dict(zip(COLUMNS[10:14], face["box"], strict=True))}
            row.update(zip(COLUMNS[14:24], (v for point in face["landmarks"] for v in point), strict=True))
            row.update({f"p_{name}": p for name, p in face["probabilities"].items()})
            row.update({f"head_{name}": said for name, said in face["heads"].items()})
            rows.append(row)
        rows = rows or [{**about, "error": line.get("error")}]
        self._write([["" if row.get(name) is None else row[name] for name in COLUMNS] for row in rows])

    def _write(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._to.write(text.getvalue().encode("utf-8", "surrogateescape"))


class Written:
    """Lines or a table to a file, which takes its place when it is closed, or to stdout.

    Raises:
        FercliError: the file cannot be written.
    """

    def __init__(self, kind: type[Lines] | type[Table], path: Path | None, stdout: IO[bytes] | None):
        self._path, self._stack, self._stdout = path, ExitStack(), stdout if path is None else None
        try:
            self._writer = kind(stdout if path is None else self._stack.enter_context(replacing(_made_room(path))))
        except OSError as failure:
            if path is None:
                raise
            raise cannot_write(path, failure) from None

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        """Write a picture's answers; stdout gets them at once."""
        try:
            self._writer.add(picture, faces)
            if self._stdout is not None:
                self._stdout.flush()
        except OSError as failure:
            if self._path is None:
                raise
            raise cannot_write(self._path, failure) from None

    def close(self, failure: BaseException | None = None) -> None:
        """Put the file in its place, or with a failure leave no trace of it."""
        try:
            self._stack.__exit__(type(failure) if failure else None, failure, None)
        except OSError as problem:
            if self._path is None:
                raise
            raise cannot_write(self._path, problem) from None


class Annotated:
    """Copies of pictures and videos with the answers drawn over them: frames keep their times, huge JPEGs are smaller.

    Args:
        to: a folder, in which the inputs keep their relative names; or the one input's own file.
        inputs: all of them.
        force: replace what is there.

    Raises:
        SpecError: a copy would take its input's place, or a file is given for several inputs.
        FercliError: a copy is there already, or its folder cannot be made.
    """

    def __init__(self, to: Path, inputs: Sequence[Input], force: bool):
        self._video: VideoWriter | None = None
        self._number = -1
        self._paths = _copies(to, inputs)
        sources = {os.path.realpath(one.path) for one in inputs if one.path is not None}
        for path in self._paths:
            if os.path.realpath(path) in sources:
                raise SpecError(f"--annotate would write over its input {path}; give another folder")
            refuse_existing(path, force)

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> None:
        """Write a picture's copy, or the next frame of a video's; what cannot be read has none."""
        if faces is None:
            return
        path = self._paths[picture.number]
        try:
            drawn = _drawn(decode(picture.source, picture.name), faces)
        except Unreadable:  # gone since
            return
        if picture.time_s is None or picture.duration_s is None:
            _write_picture(_made_room(path), drawn)
            return
        if self._number != picture.number:
            self.close()
            self._video, self._number = VideoWriter(_made_room(path), drawn.shape[1::-1]), picture.number
        self._video.add(drawn, picture.time_s, picture.duration_s)

    def close(self, failure: BaseException | None = None) -> None:
        """Put the video that is being written in its place; what a failure cut short is thrown away."""
        video, self._video = self._video, None
        if video is not None:
            video.close(failure)


def _drawn(picture: Decoded, faces: Sequence[Face]) -> np.ndarray:
    if picture.scale > 1:
        part = 1 / picture.scale
        faces = [
            replace(face, box=scale_box(face.box, part), landmarks=scale_points(face.landmarks, part)) for face in faces
        ]
    return draw(picture.pixels, faces)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise FercliError where an output is there already and --force is not given, or can never be written."""
    if _is_folder(path):
        raise FercliError(f"cannot write {path}: it is a folder")
    if path.exists() and not force:
        raise FercliError(f"{path} exists; name another, or replace it with --force")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as failure:  # too long a name
        raise cannot_write(path, failure) from None


def _copies(to: Path, inputs: Sequence[Input]) -> list[Path]:
    """Return each input's annotated copy, no two alike."""
    kinds = _WRITTEN if inputs[0].kind == "picture" else {".mp4"}
    if to.suffix.lower() in _WRITTEN | {".mp4"} and not _is_folder(to):
        if len(inputs) > 1:
            raise SpecError(f"--annotate {to} is one file, and there are {len(inputs)} inputs; name a folder")
        if to.suffix.lower() not in kinds:
            raise SpecError(f"--annotate {to}: a {inputs[0].kind} becomes one of {', '.join(sorted(kinds))}")
        return [to]
    if (is_picture_name(to.name) or is_video_name(to.name)) and not _is_folder(to):
        raise SpecError(f"--annotate {to}: copies are written as {', '.join(sorted(_WRITTEN))} or .mp4")
    paths: dict[Path, None] = {}
    for one in inputs:
        below = one.below
        if one.kind != "picture":
            below = below.with_suffix(".mp4")
        elif below.suffix.lower() not in _WRITTEN:
            below = below.with_name(below.name + ".jpg")
        path, again = to / below, 1
        while path in paths:
            again += 1
            path = to / below.with_name(f"{below.stem}-{again}{below.suffix}")
        paths[path] = None
    return list(paths)


def _made_room(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise cannot_write(path, failure) from None
    return path


def _write_picture(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise FercliError(f"cannot write {path}: this OpenCV cannot write {path.suffix}")
    try:
        write_atomically(path, data.tobytes())
    except OSError as failure:
        raise cannot_write(path, failure) from None
