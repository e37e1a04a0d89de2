"""Images in, predictions out: workers find and cut faces while the network predicts those of earlier images.

The output order is the input order. At most a few batches' worth of images is in memory at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fercli.faces.failures import reason
from fercli.faces.network_files import ensure_networks
from fercli.parallel import Workers
from fercli.predict.faces import CutFace, Source, look
from fercli.spec import Prepare

#: Most images sent to a worker at a time, and most bytes: each transfer costs about a millisecond.
CHUNK, CHUNK_BYTES = 8, 4 << 20


@dataclass
class Picture:
    """One image or frame in the pipeline.

    Attributes:
        name: the input it came from, as results name it.
        source: the image itself; None if there is none (`error` says why).
        number: number of its input among all inputs.
        frame: for a frame, its number in the video, from 0.
        time_s: for a frame, seconds from the beginning of the video.
        duration_s: for a frame, seconds that it is shown.
        error: why it cannot be read, or what else went wrong although it has predictions.
        settled: whether a batch ends with it: whatever comes after it is predicted in separate batches.
    """

    name: str
    source: Source | None = None
    number: int = 0
    frame: int | None = None
    time_s: float | None = None
    duration_s: float | None = None
    error: str | None = None
    settled: bool = False


@dataclass
class _Chunk:
    """Images for one worker.

    Attributes:
        size: total bytes of their sources.
        fresh: whether a video begins here, or ended just before.
    """

    pictures: list[Picture]
    size: int = 0
    fresh: bool = False


def recognise(
    pictures: Iterable[Picture],
    answer: Callable[[Sequence[CutFace]], list],
    options: Prepare,
    with_crops: bool,
    batch: int,
    workers: Workers,
    live: bool = False,
) -> Iterator[tuple[Picture, list | None]]:
    """Yield each image with the predictions for its faces, from left to right; None if it has an `error`.

    Args:
        pictures: read only as needed.
        answer: predicts cut faces: one prediction per face, in order.
        options: how faces are found and cut.
        with_crops: whether the network reads local crops.
        batch: number of faces predicted at a time.
        workers: the processes that find and cut faces.
        live: predict each image at once, as a camera needs.

    A batch ends where a video begins or ends. A run that resumes with the input after a `Picture.settled` therefore
    forms the same batches and gives bit-identical predictions.
    """
    if workers.count > 1:
        ensure_networks()
    ahead = 1 if live else max(2 * workers.count + 1, 2 * -(-batch // CHUNK))

    def arguments(chunk: _Chunk) -> tuple[list[Source], Prepare, bool]:
        return [picture.source for picture in chunk.pictures if picture.source is not None], options, with_crops

    seen = workers.in_order(look, _chunks(pictures, 1 if live else CHUNK), arguments, ahead)
    held: list[tuple[Picture, list[CutFace] | None]] = []
    faces = 0
    for chunk, results in seen:
        if chunk.fresh:
            yield from _answered(held, answer, batch)
            held, faces = [], 0
        left = iter(results)
        for picture in chunk.pictures:
            found = None if picture.source is None else next(left)
            if isinstance(found, str):
                picture.error, found = found, None
            held.append((picture, found))
            faces += len(found or ())
        # Images without a face must not pile up while a batch fills.
        if live or faces >= batch or len(held) >= 2 * batch:
            yield from _answered(held, answer, batch)
            held, faces = [], 0
    yield from _answered(held, answer, batch)


def _answered(
    held: list[tuple[Picture, list[CutFace] | None]], answer: Callable[[Sequence[CutFace]], list], batch: int
) -> Iterator[tuple[Picture, list | None]]:
    if not held:
        return
    cut = [(number, face) for number, (_, faces) in enumerate(held) for face in faces or ()]
    answers: list[list | None] = [None if faces is None else [] for _, faces in held]
    for start in range(0, len(cut), batch):
        part = cut[start : start + batch]
        try:
            said = answer([face for _, face in part])
        except Exception as failure:
            reason(failure, "the images")
            _apart(held, part, answers, answer)
        else:
            for (number, _), one in zip(part, said, strict=True):
                _add(answers, number, [one])
    held[-1][0].settled = True
    for (picture, _), own in zip(held, answers, strict=True):
        yield picture, own


def _apart(
    held: list[tuple[Picture, list[CutFace] | None]],
    part: list[tuple[int, CutFace]],
    answers: list[list | None],
    answer: Callable[[Sequence[CutFace]], list],
) -> None:
    """Repeat a failed batch image by image: a single image may have caused the failure.

    No face of another batch is repeated, because a model that adapts would count it twice.
    """
    for number, of_picture in groupby(part, key=lambda one: one[0]):
        picture = held[number][0]
        try:
            _add(answers, number, answer([face for _, face in of_picture]))
        except Exception as failure:
            picture.error, answers[number] = reason(failure, picture.name), None


def _add(answers: list[list | None], number: int, said: list) -> None:
    """Append predictions to those of an image, unless an earlier part of it failed."""
    before = answers[number]
    if before is not None:
        before += said


def _chunks(pictures: Iterable[Picture], most: int) -> Iterator[_Chunk]:
    chunk, number, of_video = _Chunk([]), None, False
    for picture in pictures:
        if picture.number != number:
            if chunk.pictures and (of_video or picture.frame is not None):
                yield chunk
                chunk = _Chunk([])
            chunk.fresh = chunk.fresh or of_video or picture.frame is not None
            number, of_video = picture.number, picture.frame is not None
        chunk.pictures.append(picture)
        chunk.size += _size(picture.source)
        if len(chunk.pictures) >= most or chunk.size >= CHUNK_BYTES:
            yield chunk
            chunk = _Chunk([])
    if chunk.pictures:
        yield chunk


def _size(source: Source | None) -> int:
    if isinstance(source, np.ndarray):
        return source.nbytes
    return len(source) if isinstance(source, bytes) else 0
