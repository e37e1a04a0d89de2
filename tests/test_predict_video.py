"""fercli predict on videos: frames, times, tracking and smoothing, and incomplete videos."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import MATRICES, index_first, packets, shown, trimmed, turned, write_clip
from conftest import Bench, lines, run

from fercli.expressions import EXPRESSIONS
from fercli.parallel import Workers
from fercli.predict.inputs import Reader, find_inputs
from fercli.predict.recognizer import Face, Recognizer
from fercli.predict.tracking import PATIENCE, Tracker
from fercli.predict.videos import open_video
from fercli.synthetic.render import STUDIO, render

RATE, FRAMES = 10, 12


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Two people: the right one moves, and the left one is hidden in frame 5."""
    left, right = (render(STUDIO, i, 3 * i, i).image for i in range(2))
    made = []
    for i in range(FRAMES):
        frame = np.full((260, 520, 3), 90, np.uint8)
        if i != 5:
            frame[10:250, 10:230] = left
        frame[10:250, 260 + 2 * i : 480 + 2 * i] = right
        made.append(frame)
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory, frames) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


def predict(trained: Bench, *arguments: object):
    return run("predict", "-c", trained.spec, "--device", "cpu", "--workers", "1", *arguments)


def test_every_frame_has_its_line(trained, clip):
    found = lines(predict(trained, clip))
    assert [line["frame"] for line in found] == list(range(FRAMES))
    assert [line["time_s"] for line in found] == pytest.approx([i / RATE for i in range(FRAMES)], abs=0.02)
    assert [len(line["faces"]) for line in found] == [2] * 5 + [1] + [2] * 6
    assert "track" not in found[0]["faces"][0]


def test_every_third_frame_and_its_annotated_copy(trained, clip, tmp_path):
    found = lines(predict(trained, clip, "--every", 3, "--annotate", tmp_path / "new/drawn.mp4"))
    assert [line["frame"] for line in found] == [0, 3, 6, 9]
    assert shown(tmp_path / "new/drawn.mp4") == ([0, 300, 600, 900], 1200)
    with open_video(tmp_path / "new/drawn.mp4") as video:
        drawn = list(video.frames())
    with open_video(clip) as video:
        first = next(video.frames()).image
    assert (
        drawn[0].image.shape == first.shape and (np.abs(drawn[0].image - first.astype(int)) > 80).any(-1).mean() > 0.01
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["drawn.mp4"]


def test_people_keep_their_numbers(trained, clip, tmp_path):
    found = lines(predict(trained, clip, "--smooth", 0.3, "--annotate", tmp_path))
    assert [[face["track"] for face in line["faces"]] for line in found] == [[0, 1]] * 5 + [[1]] + [[0, 1]] * 6
    assert (tmp_path / "clip.mp4").exists()
    for line in found:
        for face in line["faces"]:
            assert face["expression"] == max(face["probabilities"], key=face["probabilities"].get)
            assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)


# As a player shows them


@pytest.mark.parametrize("name", ["90", "180", "270", "mirrored"])
def test_a_rotated_video_is_read_upright(trained, name, tmp_path):
    upright = render(STUDIO, 1, 3, 1).image
    matrix, shown = MATRICES[name]
    stored = next(way(upright) for way in _ways() if np.array_equal(shown(way(upright)), upright))
    plain = write_clip(tmp_path / "plain.mp4", [upright] * 2, codec="libx264", crf="5")
    clip = turned(write_clip(tmp_path / "a.mp4", [stored] * 2, codec="libx264", crf="5"), tmp_path / "b.mp4", matrix)
    wanted = lines(predict(trained, plain))
    found = lines(predict(trained, clip, "--annotate", tmp_path / "drawn.mp4"))
    for line, right in zip(found, wanted, strict=True):
        (face,), (expected,) = line["faces"], right["faces"]
        assert face["box"] == pytest.approx(expected["box"], abs=2) and face["expression"] == expected["expression"]
        assert face["confidence"] == pytest.approx(expected["confidence"], abs=0.05)
    with open_video(tmp_path / "drawn.mp4") as video:
        assert next(video.frames()).image.shape == upright.shape
    # The annotated copy has no matrix that would rotate it once more.
    (line, _) = lines(predict(trained, tmp_path / "drawn.mp4"))
    assert line["faces"][0]["box"] == pytest.approx(wanted[0]["faces"][0]["box"], abs=6)
    recognizer = Recognizer.load(trained.runs, device="cpu")
    with Workers(1) as pool:
        streamed = list(recognizer.stream(Reader(find_inputs([str(clip)], None)), 8, pool))
    assert streamed[0][1][0].box == pytest.approx(found[0]["faces"][0]["box"], abs=0.01)


def _ways():
    for quarters in range(4):
        yield lambda image, k=quarters: np.rot90(image, k)
        yield lambda image, k=quarters: np.rot90(image, k)[:, ::-1]


@pytest.mark.parametrize("every", [1, 3])
def test_annotated_copies_keep_the_times_of_frames(trained, frames, every, tmp_path):
    times = [0, 33, 70, 150, 900, 1000, 2500, 2540, 4000, 6000, 7000, 7900]
    clip = write_clip(tmp_path / "clip.mp4", frames, times)
    found = lines(predict(trained, clip, "--every", every, "--annotate", tmp_path / "drawn.mp4"))
    assert [round(1000 * line["time_s"]) for line in found] == times[::every]
    end = shown(clip)[1]
    assert 7900 < end <= 8000 and shown(tmp_path / "drawn.mp4") == (times[::every], end)


NAMES = ("2024-05-01T12:30:00.mp4", "concat:x.mp4", "-x.mp4", "img_%03d.mp4", os.fsdecode(b"caf\xe9.mp4"))


@pytest.mark.parametrize("name", [*NAMES, "e" * 251 + ".mp4"])
def test_videos_of_any_name(trained, frames, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path(name), frames[:3])
    options = ("--csv", "out.csv", "--jsonl", "out.jsonl", "--annotate", "drawn")
    result = predict(trained, *options, "--", name)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["input"] for line in Path("out.jsonl").read_text().splitlines()] == [name] * 3
    assert os.listdir("drawn") == [name] and os.fsencode(name) in Path("out.csv").read_bytes()
    assert len(lines(predict(trained, Path("drawn") / name))) == 3


def test_a_copy_with_too_long_a_name_is_a_one_line_error(trained, clip, tmp_path):
    result = predict(trained, clip, "--annotate", tmp_path / f"{'e' * 252}.mp4")
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert "File name too long" in result.stderr.replace("\n", " ")


def test_a_trimmed_video_is_not_called_damaged(trained, frames, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", frames, codec="libx264", g="4")
    result = predict(trained, trimmed(clip, tmp_path / "trimmed.mp4", 200, 600), "--annotate", tmp_path / "drawn.mp4")
    found = lines(result)
    assert [line["frame"] for line in found] == list(range(6)) and "could not be read" not in result.stderr
    assert [line["time_s"] for line in found] == pytest.approx([i / RATE for i in range(6)])


# Incomplete videos


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "mjpeg"), (".mp4", "mpeg4")])
def test_a_video_that_ends_in_the_middle_of_a_frame(trained, frames, suffix, codec, tmp_path):
    whole = write_clip(tmp_path / f"whole{suffix}", frames, codec=codec)
    whole = index_first(whole) if suffix == ".mp4" else whole
    start, size = packets(whole)[7]
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: start + size // 2])
    result = predict(trained, cut)
    found = lines(result)
    assert len(found) == 8 and all(line["faces"] for line in found[:-1])
    assert found[-1]["error"].startswith("ends after 7 of about 12 frames")
    assert "warning: could not be read" in result.stderr and "ends after" in result.stderr


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("cut.mp4", lambda data: data[: len(data) // 2], "cannot be opened as a video"),
        ("noise.mp4", lambda data: b"\1\2\3" * 500, "cannot be opened as a video"),
        ("nothing.mp4", lambda data: b"", "empty file"),
        ("codec.mp4", lambda data: data.replace(b"avc1", b"evc1"), "no decoder for its codec (evc 'evc1')"),
    ],
)
def test_videos_that_cannot_be_opened(trained, frames, clip, tmp_path, name, spoil, says):
    """Such a video gets one line in every output; the predictions for others stay."""
    whole = write_clip(tmp_path / "whole.mp4", frames, codec="libx264").read_bytes()
    (tmp_path / name).write_bytes(spoil(whole))
    result = predict(trained, tmp_path / name, "--csv", tmp_path / "out.csv", "--annotate", tmp_path / "drawn")
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert result.exit_code == 1 and line.startswith("error: could not be read") and says in line
    assert says in (tmp_path / "out.csv").read_text()
    found = lines(predict(trained, tmp_path / name, clip, "--annotate", tmp_path / "drawn"))
    assert len(found) == 1 + FRAMES and says in found[0]["error"] and (tmp_path / "drawn/clip.mp4").exists()


def test_a_video_without_a_frame(trained, tmp_path):
    write_clip(tmp_path / "none.mp4", [])
    result = predict(trained, tmp_path / "none.mp4", "--quiet", "--jsonl", tmp_path / "out")
    assert result.exit_code == 1 and "error: could not be read" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.strip().endswith("a video without frames")


def test_a_video_without_a_face(trained, tmp_path):
    write_clip(tmp_path / "grey.mp4", [np.full((120, 160, 3), 100 + i, np.uint8) for i in range(4)])
    result = predict(trained, tmp_path / "grey.mp4", "--quiet")
    assert [line["faces"] for line in lines(result)] == [[]] * 4
    assert result.stderr.replace("\n", " ").startswith("warning: no face in any of the 4 frames of")


def test_a_video_without_an_ending_among_images(trained, clip, frames, tmp_path):
    (tmp_path / "film").write_bytes(clip.read_bytes())
    cv2.imwrite(str(tmp_path / "a.png"), frames[0][..., ::-1])
    found = lines(predict(trained, tmp_path / "a.png", tmp_path / "film"))
    assert [line["frame"] for line in found] == [None, *range(FRAMES)]


# Tracking


def face(left: float, says: int, sure: float = 1.0) -> Face:
    said = np.full(7, (1 - sure) / 6, np.float32)
    said[says] = sure
    box = (left, 0.0, left + 10, 10.0)
    return Face(box, np.zeros((5, 2)), EXPRESSIONS[says], sure, said, "fused", {}, 0.9, "found")


def test_smoothing_is_an_exponential_average_by_time():
    for rate in (5, 50):
        tracker = Tracker(0.5)
        tracker([face(0, 3)], 0.0)
        for i in range(1, rate + 1):
            (now,) = tracker([face(0, 5)], i / rate)
        assert now.probabilities[3] == pytest.approx(math.exp(-1 / 0.5), abs=1e-5)
        assert (now.expression, now.track) == ("anger", 0)


def test_a_change_for_one_frame_does_not_show():
    tracker = Tracker(1.0)
    said = [tracker([face(0, 5 if i == 3 else 3)], i / 25)[0].expression for i in range(8)]
    assert said == ["happiness"] * 8
    assert Tracker(0.0)([face(0, 5)], 0.0)[0].expression == "anger"


def test_the_nearest_pair_is_joined_first():
    tracker = Tracker(1.0)
    assert [f.track for f in tracker([face(0, 3), face(8, 3)], 0.0)] == [0, 1]
    # Both overlap track 1; the second more.
    assert [f.track for f in tracker([face(5, 3), face(7.5, 3)], 0.1)] == [0, 1]
    assert [f.track for f in tracker([face(30, 3)], 0.2)] == [2]
    assert [f.track for f in tracker([face(7.5, 3)], 0.3)] == [1]
    assert [f.track for f in tracker([face(7.5, 3)], 0.3 + PATIENCE + 0.1)] == [3]
    assert tracker([], 2.0) == []
