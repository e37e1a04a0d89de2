"""A sweep that several processes share: workers of a cluster, a SLURM array of cells, two commands at once, one GPU
each. Whichever processes do the work or die, the table is the same as from one process, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from conftest import EPOCHS, Bench, merge, run, told
from trained_runs import assert_same_sweep, results, stages

from fercli.engine import checkpoint
from fercli.files import only_one
from fercli.spec import parse
from fercli.sweep import devices
from fercli.sweep.claims import take
from fercli.sweep.plan import plan
from fercli.sweep.run import _workers, unfinished

SWEEP = {"sweep.methods": {"dann": None}, "sweep.seeds": [0, 1]}
#: Titles of the cells, by number.
CELLS = [f"seed-{seed} {method} -> jaffe" for seed in (0, 1) for method in ("source-only", "dann")]
SOURCES = ("seed-0/source", "seed-1/source")
#: Saved after every step, so that a killed stage resumes from the middle.
SAVING = {"engine.save_every_s": 0}
SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_ARRAY_JOB_ID": "70",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "cell.sh",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
#: What srun adds for a step of one task.
STEP = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_ID": "0"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Bench:
    """A finished sweep, run by one process without a stop. Read only."""
    bench = Bench(tmp_path_factory.mktemp("swept"), prepared, SWEEP)
    result = run("sweep", bench.spec, "--quiet")
    assert result.exit_code == 0, result.stderr
    return bench


@pytest.fixture
def make(tmp_path: Path, swept: Bench):
    """A function (parts, changes) -> a bench with these parts of the finished sweep."""

    def made(parts: tuple[str, ...] = (), changes: dict | None = None) -> Bench:
        bench = Bench(tmp_path / "bench", swept.prepared, {**SWEEP, **(changes or {})})
        for part in parts:
            shutil.copytree(swept.runs / part, bench.runs / part)
            shutil.copy(swept.runs / Path(part).parent / "spec.yaml", bench.runs / Path(part).parent)
        return bench

    return made


@pytest.fixture
def start() -> Iterator:
    """A function (bench, arguments, environment) -> a sweep in its own process."""
    processes = []

    def started(bench: Bench, *arguments: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "fercli", "sweep", str(bench.spec), *arguments]
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        env = {**os.environ, **environment}
        processes.append(subprocess.Popen(command, text=True, env=env, start_new_session=True, **pipes))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for a process to end and return its stderr."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def until(condition, process: subprocess.Popen) -> None:
    begun = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begun < 200
        time.sleep(0.005)


def claims(bench: Bench) -> dict[str, int]:
    """Stage -> the number of the process that has claimed it."""
    found = {}
    for path in bench.runs.glob("*/.*.claim-*"):
        stage = f"{path.parent.name}/{path.name[1:].rpartition('.claim-')[0]}"
        try:
            found[stage] = json.loads(path.read_bytes() or "{}").get("process", 0)
        except FileNotFoundError:  # released in the meantime
            continue
    return found


# Cells one by one


def test_cells_are_counted_for_the_shell(make) -> None:
    bench = make()
    counted = run("sweep", bench.spec, "--cells")
    assert (counted.stdout, counted.stderr) == ("4\n", "")
    assert json.loads(run("sweep", bench.spec, "--cells", "--json").stdout) == {"cells": CELLS}
    listed = run("sweep", bench.spec, "--dry-run").stdout
    assert [line.split("│")[1].strip() for line in listed.splitlines() if "│" in line] == ["0", "1", "2", "3"]
    assert not bench.runs.exists()


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (("--cell", "4"), "--cell 4: the sweep has 4 cells; give one from 0 to 3", 2),
        (("--cell", "0", "--jobs", "2"), "--cell and --jobs cannot be combined", 2),
        (("--cells", "--dry-run"), "--cells and --dry-run cannot be combined", 2),
        (("--jobs", "gpus"), "sweep.jobs is gpus, but torch finds no GPU here", 1),
        (("--set", "sweep.jobs=0"), "sweep.jobs: 0 is neither a positive integer nor gpus", 2),
        (("--set", f"sweep.jobs={1 << 63}"), f"sweep.jobs: {1 << 63} is neither a positive integer nor gpus", 2),
        (("--set", "sweep.jobs=cpus"), "sweep.jobs: 'cpus' is neither a positive integer nor gpus", 2),
        (("--set", "sweep.backend=loky"), "'loky' is not allowed; choose one of 'local', 'dask', 'ray'", 2),
        (("--set", "sweep.backend=dask"), "sweep.backend is dask, but its scheduler is not given; use --set sweep.", 1),
        (("--set", "sweep.backend=dask", "--jobs", "gpus"), "gpus is for the GPUs of one machine", 2),
    ],
)
def test_an_impossible_request_gives_one_line(
    arguments, line: str, code: int, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    if "sweep.backend=dask" in arguments:
        pytest.importorskip("distributed", reason="dask is not installed")
    bench = make()
    assert line in told(run("sweep", bench.spec, *arguments), code)
    assert not bench.runs.exists()


def test_cells_run_one_by_one_give_the_same_table_and_the_last_writes_it(make, swept: Bench) -> None:
    bench = make()
    said = []
    for number in (3, 0, 1):  # cell 3 also trains the source model that is cell 2
        result = run("sweep", bench.spec, "--cell", number)
        assert result.exit_code == 0, result.stderr
        assert ("source-only" in result.stdout) == (number == 1)
        assert f"cell {number} of 4: {CELLS[number]}" in result.stderr
        assert not (bench.runs / "results.csv").exists() or number == 1
        said.append(result.stderr)
        if number == 3:
            assert stages(bench) == ["seed-1/adapt-jaffe-dann", "seed-1/source"]
            assert f"2 cells remain, the first is {CELLS[0]}" in result.stderr
    assert f"{CELLS[1]} remains" in said[1] and "fercli evaluate -c" in said[1]
    assert "results.csv" in said[2]
    assert_same_sweep(swept, bench)
    document = json.loads(run("sweep", bench.spec, "--cell", 2, "--json").stdout)
    assert document["missing"] == [] and len(document["entries"]) == 4
    assert not claims(bench)


def test_the_json_output_lists_the_remaining_cells(make) -> None:
    bench = make(("seed-0/source",))
    document = json.loads(run("sweep", bench.spec, "--cell", 0, "--json").stdout)
    assert document == {"cell": 0, "title": CELLS[0], "left": CELLS[1:]}


def test_a_sweep_of_only_source_only(make, swept: Bench) -> None:
    bench = make(("seed-0/source",), {"sweep.methods": ["source-only"], "sweep.seeds": [0]})
    assert run("sweep", bench.spec, "--cells").stdout == "1\n"
    assert run("sweep", bench.spec, "--cell", 0, "--quiet").exit_code == 0
    (entry,) = results(bench)["entries"]
    assert entry["method"] == "source-only"


def test_a_failing_cell_is_reported_and_the_others_continue(make) -> None:
    ruined = {"method": "dann", "lr": 1e30, "discriminator_lr": 1e30, "clip_norm": None}
    bench = make(("seed-0/source",), {"sweep.methods": {"ruined": ruined, "safn": None}, "sweep.seeds": [0]})
    line = run("sweep", bench.spec, "--cell", 1, "--quiet")
    assert line.exit_code == 1
    assert line.stderr.startswith("error: seed-0 ruined -> jaffe: ") and "not finite" in line.stderr
    assert run("sweep", bench.spec, "--cell", 2, "--quiet").exit_code == 0
    assert not claims(bench) and not (bench.runs / "results.csv").exists()
    # The last cell writes the table even if it fails.
    assert run("sweep", bench.spec, "--cell", 1, "--quiet").exit_code == 1
    assert [cell["method"] for cell in results(bench)["missing"]] == ["ruined"]


@pytest.mark.parametrize("step", [{}, STEP], ids=["sbatch", "srun"])
def test_a_task_of_a_slurm_array_is_one_process(step, make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SLURM, "SLURM_ARRAY_TASK_ID": "0", **step}.items():
        monkeypatch.setenv(name, value)
    bench = make(("seed-0/source",))
    assert run("sweep", bench.spec, "--cell", 0, "--quiet").exit_code == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2")
    assert "start it once, without torchrun or srun" in told(run("sweep", bench.spec, "--cell", 0))


def test_a_stopped_cell_saves_releases_its_claim_and_resumes(make, swept: Bench, start) -> None:
    bench = make((*SOURCES, "seed-1/adapt-jaffe-dann"), SAVING)
    process = start(bench, "--cell", "1", **SLURM, **STEP, SLURM_ARRAY_TASK_ID="1")
    until((bench.runs / "seed-0/adapt-jaffe-dann/last.ckpt").exists, process)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    assert not claims(bench)
    assert code in (0, 130), process.communicate()
    if code:  # otherwise it was in its last step
        assert "error: stopped; finished work is saved in" in process.communicate()[1]
    assert run("sweep", bench.spec, "--cell", 1, "--quiet").exit_code == 0
    assert_same_sweep(swept, bench)


#: A sweep that receives SIGTERM while a given function runs.
_STOPPED_IN = """
import importlib, os, signal, sys
from fercli.cli import main
module, name = sys.argv[1].split(":")
module = importlib.import_module(module)
function = getattr(module, name)
def stopped(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return function(*arguments)
setattr(module, name, stopped)
main(["sweep", sys.argv[2], "--quiet"])
"""


@pytest.mark.parametrize(("function", "code"), [("fercli.sweep.plan:plan", 130), ("fercli.sweep.aggregate:gather", 0)])
def test_sigterm_does_not_interrupt_planning_or_writing_of_results(function: str, code: int, make) -> None:
    bench = make(("seed-0/source", "seed-0/adapt-jaffe-dann"), {"sweep.seeds": [0]})
    done = subprocess.run([sys.executable, "-c", _STOPPED_IN, function, bench.spec], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert (bench.runs / "results.csv").exists() == (code == 0)


# Finished stages


def test_more_epochs_are_trained_and_fewer_epochs_change_nothing(make) -> None:
    bench = make(("seed-0/source", "seed-0/adapt-jaffe-dann"), {"sweep.seeds": [0]})
    last = bench.runs / "seed-0/adapt-jaffe-dann/last.ckpt"

    def epochs(count: int) -> int:
        result = run("sweep", bench.spec, "--quiet", "--set", f"adapt.epochs={count}")
        assert result.exit_code == 0, result.stderr
        return checkpoint.load(last)["epoch"]

    assert epochs(EPOCHS + 1) == EPOCHS + 1
    before = last.stat().st_mtime_ns
    assert epochs(EPOCHS) == EPOCHS + 1 and last.stat().st_mtime_ns == before


def test_a_finished_stage_is_recognised_by_its_folder(make) -> None:
    bench = make(("seed-0/source", "seed-0/adapt-jaffe-dann"), {"sweep.seeds": [0]})
    folder = bench.runs / "seed-0/adapt-jaffe-dann"
    record = json.loads((folder / "environment.json").read_text())
    assert record["trained_to"] == {"epoch": EPOCHS, "epochs": EPOCHS, "patience": None}

    def left(changes: dict, **trained_to: int | None) -> bool:
        other = {key: value for key, value in record.items() if key != "trained_to"}
        other |= {"trained_to": {**record["trained_to"], **trained_to}} if trained_to else {}
        (folder / "environment.json").write_text(json.dumps(other))
        cells = plan(parse(merge(yaml.safe_load(bench.spec.read_text()), changes)))
        return cells[1] in unfinished(cells)

    assert not left({}) and left({"adapt.epochs": EPOCHS + 1})  # written by an earlier version: judged by its log
    assert left({"adapt.epochs": EPOCHS + 1}, epoch=EPOCHS) and not left({"adapt.epochs": 1}, epoch=EPOCHS)
    assert not left({}, epoch=1)  # ended early by a safeguard: one expression had taken over
    early = {"epoch": 1, "epochs": EPOCHS, "patience": 1}
    assert not left({"adapt.patience": 1}, **early)
    assert left({"adapt.patience": 2}, **early) and left({}, **early)
    assert left({"adapt.lr": 0.001}, epoch=EPOCHS) and not left({}, epoch=EPOCHS)
    (folder / "best.ckpt").unlink()
    assert left({}, epoch=EPOCHS)


@pytest.mark.slow
def test_four_cells_at_once_with_one_of_them_killed(make, swept: Bench, start) -> None:
    bench = make(changes=SAVING)
    cells = [start(bench, "--cell", str(number), **SLURM, SLURM_ARRAY_TASK_ID=str(number)) for number in range(4)]
    until((bench.runs / "seed-1/adapt-jaffe-dann/last.ckpt").exists, cells[3])
    cells[3].kill()
    said = [ended(process) for process in cells[:3]]
    assert any("waiting for the source model of seed-" in text for text in said)
    assert set(claims(bench)) == {"seed-1/adapt-jaffe-dann"}
    assert checkpoint.load(bench.runs / "seed-1/adapt-jaffe-dann/last.ckpt")["step"] > 0
    assert not (bench.runs / "results.csv").exists()
    again = ended(start(bench, "--cell", "3"))
    assert f"{CELLS[3]}: process {cells[3].pid} on " in again and "is gone; taking over its work" in again
    assert_same_sweep(swept, bench)
    assert not claims(bench)


# Sweeps at once


@pytest.mark.slow
def test_two_sweeps_share_the_work(make, swept: Bench, start) -> None:
    bench = make()
    one = start(bench)
    until(lambda: claims(bench).get("seed-0/source"), one)
    two = start(bench)
    said = [ended(one), ended(two)]
    assert any("the work is shared with other processes" in text for text in said), said
    assert_same_sweep(swept, bench)
    assert not claims(bench)


@pytest.mark.slow
def test_a_killed_worker_affects_only_its_own_cell(make, swept: Bench, start) -> None:
    slow = {"seed-0/adapt-jaffe-dann": 200}
    bench = make(SOURCES, {"adapt.steps_per_epoch": slow["seed-0/adapt-jaffe-dann"], "adapt.epochs": 1})
    process = start(bench, "--jobs", "2")
    until(lambda: claims(bench).get("seed-0/adapt-jaffe-dann"), process)
    os.kill(claims(bench)["seed-0/adapt-jaffe-dann"], signal.SIGKILL)
    said = ended(process, 1)
    assert "1 of 4 cells failed:" in said
    assert f"{CELLS[1]}: a worker process was killed, probably because memory ran out" in said
    assert "--workers" not in said
    assert [entry["method"] for entry in results(bench)["entries"]].count("dann") == 1
    ended(start(bench, "--jobs", "2"))
    assert results(bench)["missing"] == []


@pytest.mark.slow
def test_a_sweep_waits_for_a_command_in_a_stage_s_folder_and_for_a_claim(make, swept: Bench, start) -> None:
    bench = make((*SOURCES, "seed-1/adapt-jaffe-dann"))
    folder = bench.runs / "seed-0/adapt-jaffe-dann"
    folder.mkdir()
    with only_one(folder, "adapt"):
        process = start(bench, "--cell", "1")
        line = next(line for line in process.stderr if "waiting for" in line)
        assert f"another fercli adapt is running in {folder}" in line
    ended(process)
    assert_same_sweep(swept, bench)
    shutil.rmtree(folder)
    with take(folder):
        process = start(bench)
        line = next(line for line in process.stderr if "is working on it" in line)
        assert f"{CELLS[1]}: process {os.getpid()} on " in line
    ended(process)
    assert_same_sweep(swept, bench)


# A cluster


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_the_same_table(make, swept: Bench) -> None:
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    bench = make()
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        where = ("--set", "sweep.backend=dask", "--set", f"sweep.cluster={cluster.scheduler_address}")
        result = run("sweep", bench.spec, *where)
    assert result.exit_code == 0, result.stderr
    assert f"dask cluster {cluster.scheduler_address}: 2 worker threads" in result.stderr
    assert_same_sweep(swept, bench)
    assert not claims(bench)


# One GPU a worker


@pytest.mark.parametrize(
    ("visible", "count", "named"),
    [
        (None, 3, ["0", "1", "2"]),
        ("", 2, ["0", "1"]),
        ("3,1", 2, ["3", "1"]),
        ("GPU-8932f937, GPU-be9d32ff", 2, ["GPU-8932f937", "GPU-be9d32ff"]),
        ("0,1,-1,2", 2, ["0", "1"]),
        ("MIG-a,MIG-GPU-b/1/0", 1, ["MIG-a", "MIG-GPU-b/1/0"]),
    ],
)
def test_each_worker_gets_a_different_gpu(
    visible: str | None, count: int, named: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert devices.one_gpu_each() == [{"CUDA_VISIBLE_DEVICES": name} for name in named]


def test_worker_processes_see_one_gpu_each_before_they_load_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes, each called once: none gets a second call before all have their first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,1,MIG-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    spec = parse(merge({}, {"sweep": {"methods": ["dann"], "jobs": "gpus"}, "data.source": "a", "data.targets": ["b"]}))
    asked = (
        "(__import__('time').sleep(1.5), __import__('os').getpid(), __import__('os').environ['CUDA_VISIBLE_DEVICES'], "
        "'torch' in __import__('sys').modules)[1:]"
    )
    pool, _ = _workers(spec, most=9)
    with pool:
        told_ = [answer for _, answer in pool.as_completed(eval, range(3), lambda _: (asked,))]
    assert sorted(device for _, device, _ in told_) == ["1", "GPU-a", "MIG-b"]
    assert len({process for process, _, _ in told_}) == 3
    assert not any(loaded for _, _, loaded in told_)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,1,MIG-b"
