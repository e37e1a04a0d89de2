"""Videos written frame by frame, through FFmpeg's libraries (PyAV)."""

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

#: The clock of the file, in seconds: MPEG-4 counts at most 65535 a second, and the usual rates divide this one.
_TICK = Fraction(1, 60000)
#: MPEG-4 part 2: an encoder that every FFmpeg has, takes any size, and is twice as fast as H.264's at like quality.
_CODEC, _MOST_PIXELS = "mpeg4", 8191
#: The same quantiser throughout, 2 (best) to 31: labels stay legible.
_QUALITY = {"flags": "+qscale", "qmin": "3", "qmax": "3"}


class VideoWriter:
    """Writes an MP4 (MPEG-4 part 2, without sound), which takes its place when it is closed.

    Args:
        path: the file.
        size: (width, height) in pixels of all frames; a frame of another size is fitted.

    Raises:
        OSError: the file cannot be written, as do the methods.
        ValueError: frames of this size cannot be encoded.
        av.FFmpegError: this video cannot be encoded, as do the methods.
    """

    def __init__(self, path: Path, size: tuple[int, int]):
        self._path, self._size, self._stack, self._ticks = path, size, ExitStack(), -1
        self._duration = 1
        self._av = load_av()
        if max(size) > _MOST_PIXELS:
            raise ValueError(f"MPEG-4 takes up to {_MOST_PIXELS} pixels a side, not {max(size)}")
        try:
            self._file = NamelessFile(self._stack.enter_context(replacing(path, part_of(path))))
            # Once the container is closed, and before the file takes its place.
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
            time_s: when it is shown, in seconds from the beginning; later than the frame before.
            duration_s: how long it is shown. Matters for the last frame; the others are shown until the next.
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
        """Put the video in its place, or with a failure leave no trace of it."""
        if failure is None:
            with self._stack:
                self._mux(None)
            return
        with suppress(Exception):  # it has failed already
            self._stack.__exit__(type(failure), failure, None)

    def _mux(self, frame: VideoFrame | None) -> None:
        """Encode a frame and write it; None writes what the encoder holds back."""
        for packet in self._stream.encode(frame):
            packet.duration = self._duration
            self._container.mux(packet)
        self._file.check()
