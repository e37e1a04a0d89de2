"""Writes videos, frame by frame, through FFmpeg's libraries (PyAV)."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from fercli.files import replacing
from fercli.predict.resume import part_of
from fercli.predict.videos import NamelessFile, load_av

if TYPE_CHECKING:
    from av import VideoFrame

#: Tick of the file's clock, in seconds: MPEG-4 allows at most 65535 per second, and the usual rates divide this one.
_TICK = Fraction(1, 60000)
#: MPEG-4 part 2: every FFmpeg has its encoder, which takes any size and is twice as fast as H.264's at equal quality.
_CODEC, _MOST_PIXELS = "mpeg4", 8191
#: A constant quantiser, 2 (best) to 31, so that labels stay legible.
_QUALITY = {"flags": "+qscale", "qmin": "3", "qmax": "3"}


class VideoWriter:
    """Writes an MP4 (MPEG-4 part 2, without sound), which is moved into place when it is closed.

    Args:
        path: the file.
        size: (width, height) in pixels of all frames; a frame of another size is resized.

    Raises:
        OSError: the file cannot be written; the methods raise it too.
        ValueError: frames of this size cannot be encoded.
        av.FFmpegError: this video cannot be encoded; the methods raise it too.
    """

    def __init__(self, path: Path, size: tuple[int, int]):
        self._path, self._size, self._stack, self._ticks = path, size, ExitStack(), -1
        self._duration = 1
        self._av = load_av()
        if max(size) > _MOST_PIXELS:
            raise ValueError(f"MPEG-4 allows up to {_MOST_PIXELS} pixels a side, not {max(size)}")
        try:
            self._file = NamelessFile(self._stack.enter_context(replacing(path, part_of(path))))
            # After the container is closed, and before the file is moved into place.
            self._stack.callback(self._file.check)
            container = self._av.open(self._file, "w", format="mp4", buffer_size=1 << 18)
            self._container = self._stack.enter_context(container)
            self._stream = self._container.add_stream(_CODEC, rate=25, options=_QUALITY)
            self._stream.width, self._stream.height = size
            self._stream.pix_fmt, self._stream.codec_context.time_base = "yuv420p", _TICK
            self._container.start_encoding()
        except BaseException as failure:
            self.close(failure)
            raise

    def add(self, image: np.ndarray, time_s: float, duration_s: float) -> None:
        """Write a frame.

        Args:
            image: uint8 [H, W, 3] RGB.
            time_s: when it is shown, in seconds from the beginning; later than the previous frame.
            duration_s: how long it is shown. It matters for the last frame only; the others are shown until the next.
        """
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        frame = self._av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", threads=1)
        self._ticks = max(self._ticks + 1, round(time_s / _TICK))
        frame.pts, frame.time_base = self._ticks, _TICK
        self._duration = max(1, round(duration_s / _TICK))
        self._mux(frame)

    def close(self, failure: BaseException | None = None) -> None:
        """Move the video into place, or after a failure delete it."""
        if failure is None:
            with self._stack:
                self._mux(None)
            return
        with suppress(Exception):  # it has failed already
            self._stack.__exit__(type(failure), failure, None)

    def _mux(self, frame: VideoFrame | None) -> None:
        """Encode a frame and write it; None flushes the encoder."""
        for packet in self._stream.encode(frame):
            packet.duration = self._duration
            self._container.mux(packet)
        self._file.check()
