"""The benchmark of preparing: it runs, and its figures hang together."""

from __future__ import annotations

import json

import pytest
from conftest import run
from drawn import THUMBNAIL, write_fer2013

from fercli.benchmarks import face_mesh
from fercli.synthetic.render import render


@pytest.mark.slow
def test_bench_prepare(tmp_path):
    done = run("bench", "prepare", "--images", "40", "--rounds", "1", "--json", "--set", f"paths.runs={tmp_path}")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "bench/prepare.json").read_text())
    assert result["pictures"] == 40 and set(result["stages_ms"]) == {"decode", "detect", "warp", "write", "rest"}
    assert all(result["stages_ms"][stage] > 0 for stage in ("decode", "detect", "warp", "write"))
    first = result["processes"][0]
    assert first["processes"] == 1 and first["speed_up"] == 1
    if face_mesh.is_installed():
        assert first["prepare_to_bare"] == pytest.approx(first["prepare_per_s"] / first["bare_per_s"])
    else:
        assert first["prepare_to_bare"] is first["bare_per_s"] is first["mesh_only_per_s"] is None
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["prepare.json"]


def test_a_csv_of_pixels_cannot_be_measured(tmp_path):
    root = write_fer2013(tmp_path / "fer", [render(THUMBNAIL, 1, label, 1) for label in range(2)])
    done = run("bench", "prepare", "--dataset", "fer2013", "--root", str(root), "--set", f"paths.runs={tmp_path}")
    assert done.exit_code == 1 and "one file a picture" in done.stderr
