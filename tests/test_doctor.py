"""`fercli doctor`: every check is a real one, so the tests produce its failures by their real causes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Bench, after_source, run, told, warned

from fercli import machine
from fercli.doctor.checks import examine
from fercli.engine.fabric import resolve_device, unused_card


def found(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by name."""
    result = run("doctor", "--json", *arguments)
    findings = json.loads(result.stdout)["doctor"]["findings"]
    assert all(one["fix"] for one in findings if one["status"] != "ok")
    return result.exit_code, {one["check"]: one for one in findings}


def test_a_working_machine_and_a_prepared_run(bench: Bench) -> None:
    code, findings = found("-c", str(bench.spec))
    failed = {name: one for name, one in findings.items() if one["status"] == "fail"}
    assert (code, failed) == (0, {})
    assert {"python", "torch", "face networks", "opencv", "pyav", "face", "onnx", "spec", "cores", "paths.runs"} <= set(
        findings
    )
    assert "landmark error" in findings["face"]["found"]
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
        (shutil.rmtree, "warn", "neither prepared nor in", "fercli datasets show jaffe"),
    ],
)
def test_stores(spoil, status: str, text: str, fix: str, tmp_path: Path, prepared: Path) -> None:
    stores = tmp_path / "stores; all"  # problem and fix stay separate, whatever they contain
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
        ("data.datasets.jaffe.reader=foldrs", "dataset jaffe", "fail", "did you mean folders?"),
        ("data.datasets.jaffe.root={here}", "dataset jaffe", "warn", "not prepared"),
        ("model.width=1000", "spec", "fail", "model.width: 1000"),
        pytest.param(
            *("engine.device=cuda", "cuda", "fail", "none: "),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_the_spec_requires(setting: str, check: str, status: str, text: str, bench: Bench) -> None:
    setting = setting.format(here=bench.folder)
    code, findings = found("-c", str(bench.spec), "--set", setting, "--set", f"paths.prepared={bench.folder}/stores")
    assert code == (status == "fail")
    assert findings[check]["status"] == status
    assert text in findings[check]["found"]


def test_a_missing_spec_is_a_finding(tmp_path: Path) -> None:
    code, findings = found("-c", str(tmp_path / "nowhere.yaml"))
    assert code == 1
    assert "no such spec file:" in findings["spec"]["found"]
    assert findings["python"]["status"] == "ok"


def test_broken_software_is_found(tmp_path: Path) -> None:
    """In another process whose path begins with broken, too old or duplicate packages, as users may have."""
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
        "face networks": (
            "fail",
            f"FERCLI_FACE_MODELS names {tmp_path}, which does not contain",
            "pip download mediapipe==0.10.21",
        ),
    }
    for name, (status, text, fix) in expected.items():
        one = findings[name]
        assert (one["status"], text in one["found"], fix in one["fix"]) == (status, True, True), one
    assert findings["spec"]["status"] == "ok"


def cpu_seconds(*words: str) -> float:
    """CPU seconds of a Python process, which depend less on other processes than its duration."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, env=env, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_it_takes_little_more_time_than_loading_torch() -> None:
    assert cpu_seconds("-m", "fercli", "doctor", "--quiet") < 2 * cpu_seconds("-c", "import torch")


def test_checks_come_one_by_one() -> None:
    """If a check hangs, the user sees that it is the one after the last line."""
    checks = examine()
    assert next(checks).check == "python"
    checks.close()


# A card that torch cannot use


PROC = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  9.4.0\n"
#: The files below the root by which each kind of machine shows its card.
DRIVER, DEVICE, CARD = (
    {"proc/driver/nvidia/version": PROC},
    {"dev/nvidia0": ""},
    {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n"},
)
OTHERS = {"sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n", "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n"}
OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
UNKNOWN = "CUDA initialization: CUDA unknown error - this may be due to an incorrectly set up environment. Setting ..."


@pytest.fixture
def machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that makes this machine appear to have given files and a given build of torch."""

    def make(files: dict[str, str], built: str | None, visible: str | None = None, says: str = "") -> None:
        for name, text in {**files, **OTHERS}.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(machine, "_ROOT", tmp_path / "root")
        monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.version, "cuda", built)

        told_once = [says] if says else []

        def is_available() -> bool:
            if told_once:  # as torch does
                warnings.warn(told_once.pop(), stacklevel=1)
            return False

        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        machine.no_cuda.cache_clear()

    yield make
    machine.no_cuda.cache_clear()


TROUBLES = {
    "driver too old": (
        ({**DRIVER, **DEVICE, **CARD}, "13.0", None, OLD),
        *("the driver (535.183.01) supports CUDA up to 12.2, but torch", "install torch for CUDA 12.2 or older"),
    ),
    "wheel for the CPU": (
        ({**DRIVER, **DEVICE}, None),
        *("is built for the CPU, though there is a driver (535.183.01)", "install torch built for CUDA"),
    ),
    "wheel for the CPU, and no driver": (
        *((CARD, None), "is built for the CPU, though there is an NVIDIA card"),
        "install torch built for CUDA",
    ),
    "hidden": (
        ({**DRIVER, **DEVICE}, "13.0", ""),
        *("CUDA_VISIBLE_DEVICES hides all devices", "unset CUDA_VISIBLE_DEVICES"),
    ),
    "another's number": (
        ({**DRIVER, **DEVICE}, "13.0", "7"),
        *("CUDA_VISIBLE_DEVICES (7) names no existing device", "nvidia-smi -L"),
    ),
    "no driver": ((CARD, "13.0"), "no NVIDIA driver, though there is an NVIDIA card", "install the driver"),
    "container without the devices": (
        (DRIVER, "13.0"),
        "there is a driver (535.183.01), but no card",
        "docker: --gpus all",
    ),
    "something else": (
        ({**DRIVER, **DEVICE}, "13.0", None, UNKNOWN),
        *("CUDA unknown error - this may be due to an incorrectly set up environment; driver 535.183.01", "nvidia-smi"),
    ),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_an_unused_card_is_explained_wherever_it_matters(name: str, machine_with, bench: Bench) -> None:
    setup, what, fix = TROUBLES[name]
    machine_with(*setup)
    one = found("-c", str(bench.spec), "--set", "engine.device=auto")[1]["cuda"]
    assert (one["status"], what in one["found"], fix in one["fix"]) == ("warn", True, True), one
    assert resolve_device("auto") == "cpu"
    line = unused_card("auto")
    assert what in line and fix in line and line.count("\n") == 0 and "engine.device=cpu" in line
    assert unused_card("cpu") is None
    line = told(bench("train-source", "--set", "engine.device=cuda"), 1)
    assert "torch can use no CUDA device" in line and what in line and fix in line


def test_a_machine_without_a_card_gets_no_warning(machine_with, bench: Bench) -> None:
    machine_with({}, None)
    one = found("-c", str(bench.spec), "--set", "engine.device=auto")[1]["cuda"]
    assert (one["status"], one["fix"]) == ("ok", "") and one["found"].endswith("training runs on the CPU")
    assert unused_card("auto") is None and resolve_device("auto") == "cpu"


def test_training_on_the_cpu_despite_a_card_says_why_once(machine_with, trained: Bench, tmp_path: Path) -> None:
    machine_with(*TROUBLES["driver too old"][0])
    bench = after_source(tmp_path / "b", trained, {"adapt.epochs": 1, "adapt.steps_per_epoch": 1})
    bench.spec.write_text(bench.spec.read_text().replace("device: cpu", "device: auto"))
    first = bench.done("train-source").stderr.splitlines()
    assert first[0].startswith("warning: the CPU is used, not the GPU: the driver (535.183.01) supports CUDA up to")
    assert first[1].startswith("device: cpu (")
    assert sum("device" in line for line in first) == 2
    (quiet,) = warned(bench.done("adapt", "--quiet"))
    assert quiet == first[0]
    assert bench.done("adapt", "--json").stderr == ""


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 1), ["sm_90a", "sm_100a"], False),
        ((12, 1), ["sm_120f"], True),
        ((6, 1), ["sm_75", "sm_80", "sm_120"], False),
        ((6, 1), [], True),  # nothing is known
    ],
)
def test_a_card_of_another_generation_is_reported_before_training(
    capability: tuple[int, int], built: list[str], runs: bool, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    machine.no_cuda.cache_clear()
    try:
        assert resolve_device("auto") == ("cuda" if runs else "cpu")
        assert (unused_card("auto") is None) == runs
        if not runs:
            line = told(bench("train-source", "--set", "engine.device=cuda"), 1)
            assert f"NVIDIA Old is sm_{capability[0]}{capability[1]}, but torch" in line
            assert f"is built for {', '.join(built)}" in line and "previous-versions" in line
            assert not (bench.folder / "runs").exists()
    finally:
        machine.no_cuda.cache_clear()
