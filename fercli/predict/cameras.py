"""Cameras, frame by frame, through OpenCV."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

# FFmpeg's own log lines name no device and do not help. cv2 reads this when it first opens a camera.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

from fercli.errors import FercliError
from fercli.faces.quiet import mute_stderr
from fercli.predict.videos import USUAL_RATE, Frame


class Camera:
    """An open camera, as `open_camera` gives it.

    Attributes:
        problem: always None, since a camera's stream has no end.
    """

    problem: str | None = None

    def __init__(self, capture: cv2.VideoCapture):
        self._capture = capture
        rate = capture.get(cv2.CAP_PROP_FPS)
        self._rate = rate if 0 < rate < 1000 else USUAL_RATE

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every `every`-th frame, starting with the first, with the time at which it was taken."""
        number, started = 0, time.monotonic()
        while self._capture.grab():
            time_s = time.monotonic() - started if number else 0.0
            if number % every == 0:
                done, image = self._capture.retrieve()
                if not done or image is None:
                    break
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
                yield Frame(number, time_s, image, 1 / self._rate)
            number += 1


@contextmanager
def open_camera(index: int) -> Iterator[Camera]:
    """Open a camera by its number, for the duration of the block.

    Raises:
        FercliError: there is no such camera, or another program is using it.
    """
    with mute_stderr():
        capture = cv2.VideoCapture(index)
    if not capture.isOpened():
        raise FercliError(f"no camera {index}, or another program is using it; the first one is camera:0")
    try:
        yield Camera(capture)
    finally:
        capture.release()
