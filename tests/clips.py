"""Write test videos with any codec, container, timing and display matrix."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_ONE, _W = 1 << 16, 1 << 30
#: Display matrices as in a track header, and the effect of each on an image.
MATRICES = {
    "90": ((0, _ONE, 0, -_ONE, 0, 0, 0, 0, _W), lambda image: np.rot90(image, -1)),
    "180": ((-_ONE, 0, 0, 0, -_ONE, 0, 0, 0, _W), lambda image: np.rot90(image, 2)),
    "270": ((0, -_ONE, 0, _ONE, 0, 0, 0, 0, _W), lambda image: np.rot90(image)),
    "mirrored": ((-_ONE, 0, 0, 0, _ONE, 0, 0, 0, _W), lambda image: image[:, ::-1]),
    "upside down": ((_ONE, 0, 0, 0, -_ONE, 0, 0, 0, _W), lambda image: image[::-1]),
    "transposed": ((0, _ONE, 0, _ONE, 0, 0, 0, 0, _W), lambda image: image.swapaxes(0, 1)),
    "transverse": ((0, -_ONE, 0, -_ONE, 0, 0, 0, 0, _W), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    "upright": ((_ONE, 0, 0, 0, _ONE, 0, 0, 0, _W), lambda image: image),
    "none at all": ((0,) * 9, lambda image: image),
}


def write_clip(
    path: Path,
    images: Sequence[np.ndarray],
    times_ms: Sequence[int] | None = None,
    codec: str = "mpeg4",
    sound_ms: int = 0,
    aspect: Fraction | None = None,
    form: str | None = None,
    **options: str,
) -> Path:
    """Write images, 100 ms each or at the given times, with `sound_ms` of silence as sound, from zero on."""
    with path.open("wb") as file, av.open(file, "w", format=form or _FORMATS[path.suffix]) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = images[0].shape[:2] if images else (48, 64)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if path.suffix == ".avi":  # this container counts frames and has no other timing
            stream.codec_context.time_base = Fraction(1, 10)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if sound_ms:
            write_sound(container, container.add_stream("aac", rate=48000), sound_ms)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = 100 * i if times_ms is None else times_ms[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if images:
            container.mux(stream.encode())
        else:
            container.start_encoding()
    return path


def write_sound(container: av.container.OutputContainer, stream: av.AudioStream, length_ms: int) -> None:
    """Write silence."""
    for start in range(0, 48 * length_ms, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turned(clip: Path, to: Path, matrix: Sequence[int]) -> Path:
    """Copy an MP4 with a display matrix in its track header."""
    data = bytearray(clip.read_bytes())
    start = data.find(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", *matrix)
    to.write_bytes(data)
    return to


def trimmed(clip: Path, to: Path, start_ms: int, length_ms: int) -> Path:
    """Copy an MP4 with unchanged images and an edit list that shows only a part of them."""
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        scale = 1 / container.streams.video[0].time_base
    at = data.find(b"elst") + 12
    (media,) = struct.unpack_from(">i", data, at + 4)
    struct.pack_into(">Ii", data, at, length_ms, media + int(start_ms * scale / 1000))
    to.write_bytes(data)
    return to


def index_first(clip: Path) -> Path:
    """Copy an MP4 with its index before the images, as for the web: a cut-off file then only lacks images."""
    to = clip.with_stem("first")
    with av.open(str(clip)) as source, av.open(str(to), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return to


def shown(clip: Path) -> tuple[list[int], int]:
    """Return when each image of a file is shown and when the last one ends, in milliseconds, according to the file."""
    with av.open(str(clip)) as container:
        found = [p for p in container.demux(video=0) if p.size]
    last = max(found, key=lambda packet: packet.pts)
    times = sorted(round(1000 * packet.pts * packet.time_base) for packet in found)
    return times, round(1000 * (last.pts + last.duration) * last.time_base)


def packets(clip: Path) -> list[tuple[int, int]]:
    """Return where each image's data is in a file, (first byte, bytes), in the order of decoding."""
    with av.open(str(clip)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


_FORMATS = {
    **{".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".ts": "mpegts"},
    **{".wmv": "asf", ".flv": "flv", ".mpg": "mpeg"},
}
