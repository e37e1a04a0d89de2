"""fercli predict on videos: frames, times, people tracked and smoothed, and videos that are not whole."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Bench, run

from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import STUDIO, render
from fercli.predict.tracking import PATIENCE, Tracker
from fercli.predict.videos import VideoWriter, open_video
from fercli.recognizer import Face

RATE, FRAMES = 10, 12


def write(path: Path, frames: list[np.ndarray], code: str = "mp4v") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), RATE, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Two people, of whom the right one wanders; the left one is hidden in frame 5."""
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
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


def predict(trained: Bench, *arguments: object):
    return run("predict", "-c", trained.spec, "--device", "cpu", "--workers", "1", *arguments)


def lines(result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_frame_has_its_line(trained, clip):
    found = lines(predict(trained, clip))
    assert [line["frame"] for line in found] == list(range(FRAMES))
    assert [line["time_s"] for line in found] == pytest.approx([i / RATE for i in range(FRAMES)], abs=0.02)
    assert [len(line["faces"]) for line in found] == [2] * 5 + [1] + [2] * 6
    assert "track" not in found[0]["faces"][0]


def test_every_third_frame_and_its_annotated_copy(trained, clip, tmp_path):
    found = lines(predict(trained, clip, "--every", 3, "--annotate", tmp_path / "new/drawn.mp4"))
    assert [line["frame"] for line in found] == [0, 3, 6, 9]
    with open_video(tmp_path / "new/drawn.mp4") as video:
        images = list(video.frames())
        assert video.rate == pytest.approx(RATE / 3, rel=0.01) and len(images) == 4
    with open_video(clip) as video:
        first = next(video.frames())[2]
    assert images[0][2].shape == first.shape and (np.abs(images[0][2].astype(int) - first) > 80).any(-1).mean() > 0.01
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["drawn.mp4"]


def test_people_keep_their_numbers(trained, clip, tmp_path):
    found = lines(predict(trained, clip, "--smooth", 0.3, "--annotate", tmp_path))
    assert [[face["track"] for face in line["faces"]] for line in found] == [[0, 1]] * 5 + [[1]] + [[0, 1]] * 6
    assert (tmp_path / "clip.mp4").exists()
    for line in found:
        for face in line["faces"]:
            assert face["expression"] == max(face["probabilities"], key=face["probabilities"].get)
            assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)


# Not whole


def test_a_video_that_ends_in_the_middle_of_a_frame(trained, frames, tmp_path):
    whole = write(tmp_path / "whole.avi", frames, "MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 6 // 10])
    result = predict(trained, tmp_path / "cut.avi")
    found = lines(result)
    assert 3 <= len(found) - 1 < FRAMES and all(line["faces"] for line in found[:-1])
    assert found[-1]["error"].startswith("ends after") and f"of {FRAMES} frames" in found[-1]["error"]
    assert "warning: could not be read" in result.stderr and "ends after" in result.stderr


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("cut.mp4", None, "cannot be opened as a video"),
        ("noise.mp4", b"\1\2\3" * 500, "cannot be opened as a video"),
        ("nothing.mp4", b"", "empty file"),
    ],
)
def test_videos_that_cannot_be_opened(trained, clip, tmp_path, name, data, says):
    whole = clip.read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
    result = predict(trained, tmp_path / name, "--csv", tmp_path / "out.csv")
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert result.exit_code == 1 and line.startswith("error: could not be read") and says in line
    assert says in (tmp_path / "out.csv").read_text()


def test_a_video_without_a_frame(trained, clip, tmp_path):
    VideoWriter(tmp_path / "none.mp4", (64, 48), 25).close()
    result = predict(trained, tmp_path / "none.mp4", "--quiet", "--jsonl", tmp_path / "out")
    assert result.exit_code == 1 and "error: could not be read" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_video_without_a_face(trained, tmp_path):
    write(tmp_path / "grey.mp4", [np.full((120, 160, 3), 100 + i, np.uint8) for i in range(4)])
    result = predict(trained, tmp_path / "grey.mp4", "--quiet")
    assert [line["faces"] for line in lines(result)] == [[]] * 4
    assert result.stderr.replace("\n", " ").startswith("warning: no face in any of the 4 frames of")


def test_a_video_under_another_name_among_pictures(trained, clip, frames, tmp_path):
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
