"""Videos and cameras, frame by frame, through OpenCV; and videos written frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# FFmpeg's own remarks name no file and cannot be acted on; what matters is told by `Video`. Read when cv2 first opens
# a video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2
import numpy as np

from fercli.errors import FercliError
from fercli.faces.quiet import mute_stderr
from fercli.files import disk_error, replacing

#: Frames a second of a video that does not say.
USUAL_RATE = 25.0
#: Containers that count their frames; others reckon them from the duration, and may be a few off.
_COUNTED = (".mp4", ".m4v", ".mov", ".avi")


class Video:
    """An open video or camera; a context manager that closes it.

    Attributes:
        rate: frames a second.
        expected: frames that the file says it has; 0 where that is not known.
        read: frames read so far, those passed over too.
        missing: once it is read: why it seems not to be whole, else None.
    """

    def __init__(self, capture: cv2.VideoCapture, exact: bool):
        self._capture, self._exact = capture, exact
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = float(rate) if 0 < rate < 1000 else USUAL_RATE
        self.expected = int(count) if 0 < count < 1e9 else 0
        self.read = 0
        self.missing: str | None = None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def frames(self, every: int = 1) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield (number, seconds, uint8 [H, W, 3] RGB) of every `every`-th frame, from the first, turned upright.

        Seconds are those that the file gives the frame, or number / rate where it gives none.
        """
        while self._capture.grab():
            number, self.read = self.read, self.read + 1
            if number % every:
                continue
            whole, image = self._capture.retrieve()
            if not whole or image is None:
                break
            at = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Where the position is that of the frame to come or unknown, it is not later than the last one's.
            time_s = at if number and 0 < at < 1e7 else number / self.rate
            image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            yield number, time_s, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if not self.read:
            self.missing = "a video without a frame"
            return
        few = self.expected - self.read
        if few > (0 if self._exact else max(2, self.expected // 50)):
            self.missing = f"ends after {self.read} of {self.expected} frames: damaged or cut off"


def open_video(path: Path) -> Video:
    """Open a video file.

    Raises:
        FercliError: it cannot be opened; "PATH: why".
    """
    try:
        if not path.is_file():
            raise FercliError(f"{path}: no such file")
        if not path.stat().st_size:
            raise FercliError(f"{path}: empty file")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as failure:
        raise FercliError(f"{path}: cannot be read: {getattr(failure, 'strerror', failure)}") from None
    with mute_stderr():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise FercliError(
            f"{path}: cannot be opened as a video: damaged, cut off, or of a kind that this OpenCV cannot decode"
        )
    return Video(capture, path.suffix.lower() in _COUNTED)


def open_camera(index: int) -> Video:
    """Open a camera by its number.

    Raises:
        FercliError: there is none, or it gives no picture.
    """
    with mute_stderr():
        capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        raise FercliError(f"no camera {index} here, or another program has it; the first one is camera:0")
    return Video(capture, exact=False)


class VideoWriter:
    """Writes an MP4 (MPEG-4 part 2, without sound), which takes its place when it is closed.

    Args:
        path: the file; ends in .mp4.
        size: (width, height) in pixels of all frames; a frame of another size is fitted.
        rate: frames a second.

    Raises:
        FercliError: the file cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float):
        self._path, self._size, self._stack = path, size, ExitStack()
        # OpenCV goes by the name's ending.
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
        try:
            self._stack.enter_context(replacing(path, temporary))
        except OSError as failure:
            raise cannot_write(path, failure) from None
        with mute_stderr():
            self._writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            failure = FercliError(f"cannot write {path}: this OpenCV has no encoder for MPEG-4 video")
            self.close(failure)
            raise failure

    def add(self, image: np.ndarray) -> None:
        """Write a frame, uint8 [H, W, 3] RGB."""
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self, failure: BaseException | None = None) -> None:
        """Put the video in its place, or with a failure leave no trace of it."""
        if hasattr(self, "_writer"):
            self._writer.release()
        try:
            self._stack.__exit__(type(failure) if failure else None, failure, None)
        except OSError as problem:
            raise cannot_write(self._path, problem) from None


def cannot_write(path: Path, failure: OSError) -> Exception:
    """The one line of a file that cannot be written."""
    known = disk_error(failure, path)
    return known if isinstance(known, FercliError) else FercliError(f"cannot write {path}: {failure.strerror}")
