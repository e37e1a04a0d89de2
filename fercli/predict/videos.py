"""Video files frame by frame, through FFmpeg's libraries (PyAV), as a player shows them: upright, each at its time."""

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

#: Frames a second of a video that does not say.
USUAL_RATE = 25.0
#: Containers that hold their video themselves. FFmpeg also reads playlists, which make it open other files and the
#: network; no protocol is allowed either.
_CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,rm,nut,dv,wtv,gxf,ivf,swf,gif,apng,yuv4mpegpipe,"
    "mpegvideo,m4v,h264,hevc,vvc,av1,obu,vc1,h263,h261,dirac,mjpeg"
)
#: Containers whose header states a duration; for others FFmpeg estimates it from the size of the file.
_TIMED = ("mov", "matroska")
#: Pixels wider or higher than so many times their other side are an error of the file, and taken for square.
_MOST_STRETCHED = 4
_EMPTY, _CORRUPT = "a video without a frame", "corrupt data"


class Frame(NamedTuple):
    """A frame of a video or a camera.

    Attributes:
        number: its place among all frames, from 0.
        time_s: when it is shown, in seconds from the beginning of the video; later than the frame before.
        image: uint8 [H, W, 3] RGB, upright, its pixels square.
        duration_s: seconds until the next frame that is taken, or until the end of the video. A camera's next frame is
            not known: 1 / rate.
    """

    number: int
    time_s: float
    image: np.ndarray
    duration_s: float


class Video:
    """An open video file, as `open_video` gives it.

    Attributes:
        rate: frames a second, on average.
        expected: frames that the file says it has, an estimate; 0 where it does not say.
        problem: once it is read: what of it could not be read, else None.
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
        """Yield every `every`-th frame, from the first. Damaged ones are left out and told by `problem`."""
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
            # A frame waits for the next one, which tells how long it is shown.
            if held is not None:
                yield Frame(*held, time_s - held[1])
            held = number, time_s, image
        if held is not None:
            yield Frame(*held, clock.end_s - held[1])
        self.problem = self._told(tally)

    def _decoded(self, tally: _Tally) -> Iterator[VideoFrame]:
        """Yield what the decoder makes of the file, to its end or to where no more of it can be read."""
        import av

        started, packets, reached_s = False, 0, 0.0
        try:
            # Packets of other streams count too: the file is as long as its longest stream.
            for packet in self._container.demux():
                reached_s = max(reached_s, _seconds(packet) + float((packet.duration or 0) * packet.time_base))
                if packet.stream.index != self._stream.index:
                    continue
                # A recording may start in between: nothing can be decoded before its first key frame.
                started = started or packet.is_keyframe
                if packet.size:  # the last one is empty: it makes the decoder give what it holds back
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
            # A header's duration is right to a frame or two; its count is more than an edit list shows. If both say
            # that there should be more, there should.
            complete = 0 < self._stream.frames <= packets
            short = end_s - reached_s > max(0.5, 2 / self.rate) and not complete
            # PyAV says nothing of frames that are lost while the decoder is emptied.
            unseen = tally.sent_s - max(tally.kept_s, tally.lost_s) > 0.75 / self.rate
            tally.cut_off = tally.cut_off or short or unseen

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """Return a frame as uint8 [H, W, 3] RGB, upright, its pixels square."""
        from av.error import OSError as Unsupported

        width, height = _square(frame.width, frame.height, self._aspect)
        # One thread: the decoder's threads and the processes that find faces have the other cores.
        wanted = {"width": width, "height": height, "format": "rgb24", "threads": 1}
        try:
            image = frame.reformat(**wanted).to_ndarray()
        except Unsupported:
            # Marked with a colour space that FFmpeg cannot convert: taken for unmarked.
            image = frame.reformat(**wanted, src_colorspace="ITU601", dst_colorspace="ITU601").to_ndarray()
        if self._matrix is None:
            # Of the first frame alone: PyAV keeps a frame that was asked until the garbage is collected.
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self._matrix = np.eye(3).ravel() if matrix is None else np.frombuffer(matrix, np.int32).astype(float)
        return np.ascontiguousarray(_upright(image, self._matrix))

    def _told(self, tally: _Tally) -> str | None:
        """Return what of the video could not be read."""
        if not tally.kept:
            if tally.undecodable:
                return _no_decoder(self._stream.codec_context.codec.long_name, self._path)
            why = tally.reason or tally.stopped
            return f"no frame of it can be decoded: {why}" if why else _EMPTY
        if tally.cut_off or tally.lost_s > tally.kept_s:
            of = f" of about {self._stream.frames}" if self._stream.frames > tally.kept else ""
            return f"ends after {tally.kept}{of} frames: {tally.stopped or 'damaged or cut off'}"
        if tally.lost:
            return f"damaged; frames that cannot be decoded and are left out: {tally.lost} ({tally.reason})"
        return None


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file for the block.

    Raises:
        FercliError: it cannot be opened, or holds no video that can be decoded; "PATH: why".
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
    """Import PyAV, which only videos need.

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
    """A file for PyAV, without a name: FFmpeg would look for protocols and patterns in it.

    Attributes:
        failure: of the disk, the first one; for FFmpeg the file ends there. PyAV would print each further one.
    """

    def __init__(self, file: BinaryIO):
        self._file, self.tell = file, file.tell
        self.failure: OSError | None = None

    def read(self, size: int) -> bytes:
        """Read; no bytes where that fails."""
        return self._tried(b"", self._file.read, size)

    def write(self, data: bytes) -> int:
        """Write; as many bytes as given, even where that fails."""
        return self._tried(len(data), self._file.write, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file; -1 where that fails."""
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
    # A title or comment need not be UTF-8. PyAV reads it in any case from version 19 on, which has no such option.
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

    # A sound file may bring the image of its cover.
    still = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        only = "sound" if container.streams.audio else "data of other kinds"
        raise FercliError(f"{path}: " + (f"no video in it, only {only}" if container.streams else _EMPTY))
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise FercliError(f"{path}: {_no_decoder(_codec(container, stream), path)}")
    return stream


def _no_decoder(codec: str, path: Path) -> str:
    # With a folder no name is an option or a protocol.
    old, new = (shlex.quote(os.path.join(path.parent, name)) for name in (path.name, f"{path.stem}-h264.mp4"))
    return f"its codec cannot be decoded here ({codec}); convert the video, for instance with: ffmpeg -i {old} {new}"


def _codec(container: InputContainer, stream: VideoStream) -> str:
    """Return the name of a codec without a decoder, and its FourCC: PyAV has them only in FFmpeg's own description."""
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
    """What became of a video's frames.

    Attributes:
        kept, kept_s: frames that are whole, and when the last one is shown by the file's clock.
        lost, lost_s: those that are not, likewise; `reason` is the first one's.
        sent_s: when the last frame is shown that the decoder was given.
        undecodable: whether the decoder said that it cannot decode videos of this kind.
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
        """Count a whole frame."""
        self.kept, self.kept_s = self.kept + 1, _seconds(frame)

    def lose(self, reason: str, what: VideoFrame | Packet) -> None:
        """Count a frame that could not be decoded, or the packet that held it."""
        self.lost, self.lost_s, self.reason = self.lost + 1, _seconds(what), self.reason or reason


class _Clock:
    """Gives frames their seconds from the beginning of the video.

    Args:
        start_s: where the file's clock starts, that of its earliest stream.
        step_s: how long a frame is shown that does not say.

    Attributes:
        end_s: when the last frame ends.
    """

    def __init__(self, start_s: float, step_s: float):
        # Sound that starts before zero is not played.
        self._start_s, self._step_s = max(0.0, start_s), step_s
        self._last_s, self.end_s = -1.0, 0.0

    def time_of(self, frame: VideoFrame) -> float:
        """The time of the next frame; later than that of the frame before."""
        if self._last_s < 0:
            self._start_s = min(self._start_s, frame.time or 0.0)
        at = self.end_s if frame.time is None else frame.time - self._start_s
        if at < self._last_s - 1:
            # The clock was set back, as where recordings are joined: go on from here.
            self._start_s, at = self._start_s + at - self.end_s, self.end_s
        elif at <= self._last_s:
            at = self._last_s + 0.001
        step_s = float((frame.duration or 0) * frame.time_base)
        self._last_s, self.end_s = at, at + (step_s if step_s > 0 else self._step_s)
        return at


def _seconds(what: VideoFrame | Packet) -> float:
    """When a frame or packet is shown, by the file's clock; 0 where it has no time."""
    at = what.dts if what.pts is None else what.pts
    return 0.0 if at is None else float(at * what.time_base)


def _square(width: int, height: int, aspect: float) -> tuple[int, int]:
    """Return the (width, height) of an image with square pixels whose pixels were `aspect` times as wide as high."""
    if not 1 / _MOST_STRETCHED <= aspect <= _MOST_STRETCHED:
        return width, height
    return round(width * max(1.0, aspect)), round(height * max(1.0, 1 / aspect))


def _upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror an image as a display matrix [9] says, to the nearest right angle.

    The matrix takes x (right) and y (down) to (a x + c y, b x + d y), where a, b, c, d are its elements 0, 1, 3, 4.
    """
    a, b, c, d = matrix[[0, 1, 3, 4]]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = cv2.transpose(image), c, b
    return image if a >= 0 <= d else cv2.flip(image, -1 if a < 0 and d < 0 else 1 if a < 0 else 0)


def _reason(failure: BaseException) -> str:
    return str(getattr(failure, "strerror", None) or failure)
