"""Video files, frame by frame, through FFmpeg's libraries (PyAV): upright and timed as a player shows them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import cv2
import numpy as np

from fercli.errors import Advice, FercliError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

T = TypeVar("T")

#: Frames per second assumed for a video that does not state its rate.
USUAL_RATE = 25.0
#: Containers that hold their own video. FFmpeg also reads playlists, which would make it open other files and network
#: addresses; no protocol is allowed either.
_CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,rm,nut,dv,wtv,gxf,ivf,swf,gif,apng,yuv4mpegpipe,"
    "mpegvideo,m4v,h264,hevc,vvc,av1,obu,vc1,h263,h261,dirac,mjpeg"
)
#: Containers whose header states a duration; for others FFmpeg estimates it from the file size.
_TIMED = ("mov", "matroska")
#: Largest aspect ratio of a pixel, either way. A larger one is an error in the file, and pixels are assumed square.
_MOST_STRETCHED = 4
_EMPTY, _CORRUPT = "a video without frames", "corrupt data"


class Frame(NamedTuple):
    """A frame of a video or a camera.

    Attributes:
        number: its index among all frames, from 0.
        time_s: when it is shown, in seconds from the beginning of the video; later than the previous frame.
        image: uint8 [H, W, 3] RGB, upright, with square pixels.
        duration_s: seconds until the next frame that is used, or until the end of the video. A camera's next frame is
            not known yet: 1 / rate.
    """

    number: int
    time_s: float
    image: np.ndarray
    duration_s: float


class Video:
    """An open video file, as `open_video` yields it.

    Attributes:
        rate: average frames per second.
        expected: the number of frames that the file states, an estimate; 0 if it states none.
        problem: after reading: what could not be read, or None.
    """

    def __init__(self, path: Path, file: NamelessFile, container: InputContainer):
        self._path, self._file, self._container = path, file, container
        self._stream = stream = _find_stream(container, path)
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        expected = stream.frames or int(self.rate * (container.duration or 0) / 1e6)
        self.expected = expected if 0 < expected < 1e9 else 0
        self.problem: str | None = None
        self._aspect = float(stream.sample_aspect_ratio or 1)
        self._matrix: np.ndarray | None = None

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every `every`-th frame, from the first on. Damaged frames are skipped and reported in `problem`."""
        import av

        clock, tally = _Clock((self._container.start_time or 0) / 1e6, 1 / self.rate), _Tally()
        held: tuple[int, float, np.ndarray] | None = None
        for number, frame in enumerate(self._decoded(tally)):
            time_s = clock.time_of(frame)
            if frame.is_corrupt:
                tally.lose(_CORRUPT, frame)
                continue
            if number % every:
                tally.keep(frame)
                continue
            try:
                image = self._picture(frame)
            except av.FFmpegError as failure:
                tally.lose(_reason(failure), frame)
                continue
            tally.keep(frame)
            # A frame waits for the next one, which determines how long it is shown.
            if held is not None:
                yield Frame(*held, time_s - held[1])
            held = number, time_s, image
        if held is not None:
            yield Frame(*held, clock.end_s - held[1])
        self.problem = self._told(tally)

    def _decoded(self, tally: _Tally) -> Iterator[VideoFrame]:
        """Yield the decoder's frames, to the end of the file or to where it can no longer be read."""
        import av

        started, packets, reached_s = False, 0, 0.0
        try:
            # Packets of other streams count too: the file is as long as its longest stream.
            for packet in self._container.demux():
                reached_s = max(reached_s, _seconds(packet) + float((packet.duration or 0) * packet.time_base))
                if packet.stream.index != self._stream.index:
                    continue
                # A recording may start between key frames: nothing can be decoded before the first one.
                started = started or packet.is_keyframe
                if packet.size:  # the last one is empty: it flushes the decoder
                    packets += 1
                    tally.cut_off = packet.is_corrupt
                if packet.is_corrupt:
                    tally.lose(_CORRUPT, packet)
                    continue
                if packet.size and not packet.is_discard:
                    tally.sent_s = max(tally.sent_s, _seconds(packet))
                try:
                    frames = packet.decode()
                except av.FFmpegError as failure:
                    tally.undecodable = tally.undecodable or isinstance(failure, NotImplementedError)
                    if started:
                        tally.lose(_reason(failure), packet)
                    continue
                yield from frames
        except av.FFmpegError as failure:
            tally.cut_off, tally.stopped = True, _reason(failure)
        if self._file.failure is not None:
            tally.cut_off, tally.stopped = True, _reason(self._file.failure)
        if self._container.format.name.split(",")[0] in _TIMED:
            end_s = ((self._container.start_time or 0) + (self._container.duration or 0)) / 1e6
            # A header's duration is right to a frame or two, and its count can exceed what an edit list shows. Frames
            # are missing only if both say so.
            complete = 0 < self._stream.frames <= packets
            short = end_s - reached_s > max(0.5, 2 / self.rate) and not complete
            # PyAV does not report frames that are lost while the decoder is flushed.
            unseen = tally.sent_s - max(tally.kept_s, tally.lost_s) > 0.75 / self.rate
            tally.cut_off = tally.cut_off or short or unseen

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """Return a frame as uint8 [H, W, 3] RGB, upright, with square pixels."""
        from av.error import OSError as Unsupported

        width, height = _square(frame.width, frame.height, self._aspect)
        # One thread: the decoder's threads and the processes that find faces use the other cores.
        wanted = {"width": width, "height": height, "format": "rgb24", "threads": 1}
        try:
            image = frame.reformat(**wanted).to_ndarray()
        except Unsupported:
            # Marked with a colour space that FFmpeg cannot convert: treated as unmarked.
            image = frame.reformat(**wanted, src_colorspace="ITU601", dst_colorspace="ITU601").to_ndarray()
        if self._matrix is None:
            # Read from the first frame only: PyAV keeps a frame whose side data was read until garbage collection.
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self._matrix = np.eye(3).ravel() if matrix is None else np.frombuffer(matrix, np.int32).astype(float)
        return np.ascontiguousarray(_upright(image, self._matrix))

    def _told(self, tally: _Tally) -> str | None:
        """Return which part of the video could not be read."""
        if not tally.kept:
            if tally.undecodable:
                return _no_decoder(self._stream.codec_context.codec.long_name, self._path)
            why = tally.reason or tally.stopped
            return f"no frame can be decoded: {why}" if why else _EMPTY
        if tally.cut_off or tally.lost_s > tally.kept_s:
            of = f" of about {self._stream.frames}" if self._stream.frames > tally.kept else ""
            return f"ends after {tally.kept}{of} frames: {tally.stopped or 'damaged or cut off'}"
        if tally.lost:
            return f"damaged; skipped frames that cannot be decoded: {tally.lost} ({tally.reason})"
        return None


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file for the duration of the block.

    Raises:
        FercliError: it cannot be opened, or holds no video that can be decoded; "PATH: reason".
    """
    try:
        if not path.is_file():
            raise FercliError(f"{path}: no such file")
        if not path.stat().st_size:
            raise FercliError(f"{path}: empty file")
        file = path.open("rb", buffering=0)
    except (OSError, ValueError) as failure:
        raise FercliError(f"{path}: cannot be read: {_reason(failure)}") from None
    nameless = NamelessFile(file)
    with file, _open_container(nameless, path) as container:
        yield Video(path, nameless, container)


def load_av() -> ModuleType:
    """Import PyAV, which is needed only for videos.

    Raises:
        FercliError: it cannot be loaded.
    """
    try:
        import av
    except (ImportError, OSError) as failure:
        raise FercliError(
            f"PyAV, which reads and writes videos, cannot be loaded ({_reason(failure)})", Advice.run("doctor")
        ) from None
    return av


class NamelessFile:
    """A file without a name, for PyAV: FFmpeg would look for protocols and patterns in a name.

    Attributes:
        failure: the first error of the disk; for FFmpeg the file ends there. PyAV would print each further error.
    """

    def __init__(self, file: BinaryIO):
        self._file, self.tell = file, file.tell
        self.failure: OSError | None = None

    def read(self, size: int) -> bytes:
        """Read; return no bytes if that fails."""
        return self._tried(b"", self._file.read, size)

    def write(self, data: bytes) -> int:
        """Write; return the number of bytes given, even if that fails."""
        return self._tried(len(data), self._file.write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek to a position in the file; return -1 if that fails."""
        return self._tried(-1, self._file.seek, offset, whence)

    def check(self) -> None:
        """Raise `failure` if there is one."""
        if self.failure is not None:
            raise self.failure

    def _tried(self, otherwise: T, do: Callable[..., T], *arguments: Any) -> T:
        try:
            return do(*arguments)
        except OSError as failure:
            self.failure = self.failure or failure
            return otherwise


def _open_container(file: NamelessFile, path: Path) -> InputContainer:
    av = load_av()
    # A title or comment may not be UTF-8. PyAV 19 and later reads it anyway and has no such option.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    only = {"format_whitelist": _CONTAINERS, "protocol_whitelist": ""}
    try:
        return av.open(file, container_options=only, buffer_size=1 << 18, **lenient)
    except av.FFmpegError:
        if file.failure is not None:
            raise FercliError(f"{path}: cannot be read: {_reason(file.failure)}") from None
        raise FercliError(
            f"{path}: cannot be opened as a video: damaged, cut off, or not a video file that FFmpeg knows"
        ) from None


def _find_stream(container: InputContainer, path: Path) -> VideoStream:
    from av.stream import Disposition

    # A sound file may contain a cover image.
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        only = "sound" if container.streams.audio else "other kinds of data"
        raise FercliError(f"{path}: " + (f"contains no video, only {only}" if container.streams else _EMPTY))
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise FercliError(f"{path}: {_no_decoder(_codec(container, stream), path)}")
    return stream


def _no_decoder(codec: str, path: Path) -> str:
    # With its folder, a name cannot be taken for an option or a protocol.
    old, new = (shlex.quote(os.path.join(path.parent, name)) for name in (path.name, f"{path.stem}-h264.mp4"))
    return f"no decoder for its codec ({codec}); convert the video, for instance with: ffmpeg -i {old} {new}"


def _codec(container: InputContainer, stream: VideoStream) -> str:
    """Return the name and FourCC of a codec without a decoder, which PyAV has only in FFmpeg's own description."""
    from av import logging

    before = logging.get_level()
    logging.set_level(logging.INFO)
    try:
        text = container.dumps_format()
    finally:
        logging.set_level(before)
    found = re.search(rf"Stream #0:{stream.index}\b.*?: Video: (\w+)(?: \((\S+) / 0x\w+\))?", text)
    name, code = found.groups() if found else ("none", None)
    return " ".join(part for part in (name if name != "none" else "", f"'{code}'" if code else "") if part) or "unknown"


@dataclass
class _Tally:
    """Counts of a video's frames.

    Attributes:
        kept, kept_s: number of intact frames, and when the last one is shown by the file's clock.
        lost, lost_s: the same for damaged frames; `reason` is that of the first one.
        sent_s: when the last frame that was sent to the decoder is shown.
        undecodable: whether the decoder reported that it cannot decode this kind of video.
        cut_off: whether the file ends before its video does.
        stopped: why reading stopped before the end.
    """

    kept: int = 0
    kept_s: float = 0.0
    lost: int = 0
    lost_s: float = 0.0
    sent_s: float = 0.0
    reason: str = ""
    undecodable: bool = False
    cut_off: bool = False
    stopped: str = ""

    def keep(self, frame: VideoFrame) -> None:
        """Count an intact frame."""
        self.kept, self.kept_s = self.kept + 1, _seconds(frame)

    def lose(self, reason: str, what: VideoFrame | Packet) -> None:
        """Count a frame that could not be decoded, or the packet that held it."""
        self.lost, self.lost_s, self.reason = self.lost + 1, _seconds(what), self.reason or reason


class _Clock:
    """Gives frames their seconds from the beginning of the video.

    Args:
        start_s: where the file's clock starts, which is where its earliest stream starts.
        step_s: how long a frame without a duration is shown.

    Attributes:
        end_s: when the last frame ends.
    """

    def __init__(self, start_s: float, step_s: float):
        # Players skip sound that starts before zero.
        self._start_s, self._step_s = max(0.0, start_s), step_s
        self._last_s, self.end_s = -1.0, 0.0

    def time_of(self, frame: VideoFrame) -> float:
        """Return the time of the next frame; later than that of the previous one."""
        if self._last_s < 0:
            self._start_s = min(self._start_s, frame.time or 0.0)
        at = self.end_s if frame.time is None else frame.time - self._start_s
        if at < self._last_s - 1:
            # The clock was set back, as in joined recordings: continue from here.
            self._start_s, at = self._start_s + at - self.end_s, self.end_s
        elif at <= self._last_s:
            at = self._last_s + 0.001
        step_s = float((frame.duration or 0) * frame.time_base)
        self._last_s, self.end_s = at, at + (step_s if step_s > 0 else self._step_s)
        return at


def _seconds(what: VideoFrame | Packet) -> float:
    """Return when a frame or packet is shown by the file's clock; 0 if it has no time."""
    at = what.dts if what.pts is None else what.pts
    return 0.0 if at is None else float(at * what.time_base)


def _square(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Return the (width, height) in square pixels of an image whose pixels were `aspect` times as wide as high."""
    if not 1 / _MOST_STRETCHED <= aspect <= _MOST_STRETCHED:
        return width, height
    return round(width * max(1.0, aspect)), round(height * max(1.0, 1 / aspect))


def _upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rotate and mirror an image by a display matrix [9], to the nearest right angle.

    The matrix maps x (right) and y (down) to (a x + c y, b x + d y), where a, b, c, d are its elements 0, 1, 3, 4.
    """
    a, b, c, d = matrix[[0, 1, 3, 4]]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = cv2.transpose(image), c, b
    return image if a >= 0 <= d else cv2.flip(image, -1 if a < 0 and d < 0 else 1 if a < 0 else 0)


def _reason(failure: BaseException) -> str:
    return str(getattr(failure, "strerror", None) or failure)
