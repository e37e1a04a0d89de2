"""`fercli doctor`: every check is a real one, so its failures are made by what really makes them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench, run

from fercli.doctor.checks import examine


def found(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code and findings by name."""
    result = run("doctor", "--json", *arguments)
    findings = json.loads(result.stdout)["doctor"]["findings"]
    assert all(one["fix"] for one in findings if one["status"] != "ok")
    return result.exit_code, {one["check"]: one for one in findings}


def test_a_fit_machine_and_a_prepared_run(bench: Bench) -> None:
    code, findings = found("-c", str(bench.spec))
    failed = {name: one for name, one in findings.items() if one["status"] == "fail"}
    assert (code, failed) == (0, {})
    assert {"python", "torch", "face networks", "opencv", "pyav", "face", "onnx", "spec", "cores", "paths.runs"} <= set(
        findings
    )
    assert "landmarks" in findings["face"]["found"]
    for name, count in (("raf-db", 126), ("jaffe", 42)):
        assert findings[f"dataset {name}"]["status"] == "ok"
        assert f"of {count} faces" in findings[f"dataset {name}"]["found"]
    assert not (bench.folder / "runs").exists()  # nothing is written
    if torch.cuda.is_available():
        assert findings["cuda:0"]["status"] == "ok"
    else:
        assert findings["cuda"]["found"].startswith("none: ")


def _unlink_meta(store: Path) -> None:
    (store / "meta.json").unlink()


def _older(store: Path) -> None:
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "format": 1}))


def _cut(store: Path) -> None:
    (store / "faces.npy").write_bytes((store / "faces.npy").read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "status", "text", "fix"),
    [
        (_unlink_meta, "fail", "is incomplete", "run: fercli prepare --dataset jaffe"),
        (_older, "fail", "another version of fercli", "run: fercli prepare --dataset jaffe"),
        (_cut, "fail", "is damaged", "run: fercli prepare --dataset jaffe --repair"),
        (shutil.rmtree, "warn", "neither prepared nor at", "fercli datasets show jaffe"),
    ],
)
def test_stores(spoil, status: str, text: str, fix: str, tmp_path: Path, prepared: Path) -> None:
    stores = tmp_path / "stores; all"  # what is wrong and what to do are kept apart, whatever stands in them
    shutil.copytree(prepared, stores)
    spoil(stores / "jaffe")
    bench = Bench(tmp_path / "bench", stores)
    code, findings = found("-c", str(bench.spec))
    one = findings["dataset jaffe"]
    assert code == (status == "fail")
    assert one["status"] == status
    assert text in one["found"]
    assert fix in one["fix"]
    assert findings["dataset raf-db"]["status"] == "ok"


def test_a_fix_can_be_typed_as_printed(tmp_path: Path, prepared: Path) -> None:
    shutil.copytree(prepared, tmp_path / "stores")
    _unlink_meta(tmp_path / "stores/jaffe")
    bench = Bench(tmp_path / "bench", tmp_path / "stores")
    result = bench("doctor", "--quiet")
    assert result.exit_code == 1
    fail, fix = result.stdout.splitlines()
    assert fail.startswith("fail  dataset jaffe")
    assert fix.strip() == f"fix: run: fercli prepare -c {bench.spec} --dataset jaffe"


@pytest.mark.parametrize(
    ("setting", "check", "status", "text"),
    [
        ("model.weights=nowhere.pth", "weights", "fail", "nowhere.pth is missing"),
        ("paths.runs={here}/spec.yaml/runs", "paths.runs", "fail", "cannot write in"),
        ("data.targets=[mine]", "dataset mine", "fail", "no reader is known for mine"),
        ("data.datasets.jaffe.reader=fercli.datasets.folders:READER", "dataset jaffe", "warn", "neither prepared nor"),
        ("data.datasets.jaffe.reader=foldrs", "dataset jaffe", "fail", "did you mean 'folders'?"),
        ("data.datasets.jaffe.root={here}", "dataset jaffe", "warn", "not prepared"),
        ("model.width=1000", "spec", "fail", "model.width: 1000"),
        pytest.param(
            *("engine.device=cuda", "cuda", "fail", "none: "),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_the_spec_asks_for(setting: str, check: str, status: str, text: str, bench: Bench) -> None:
    setting = setting.format(here=bench.folder)
    code, findings = found("-c", str(bench.spec), "--set", setting, "--set", f"paths.prepared={bench.folder}/stores")
    assert code == (status == "fail")
    assert findings[check]["status"] == status
    assert text in findings[check]["found"]


def test_a_spec_that_is_none_is_a_finding(tmp_path: Path) -> None:
    code, findings = found("-c", str(tmp_path / "nowhere.yaml"))
    assert code == 1
    assert "no spec file" in findings["spec"]["found"]
    assert findings["python"]["status"] == "ok"


def test_broken_software_is_found(tmp_path: Path) -> None:
    """In another process, before whose packages stand such as users have: broken, empty, too new, twice."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    (tmp_path / "av").mkdir()
    (tmp_path / "av/__init__.py").write_text("raise ImportError('libavcodec.so.62: cannot open shared object file')")
    for name, version in (("opencv_python", "4.9.0"), ("opencv_contrib_python", "4.9.0"), ("numpy", "1.2.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    env = {**os.environ, "PYTHONPATH": path, "FERCLI_FACE_MODELS": str(tmp_path)}
    command = [sys.executable, "-m", "fercli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert done.returncode == 1, done.stderr
    findings = {one["check"]: one for one in json.loads(done.stdout)["doctor"]["findings"]}
    expected = {
        "torch": ("fail", "cannot be loaded (libcudart.so.12", "https://pytorch.org"),
        "pyav": ("fail", "cannot be loaded (libavcodec.so.62", "pip install"),
        "opencv": ("warn", "overwrite each other", "pip uninstall -y opencv-python opencv-contrib-python"),
        "packages": ("fail", "missing or too old: 'numpy", "pip install 'numpy"),
        "face networks": ("fail", f"FERCLI_FACE_MODELS names {tmp_path}, where no", "pip download mediapipe==0.10.21"),
    }
    for name, (status, text, fix) in expected.items():
        one = findings[name]
        assert (one["status"], text in one["found"], fix in one["fix"]) == (status, True, True), one
    assert findings["spec"]["status"] == "ok"


def test_it_takes_little_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "fercli", "doctor", "--quiet"], capture_output=True, env=env, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of the processor, which others that share the machine do not lengthen.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 5


def test_checks_come_one_by_one() -> None:
    """So that a check that hangs is seen as the one after the last line."""
    checks = examine()
    assert next(checks).check == "python"
    checks.close()
