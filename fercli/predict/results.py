"""Predictions as JSON lines and as CSV, and annotated copies of images and videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fercli.errors import FercliError, SpecError
from fercli.expressions import EXPRESSIONS
from fercli.faces.failures import may_pass, reason
from fercli.faces.images import Decoded, Unreadable, decode
from fercli.faces.search import scale_box, scale_points
from fercli.files import cannot_write, real_path, replacing, writing
from fercli.media import WRITTEN_ENDINGS, is_picture_name, is_video_name
from fercli.models import HEADS
from fercli.predict.drawing import draw
from fercli.predict.inputs import Input
from fercli.predict.recognizer import Face
from fercli.predict.resume import part_of
from fercli.predict.stream import Picture
from fercli.predict.video_writer import VideoWriter
from fercli.spreadsheet import csv_bytes

COLUMNS: tuple[str, ...] = (
    *("input", "frame", "time_s", "face", "track", "expression", "confidence", "stage", "score", "how"),
    *("left", "top", "right", "bottom"),
    *(f"{axis}_{point}" for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for axis in "xy"),
    *(f"p_{name}" for name in EXPRESSIONS),
    *(f"head_{name}" for name in HEADS),
    "error",
)


#: The column after them, if the model adapts to the faces it predicts.
ADAPTED = "adapted"


def document(picture: Picture, faces: Sequence[Face] | None, adapted: str | None = None) -> dict[str, Any]:
    """Return the JSON object for an image or frame: pixels to two decimals, probabilities to six.

    If the model adapts to the faces it predicts, `adapted` says how (`fercli.predict.test_time.Adaptation.label`).
    """
    line: dict[str, Any] = {"input": picture.name, "frame": picture.frame}
    line["time_s"] = None if picture.time_s is None else round(picture.time_s, 4)
    if picture.error is not None:
        line["error"] = picture.error
    if adapted is not None:
        line[ADAPTED] = adapted
    line["faces"] = [_face(face) for face in faces or ()]
    return line


def _face(face: Face) -> dict[str, Any]:
    track = {} if face.track is None else {"track": face.track}
    return {
        **track,
        "expression": face.expression,
        "confidence": round(face.confidence, 6),
        "probabilities": {n: round(float(p), 6) for n, p in zip(EXPRESSIONS, face.probabilities, strict=True)},
        "stage": face.stage,
        "heads": face.heads,
        "box": [round(float(edge), 2) for edge in face.box],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.landmarks],
        "score": round(face.score, 4),
        "how": face.how,
    }


def json_line(picture: Picture, faces: Sequence[Face] | None, adapted: str | None = None) -> bytes:
    """Return the line of JSON for an image or frame, in ASCII; names that are not UTF-8 are escaped too.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    return json.dumps(document(picture, faces, adapted), allow_nan=False).encode() + b"\n"


def table_rows(picture: Picture, faces: Sequence[Face] | None, adapted: str | None = None) -> bytes:
    """Return the CSV rows of an image or frame (`columns`): one per face, or one row without a face if there is none.

    Text is made `harmless`: a name that contains control characters or begins like a formula is changed here. The line
    of JSON has it unchanged.
    """
    line = document(picture, faces, adapted)
    about = {name: line.get(name) for name in ("input", "frame", "time_s", "error", ADAPTED)}
    rows = []
    for number, face in enumerate(line["faces"]):
        row = {**about, **face, "face": number, **dict(zip(COLUMNS[10:14], face["box"], strict=True))}
        row.update(zip(COLUMNS[14:24], (v for point in face["landmarks"] for v in point), strict=True))
        row.update({f"p_{name}": p for name, p in face["probabilities"].items()})
        row.update({f"head_{name}": said for name, said in face["heads"].items()})
        rows.append(row)
    named = columns(adapted)
    return csv_bytes([["" if row.get(name) is None else row[name] for name in named] for row in rows or [about]])


def columns(adapted: str | None = None) -> tuple[str, ...]:
    """Return the columns of the CSV."""
    return COLUMNS if adapted is None else (*COLUMNS, ADAPTED)


#: Makes an output file's lines for an image.
Lines = Callable[[Picture, Sequence[Face] | None], bytes]
#: The formats of an output file.
FORMS: tuple[str, ...] = ("jsonl", "csv")


def form(name: str, adapted: str | None = None) -> tuple[bytes, Lines]:
    """Return the first bytes of a file in one of `FORMS`, and the function that makes its lines."""
    if name == "jsonl":
        return b"", partial(json_line, adapted=adapted)
    return csv_bytes([columns(adapted)]), partial(table_rows, adapted=adapted)


class Annotated:
    """Copies of images and videos with the predictions drawn on them: frames keep their times, huge images shrink.

    Args:
        to: a folder, in which the inputs keep their relative names and which no copy leaves; or, for a single input, a
            file.
        inputs: all inputs.
        start: number of the first input whose copy is written.

    Attributes:
        paths: the copy of each input.

    Raises:
        SpecError: a file is given for several inputs, or a file of a kind that is not written.
        FercliError: a copy would be outside the folder.
    """

    def __init__(self, to: Path, inputs: Sequence[Input], start: int = 0):
        self._video: VideoWriter | None = None
        self._failed = -1
        self.paths = _copies(to, inputs)
        if self.paths != [to]:
            _keep_inside(to, self.paths[start:])

    def add(self, picture: Picture, faces: Sequence[Face] | None) -> str | None:
        """Write an image's copy, or the next frame of a video's copy; an unreadable input has none.

        Returns:
            Why the input has no copy, reported once; else None.

        Raises:
            FercliError: nothing can be written there: the disk is full or the folder is not writable.
        """
        if faces is None or self._failed == picture.number:
            return None
        return self._tried(picture.number, lambda path: self._write(path, picture, faces))

    def finish(self, number: int) -> str | None:
        """Move the video that is being written into place; return why it has no copy, else None."""
        video, self._video = self._video, None
        return None if video is None else self._tried(number, lambda path: video.close())

    def close(self, failure: BaseException) -> None:
        """Delete the video that a failure interrupted."""
        video, self._video = self._video, None
        if video is not None:
            video.close(failure)

    def _write(self, path: Path, picture: Picture, faces: Sequence[Face]) -> None:
        try:
            drawn = _drawn(decode(picture.source, picture.name), faces)
        except Unreadable:  # deleted in the meantime
            return
        if self._video is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if picture.time_s is None or picture.duration_s is None:
            _write_picture(path, drawn)
            return
        if self._video is None:
            self._video = VideoWriter(path, drawn.shape[1::-1])
        self._video.add(drawn, picture.time_s, picture.duration_s)

    def _tried(self, number: int, work: Callable[[Path], None]) -> str | None:
        """Do this work on an input's copy; if it fails, return why the input has no copy."""
        path = self.paths[number]
        try:
            work(path)
        except Exception as failure:
            if isinstance(failure, OSError) and may_pass(failure):
                raise cannot_write(path, failure) from None
            said = failure.strerror if isinstance(failure, OSError) and failure.strerror else None
            why = reason(failure, path) if said is None else said
            self._failed = number
            self.close(failure)
            return f"no annotated copy {path}: {why}"
        return None


def _drawn(picture: Decoded, faces: Sequence[Face]) -> np.ndarray:
    if picture.scale > 1:
        part = 1 / picture.scale
        faces = [
            replace(face, box=scale_box(face.box, part), landmarks=scale_points(face.landmarks, part)) for face in faces
        ]
    return draw(picture.pixels, faces)


def _is_folder(path: Path) -> bool:
    with writing(path):  # it may have too long a name
        return path.is_dir()


def _keep_inside(folder: Path, copies: Sequence[Path]) -> None:
    """Raise FercliError if a link in the folder leads a copy outside it."""
    real = real_path(folder)
    for path in copies:
        if not real_path(path).is_relative_to(real):
            raise FercliError(f"--annotate {folder}: a link in it leads {path} outside", "name another folder")


def _copies(to: Path, inputs: Sequence[Input]) -> list[Path]:
    """Return the path of each input's annotated copy, all different."""
    kinds = WRITTEN_ENDINGS if inputs[0].kind == "picture" else {".mp4"}
    if to.suffix.lower() in WRITTEN_ENDINGS | {".mp4"} and not _is_folder(to):
        if len(inputs) > 1:
            raise SpecError(f"--annotate {to} is one file, but there are {len(inputs)} inputs", "name a folder")
        if to.suffix.lower() not in kinds:
            what = "an image" if inputs[0].kind == "picture" else "a video"
            raise SpecError(f"--annotate {to}: a copy of {what} must end in {' or '.join(sorted(kinds))}")
        return [to]
    if (is_picture_name(to.name) or is_video_name(to.name)) and not _is_folder(to):
        raise SpecError(f"--annotate {to}: copies can only be written as {', '.join(sorted(WRITTEN_ENDINGS))} or .mp4")
    paths: dict[Path, None] = {}
    counts: dict[Path, int] = {}
    for one in inputs:
        # Without parts that would lead outside the folder: "..", a root or a drive.
        below = Path(*[part for part in one.below.parts if part not in ("..", one.below.anchor)] or ["input"])
        if one.kind != "picture":
            below = below.with_suffix(".mp4")
        elif below.suffix.lower() not in WRITTEN_ENDINGS:  # images of other formats become JPEGs
            below = below.with_name(below.name + ".jpg")
        path, again = to / below, counts.get(below, 1)
        while path in paths:
            again += 1
            path = to / below.with_name(f"{below.stem}-{again}{below.suffix}")
        paths[path], counts[below] = None, again
    return list(paths)


def _write_picture(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV cannot write a {path.suffix} of {image.shape[1]} x {image.shape[0]} pixels")
    with replacing(path, part_of(path)) as file:
        file.write(data)
