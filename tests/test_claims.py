"""Claims of a sweep's work, with real processes: only one gets a claim, and only dead claims are taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fercli.sweep import claims
from fercli.sweep.claims import Watch, take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

#: Heartbeat intervals short enough for tests.
BEAT_S, DEAD_S = 0.1, 2.0

_HOLD = """
import sys, time
from pathlib import Path
from fercli.sweep import claims
claims.BEAT_S, claims.DEAD_S = float(sys.argv[2]), float(sys.argv[3])
with claims.take(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

#: Forked processes that all try to claim one stage at once. In each round they start together, and those that get the
#: claim hold it until all have tried. Prints how many got it in each round.
_AT_ONCE = """
import json, multiprocessing, os, sys
from pathlib import Path
from fercli.sweep.claims import Watch, take
folder, rounds, takers, left = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer.read()
fork = multiprocessing.get_context("fork")
start, tried, wins = fork.Barrier(takers), fork.Barrier(takers), fork.Array("i", rounds)
def work():
    for number in range(rounds):
        stage = folder / str(number) / "adapt-jaffe"
        if left and start.wait(60) == 0:
            stage.parent.mkdir()
            stage.with_name(".adapt-jaffe.claim-3").write_bytes(left)
        start.wait(60)
        claim = take(stage)
        if claim is not None:
            with wins.get_lock():
                wins[number] += 1
        tried.wait(60)
        if claim is not None:
            claim.__exit__()
processes = [fork.Process(target=work) for _ in range(takers)]
[process.start() for process in processes]
[process.join() for process in processes]
print(json.dumps({"wins": list(wins), "codes": [process.exitcode for process in processes]}))
"""

#: Forked processes that repeatedly claim, hold and release one stage. Some are killed while they hold it, and replaced.
#: The holder creates a file that must not exist yet. Prints how often each happened.
_IN_TURN = """
import json, multiprocessing, os, random, signal, sys, time
from pathlib import Path
from fercli.sweep.claims import take
stage, inside, until = Path(sys.argv[1]) / "source", Path(sys.argv[1]) / "inside", time.monotonic() + float(sys.argv[2])
fork = multiprocessing.get_context("fork")
held, twice, killed = fork.Value("i", 0), fork.Value("i", 0), fork.Value("i", 0)
def work(seed):
    draw = random.Random(seed)
    while time.monotonic() < until:
        claim = take(stage)
        if claim is None:
            continue
        try:
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            twice.value += 1
        held.value += 1
        time.sleep(draw.uniform(0, 0.003))
        inside.unlink(missing_ok=True)
        if draw.random() < 0.2:
            killed.value += 1
            os.kill(os.getpid(), signal.SIGKILL)
        claim.__exit__()
seeds, processes = iter(range(1 << 30)), []
while time.monotonic() < until:
    processes = [process for process in processes if process.is_alive()]
    while len(processes) < 4:
        processes.append(fork.Process(target=work, args=(next(seeds),)))
        processes[-1].start()
    time.sleep(0.01)
[process.join() for process in processes]
print(json.dumps({"held": held.value, "twice": twice.value, "killed": killed.value}))
"""


def script(text: str, *arguments: object, **how) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=150, check=True, **how)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_S", BEAT_S)
    monkeypatch.setattr(claims, "DEAD_S", DEAD_S)


@pytest.fixture
def hold(quick) -> Iterator:
    """A function (stage) -> a process that holds its claim until its stdin is closed."""
    processes = []

    def start(stage: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", _HOLD, str(stage), str(BEAT_S), str(DEAD_S)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes.append(subprocess.Popen(command, text=True, **pipes))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def files(stage: Path) -> list[str]:
    return sorted(path.name for path in stage.parent.iterdir())


def altered(stage: Path, **changes: object) -> bytes:
    """Write a claim of this process with changes, and return its content."""
    with take(stage):
        (path,) = stage.parent.iterdir()
        content = json.dumps({**json.loads(path.read_bytes()), **changes}).encode()
    path.write_bytes(content)
    return content


def test_a_claim_excludes_others_until_it_is_released(tmp_path: Path, hold) -> None:
    stage = tmp_path / "seed-0/source"
    process = hold(stage)
    assert files(stage) == [".source.claim-1"]
    assert take(stage) is None
    found = Watch().look(stage)
    assert f"process {process.pid} on " in found.holder and not found.left and not found.dead
    with take(stage.with_name("adapt-jaffe")):  # another stage is free
        process.communicate("")
        assert files(stage) == [".adapt-jaffe.claim-1"]
    with take(stage) as claim:
        assert claim is not None and files(stage) == [".source.claim-1"]
    assert files(stage) == []


def test_the_slurm_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    with take(tmp_path / "source"):
        assert Watch().look(tmp_path / "source").holder.endswith(", job 70_3")


def test_a_killed_holder_is_recognised_at_once_and_its_claim_taken_over(tmp_path: Path, hold) -> None:
    stage = tmp_path / "source"
    process = hold(stage)
    process.kill()
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2][:3]:
        time.sleep(0.01)
    found = Watch().look(stage)  # its exit status has not been collected yet
    assert not found.holder and f"process {process.pid} on " in found.left
    process.wait()
    assert Watch().look(stage) == found
    with take(stage) as claim:
        assert claim is not None and files(stage) == [".source.claim-2"]
    assert files(stage) == []


def test_a_suspended_holder_is_dead_after_a_while_and_ends_when_it_wakes(tmp_path: Path, hold) -> None:
    stage, watch = tmp_path / "source", Watch()
    process = hold(stage)
    until = time.monotonic() + 3 * DEAD_S
    while time.monotonic() < until:  # a live claim is never reported dead
        assert watch.look(stage).holder
        time.sleep(BEAT_S / 2)
    process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    while (found := watch.look(stage)).holder:
        assert time.monotonic() - begun < 60
        assert take(stage, found.dead) is None
        time.sleep(BEAT_S / 2)
    assert time.monotonic() - begun > DEAD_S - 2 * BEAT_S
    assert take(stage) is None  # only a process that has watched it can take it over
    with take(stage, found.dead) as claim:
        assert claim is not None and files(stage) == [".source.claim-2"]
        process.send_signal(signal.SIGCONT)
        # Its stdin stays open; if it ended, the process would release the claim, perhaps before its next heartbeat.
        assert process.wait(timeout=30) == 1
        assert "was taken over" in process.stderr.read()
        assert files(stage) == [".source.claim-2"]


def test_a_claim_whose_heartbeat_resumes_is_not_taken_over(tmp_path: Path, hold) -> None:
    stage, watch = tmp_path / "source", Watch()
    process = hold(stage)
    process.send_signal(signal.SIGSTOP)
    while (found := watch.look(stage)).holder:
        time.sleep(BEAT_S / 2)
    before = stage.with_name(".source.claim-1").read_bytes()
    process.send_signal(signal.SIGCONT)
    while stage.with_name(".source.claim-1").read_bytes() == before:
        time.sleep(BEAT_S / 4)
    assert found.dead == [before] and take(stage, found.dead) is None
    assert process.poll() is None and files(stage) == [".source.claim-1"]


def test_time_between_looks_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a suspended process or a hung disk the first look shows old content, even if the holder is alive."""
    stage, watch, now = tmp_path / "source", Watch(), [0.0]
    altered(stage, where="elsewhere", host="node7")
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    looks = 0
    while watch.look(stage).holder:
        looks, now[0] = looks + 1, now[0] + 3600
    assert looks == int(claims.DEAD_S / claims.BEAT_S) + 1


@pytest.mark.parametrize("days", [-400, 400])
def test_clocks_of_different_machines_are_not_compared(days: int, tmp_path: Path) -> None:
    stage = tmp_path / "source"
    altered(stage, where="elsewhere", begun="1970-01-01 00:00:00 +0000")
    path = stage.with_name(".source.claim-1")
    os.utime(path, (time.time() + 86400 * days,) * 2)
    assert Watch().look(stage).holder and take(stage) is None


def test_process_numbers_count_only_on_their_own_machine_and_with_their_start_time(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for changes, dead in (
        ({"process": gone.pid}, True),
        ({"process": gone.pid, "where": "another boot"}, False),
        ({"process": gone.pid, "where": ""}, False),
        ({"started": "1"}, True),  # the number now belongs to another process
        ({}, False),
        ({"process": 1}, True),
        ({"process": "x"}, False),
    ):
        stage = tmp_path / f"{len(list(tmp_path.iterdir()))}/source"
        content = altered(stage, **changes)
        assert Watch().look(stage).dead == ([content] if dead else []), changes
        claim = take(stage)
        assert (claim is not None) == dead, changes
        if claim is not None:
            claim.__exit__()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b'{"host": 5}'])
def test_a_truncated_claim_is_dead_only_after_a_while(content: bytes, tmp_path: Path, quick) -> None:
    stage, watch = tmp_path / "source", Watch()
    stage.with_name(".source.claim-1").write_bytes(content)
    assert take(stage) is None
    begun = time.monotonic()
    while (found := watch.look(stage)).holder:
        assert found.holder == "an unknown process"
        time.sleep(BEAT_S / 2)
    assert time.monotonic() - begun > DEAD_S - 2 * BEAT_S
    with take(stage, found.dead) as claim:
        assert claim is not None


@pytest.mark.parametrize("left", [False, True], ids=["free", "left by a dead process"])
def test_exactly_one_of_several_simultaneous_claims_succeeds(left: bool, tmp_path: Path, hold) -> None:
    content = b""
    if left:
        process = hold(tmp_path / "dead/source")
        process.kill()
        process.wait()
        content = (tmp_path / "dead/.source.claim-1").read_bytes()
    done = json.loads(script(_AT_ONCE, tmp_path, 40, 6, input=content).stdout)
    assert done == {"wins": [1] * 40, "codes": [0] * 6}
    assert not list(tmp_path.glob("[0-9]*/.*"))


def test_no_two_processes_hold_a_claim_at_once_while_some_are_killed(tmp_path: Path) -> None:
    done = json.loads(script(_IN_TURN, tmp_path, 4).stdout)
    assert done["twice"] == 0, done
    assert done["held"] > 50 and done["killed"] > 5, done


def test_a_folder_that_cannot_be_created_gives_one_line(tmp_path: Path) -> None:
    from fercli.errors import FercliError

    (tmp_path / "seed-0").write_text("a file in the way")
    with pytest.raises(FercliError, match=r"cannot create .*seed-0.*; set paths\.runs"):
        take(tmp_path / "seed-0/source")
