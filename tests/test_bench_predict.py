"""The benchmark of predict: it runs, and its figures hang together."""

from __future__ import annotations

import json

import pytest
from conftest import run

from fercli.benchmarks import predict as bench
from fercli.faces.images import read_image
from fercli.faces.landmarker import Landmarker
from fercli.predict.videos import open_video


def test_bench_predict(tmp_path):
    settings = (f"paths.runs={tmp_path}", "engine.device=cpu", "engine.threads=1")
    words = [word for text in settings for word in ("--set", text)]
    tiny = ("--backbone", "ir-small", "--width", "4", "--batch", "4", "--steps", "1", "--rounds", "2")
    done = run("bench", "predict", *tiny, "--pictures", "8", "--workers", "1", "--json", *words)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "bench/predict.json").read_text()) and result["pictures"] == 8
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["predict.json"]
    assert [row["input"] for row in result["end_to_end"]] == ["folder", "video"]
    for row in result["end_to_end"]:
        d, n, whole = (row[f"{name}_per_s"] for name in ("detection", "network", "end_to_end"))
        assert (row["batch"], row["workers"]) == (4, 1) and row["slower"] == ("detection" if d < n else "network")
        assert row["to_slower"] == pytest.approx(whole / min(d, n))
        assert row["bound_per_s"] == pytest.approx(d * n / (d + n)) and row["bound_per_s"] < min(d, n)
        assert row["to_bound"] == pytest.approx(whole / row["bound_per_s"])
        assert row["spread_per_s"][0] <= whole <= row["spread_per_s"][1]


def test_what_is_drawn_has_the_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "DRAWN", 4)
    landmarker = Landmarker()
    folder = bench.draw_folder(tmp_path / "pictures", 6)
    assert len(list(folder.iterdir())) == 6
    assert [len(landmarker.find_all(read_image(folder / f"{i:06d}.jpg"))) for i in (0, 1, 2, 3, 4)] == [1, 2, 3, 4, 1]
    with open_video(bench.draw_video(tmp_path / "video.mp4", 3)) as video:
        assert [len(landmarker.find_all(frame.image)) for frame in video.frames()] == [2, 2, 2]
