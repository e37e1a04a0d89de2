"""Video files: read as a player shows them, written with every frame's time, and reported if they cannot be read."""

from __future__ import annotations

import gc
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from clips import MATRICES, index_first, packets, shown, trimmed, turned, write_clip, write_sound

from fercli.errors import FercliError
from fercli.predict.video_writer import VideoWriter
from fercli.predict.videos import Frame, open_video

#: Times in milliseconds, as a phone records them in a dark room.
UNEVEN = [0, 40, 80, 500, 520, 1000, 3000, 3100, 7000, 7900]


def picture(i: int = 0, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Return an image with four different quarters, to detect turns.

    It gets brighter from frame to frame and has enough fine detail to need some bytes.
    """
    image = np.random.default_rng(i).integers(0, 25, (size[1], size[0], 3), np.uint8)
    image[: size[1] // 2, : size[0] // 2] += np.array((200, 20, 20), np.uint8)
    image[size[1] // 2 :, : size[0] // 2] += np.uint8(5 * i)
    image[: size[1] // 2, size[0] // 2 :] += np.array((20, 20, 200), np.uint8)
    return image


def pictures(count: int) -> list[np.ndarray]:
    return [picture(i) for i in range(count)]


def read(path: Path, every: int = 1) -> tuple[list[Frame], str | None]:
    with open_video(path) as video:
        return list(video.frames(every)), video.problem


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return np.inf if one.shape != other.shape else np.abs(one.astype(float) - other).mean()


# As a player shows them


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_frames_come_upright(name, suffix, tmp_path):
    matrix, shown = MATRICES[name]
    clip = write_clip(tmp_path / f"clip{suffix}", pictures(3))
    frames, problem = read(turned(clip, tmp_path / f"turned{suffix}", matrix))
    assert len(frames) == 3 and problem is None
    assert all(apart(frame.image, shown(picture(i))) < 12 for i, frame in enumerate(frames))
    assert all(frame.image.flags.c_contiguous for frame in frames)


@pytest.mark.parametrize(
    ("aspect", "size"), [("4/3", (128, 64)), ("1/2", (96, 128)), ("1/1", (96, 64)), ("99", (96, 64))]
)
def test_pixels_come_square(aspect, size, tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", pictures(2), aspect=Fraction(aspect))
    frames, _ = read(clip)
    assert frames[0].image.shape[1::-1] == size
    assert apart(frames[0].image, cv2.resize(picture(), size)) < 12


def test_frames_are_turned_after_their_pixels_become_square(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pictures(2), aspect=Fraction(2))
    frames, _ = read(turned(clip, tmp_path / "turned.mp4", MATRICES["90"][0]))
    assert frames[0].image.shape[:2] == (192, 64)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "mpeg4"), (".mp4", "libx264"), (".mkv", "libx264"), (".webm", "vp9")]
)
def test_each_frame_has_its_time(suffix, codec, tmp_path):
    clip = write_clip(tmp_path / f"clip{suffix}", pictures(10), UNEVEN, codec)
    frames, problem = read(clip)
    assert problem is None and [round(1000 * frame.time_s) for frame in frames] == UNEVEN
    ends = [round(1000 * (frame.time_s + frame.duration_s)) for frame in frames]
    assert ends[:-1] == UNEVEN[1:] and UNEVEN[-1] < ends[-1] <= 8200
    some, _ = read(clip, every=4)
    assert [frame.number for frame in some] == [0, 4, 8]
    assert [round(1000 * (frame.time_s + frame.duration_s)) for frame in some] == [520, 7000, ends[-1]]


@pytest.mark.parametrize(
    ("name", "late_ms", "sound_ms", "first_s"),
    [("clip.ts", 0, 0, 0), ("clip.mp4", 700, 0, 0), ("clip.mp4", 700, 2000, 0.7), ("clip.mkv", 700, 2000, 0.7)],
)
def test_time_starts_with_the_first_image_or_sound(name, late_ms, sound_ms, first_s, tmp_path):
    times = [late_ms + 40 * i for i in range(8)]
    frames, problem = read(write_clip(tmp_path / name, pictures(8), times, sound_ms=sound_ms))
    assert problem is None and [frame.time_s - first_s for frame in frames] == pytest.approx(
        [i / 25 for i in range(8)], abs=0.002
    )


def test_an_av1_video(tmp_path, capfd):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV writes no AV1")
    frames, problem = read(write_clip(tmp_path / "clip.mp4", pictures(5), codec="libsvtav1"))
    assert problem is None and len(frames) == 5 and apart(frames[0].image, picture()) < 20


@pytest.mark.parametrize("matrix", ["bt709", "bt2020c", "YCgCo"])
def test_any_colour_space(matrix, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pictures(2), codec="libx264", **{"x264-params": f"colormatrix={matrix}"})
    frames, problem = read(clip)
    assert len(frames) == 2 and problem is None


def test_a_title_that_is_not_utf_8(tmp_path):
    data = write_clip(tmp_path / "clip.avi", pictures(3), codec="mjpeg", form="avi").read_bytes()
    assert b"Lavf" in data
    (tmp_path / "clip.avi").write_bytes(data.replace(b"Lavf", b"caf\xe9"))
    assert len(read(tmp_path / "clip.avi")[0]) == 3


@pytest.mark.parametrize(
    "name",
    [
        *(
            "2024-05-01T12:30:00.mp4",
            "concat:x.mp4",
            "-x.mp4",
            "img_%03d.mp4",
            "a|b.mp4",
            "?*[x].mp4",
            " .mp4",
            "n\n.mp4",
        ),
        *(os.fsdecode(b"caf\xe9.mp4"), "e" * 251 + ".mp4", "é" * 125 + ".mp4", "no ending"),
    ],
)
def test_any_name_is_read_and_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = VideoWriter(Path(name), (96, 64))
    writer.add(picture(), 0, 0.1)
    writer.close()
    frames, problem = read(Path(name))
    assert problem is None and len(frames) == 1 and os.listdir(tmp_path) == [name]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from /proc")
def test_memory_does_not_grow_with_the_video(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [picture(size=(960, 540))] * 60)
    used = []
    gc.disable()
    try:
        with open_video(clip) as video:
            for _ in video.frames():
                used.append(4096 * int(Path("/proc/self/statm").read_text().split()[1]))
    finally:
        gc.enable()
    assert used[-1] - used[19] < 12e6  # 40 frames are 93 MB


# Incomplete, but not damaged


def test_a_trimmed_video_is_complete(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pictures(30), codec="libx264", g="10", bf="2")
    frames, problem = read(trimmed(clip, tmp_path / "trimmed.mp4", 700, 1500))
    assert problem is None and [round(10 * frame.time_s) for frame in frames] == list(range(15))
    assert apart(frames[0].image, picture(7)) < 12


def test_a_recording_that_starts_between_key_frames_is_complete(tmp_path):
    clip = write_clip(tmp_path / "clip.ts", pictures(40), codec="libx264", g="10", tune="zerolatency")
    data = clip.read_bytes()
    (tmp_path / "late.ts").write_bytes(data[188 * (packets(clip)[5][0] // 188) :])
    frames, problem = read(tmp_path / "late.ts")
    assert problem is None and 28 <= len(frames) <= 30


def _spoil(data: bytes, packet: tuple[int, int], with_: bytes = b"\xff") -> bytes:
    return data[: packet[0]] + with_ * packet[1] + data[sum(packet) :]


@pytest.mark.parametrize(
    ("suffix", "codec", "spoil", "kept", "says"),
    [
        (".mp4", "libx264", lambda d, p: d[: p[20][0] + p[20][1] // 2], (18, 20), "ends after {} of about 40 frames"),
        (".mp4", "mpeg4", lambda d, p: d[: p[20][0] + p[20][1] // 2], (20, 20), "ends after {} of about 40 frames"),
        (".mp4", "mpeg4", lambda d, p: d[: p[20][0]], (20, 20), "ends after {} of about 40 frames"),
        (".mkv", "libx264", lambda d, p: d[: p[20][0] + 9], (18, 20), "ends after {} frames"),
        (".avi", "mjpeg", lambda d, p: d[: p[20][0] + p[20][1] // 2], (20, 20), "ends after {} of about 40 frames"),
        (".flv", "flv", lambda d, p: d[: p[20][0] + p[20][1] // 2], (20, 20), "ends after {} frames"),
        (".wmv", "wmv2", lambda d, p: d[: len(d) // 2], (15, 25), "ends after {} frames"),
        (".mp4", "mpeg4", lambda d, p: _spoil(d, p[20]), (39, 39), "damaged; skipped frames that cannot be decoded"),
        (".mp4", "libx264", lambda d, p: _spoil(d, p[39]), (30, 39), "ends after {} of about 40 frames"),
    ],
)  # fmt: skip
def test_a_video_that_is_cut_off_or_damaged(suffix, codec, spoil, kept, says, tmp_path):
    whole = write_clip(tmp_path / f"whole{suffix}", pictures(40), codec=codec)
    spoilt = tmp_path / f"spoilt{suffix}"
    if suffix == ".mp4":
        whole = index_first(whole)
    spoilt.write_bytes(spoil(whole.read_bytes(), packets(whole)))
    frames, problem = read(spoilt)
    assert kept[0] <= len(frames) <= kept[1] and problem.startswith(says.format(len(frames)))
    assert all(apart(frame.image, picture(frame.number)) < 20 for frame in frames[:18])
    assert read(whole)[1] is None


# Files that cannot be read


def _sound(path: Path, cover: bool) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        if cover:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic.value
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1)
            container.mux(stream.encode(frame))
        write_sound(container, sound, 300)


def _codec(path: Path, code: bytes) -> None:
    data = write_clip(path, pictures(3), codec="libx264").read_bytes()
    path.write_bytes(data.replace(b"avc1", code))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b"ffconcat version 1.0\nfile 'other.mp4'\n"), "cannot be opened as a video"),
        (lambda path: path.write_bytes(b"#EXTM3U\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n"), "cannot be opened"),
        (lambda path: path.write_bytes(b"v=0\no=- 0 0 IN IP4 ::\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n"), "cannot be"),
        (lambda path: path.write_bytes(b"words\n" * 300), "cannot be opened as a video"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: _sound(path, cover=False), "contains no video, only sound"),
        (lambda path: _sound(path, cover=True), "contains no video, only sound"),
        (lambda path: VideoWriter(path, (64, 48)).close(), "a video without frames"),
        (lambda path: _codec(path, b"evc1"), "no decoder for its codec (evc 'evc1'); convert the video"),
        (lambda path: _codec(path, b"zzzz"), "('zzzz'); convert the video, for instance with: ffmpeg -i '/"),
        (lambda path: _codec(path, b"\xe9zzz"), "no decoder for its codec ("),
    ],
)  # fmt: skip
def test_files_that_are_not_videos(write, says, tmp_path):
    write_clip(tmp_path / "other.mp4", pictures(3))
    path = tmp_path / "a clip.mp4"
    write(path)
    with pytest.raises(FercliError) as failure:
        read(path)
    assert str(failure.value).startswith(f"{path}: ") and says in str(failure.value) and "\n" not in str(failure.value)


# Written videos


def test_written_frames_keep_their_times(tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", (97, 63))
    for i, time_ms in enumerate(UNEVEN):
        writer.add(picture(i, (97, 63) if i != 5 else (194, 126)), time_ms / 1000, 0.1)
    writer.close()
    assert shown(tmp_path / "clip.mp4") == (UNEVEN, 8000)
    frames, problem = read(tmp_path / "clip.mp4")
    assert problem is None
    assert all(apart(frame.image, picture(i, (97, 63))) < 15 for i, frame in enumerate(frames) if i != 5)
    assert all(frame.image.flags.c_contiguous for frame in frames)


def test_no_partial_video_is_left(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"old")
    writer = VideoWriter(tmp_path / "clip.mp4", (96, 64))
    writer.add(picture(), 0, 1)
    writer.close(KeyError("elsewhere"))
    with pytest.raises(ValueError, match="allows up to 8191 pixels a side, not 9000"):
        VideoWriter(tmp_path / "clip.mp4", (9000, 64))
    with pytest.raises(FileNotFoundError):
        VideoWriter(tmp_path / "none/clip.mp4", (96, 64))
    assert os.listdir(tmp_path) == ["clip.mp4"] and (tmp_path / "clip.mp4").read_bytes() == b"old"


def test_a_full_disk_leaves_nothing(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = VideoWriter(tmp_path / "clip.mp4", (640, 480))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            for i in range(100):
                writer.add(picture(i, (640, 480)), i / 10, 0.1)
            writer.close()
        writer.close(failure.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []
