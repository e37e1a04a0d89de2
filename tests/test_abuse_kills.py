"""Every long command is stopped at random times, by SIGKILL, SIGTERM and Ctrl-C. The same command then ends as if it
had never been stopped. Nothing is left behind: no temporary file, no process, nothing in /dev/shm."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from abuse import lasting
from conftest import Bench
from nursery import Alone, Nursery, ended, left_of, send
from trained_runs import assert_same_run, assert_same_sweep
from trees import encoded

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

#: Number of stops of each command, and the seed, which is part of the failure message.
STOPS = int(os.environ.get("FERCLI_ABUSE_STOPS", "5"))
SEED = int(os.environ.get("FERCLI_ABUSE_SEED", "14"))
#: Seconds that a command may take to end after a signal (its last write may wait for a busy disk), and seconds that its
#: child processes may take to end after it.
END_S, GONE_S = 60, 5

_LONG = {"adapt.options": {"threshold": 0.3}, "engine.save_every_s": 0}
_SWEEP = {"sweep": {"methods": {"dann": None}, "seeds": [0]}, "engine.save_every_s": 0}


@dataclass(frozen=True)
class Command:
    """A command to stop.

    Attributes:
        arguments: arguments of the command; {spec} and {folder} stand for the bench's.
        needs: parts of a trained bench that must exist before it starts.
        again: arguments added after it was stopped.
        stops: how often it is stopped.
    """

    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    stops: int = STOPS
    changes: tuple = tuple(_LONG.items())


_PREDICT = ("predict", "{folder}/pictures", "--run", "{folder}/runs/tiny", "--jsonl", "a.jsonl", "--csv", "a.csv")
COMMANDS = {
    "prepare": Command(("prepare", "-c", "{spec}"), ("data",)),
    "prepare by two": Command(
        ("prepare", "-c", "{spec}", "--set", "prepare.workers=2", "--set", "prepare.backend=loky"), ("data",), stops=4
    ),
    "train-source": Command(("train-source", "-c", "{spec}")),
    "adapt": Command(("adapt", "-c", "{spec}"), ("runs/tiny/source",)),
    "evaluate": Command(("evaluate", "-c", "{spec}", "--report"), ("runs/tiny/source", "runs/tiny/adapt-jaffe")),
    "predict": Command((*_PREDICT, "--workers", "1"), ("runs/tiny/source", "pictures"), ("--resume",)),
    "predict by two": Command((*_PREDICT, "--workers", "2"), ("runs/tiny/source", "pictures"), ("--resume",), stops=3),
    "sweep": Command(("sweep", "{spec}"), changes=tuple(_SWEEP.items())),
    "export": Command(
        ("export", "{folder}/runs/tiny", "--format", "torch", "--out", "model.pt2"),
        ("runs/tiny/source",),
        ("--force",),
        2,
    ),
    "weights export": Command(
        ("weights", "export", "{folder}/runs/tiny/source", "m.safetensors", "--format", "fercli"),
        ("runs/tiny/source",),
        ("--force",),
    ),
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Bench:
    """A bench with everything that the commands need: data, images, a trained and adapted run. Read only."""
    from fercli.synthetic.domains import STUDIO
    from fercli.synthetic.render import sample

    bench = Bench(tmp_path_factory.mktemp("stocked"), prepared, _LONG)
    shutil.copytree(prepared.parent / "data", bench.folder / "data")
    bench.done("train-source", "--quiet")
    bench.done("adapt", "--quiet")
    pictures = bench.folder / "pictures"
    pictures.mkdir()
    data = [encoded(face.image, "JPEG") for face in sample(STUDIO, 6, 7, range(3))]
    for number in range(60):
        (pictures / f"{number:02d}.jpg").write_bytes(data[number % len(data)])
    return bench


def fresh(command: Command, stocked: Bench, folder: Path) -> Bench:
    bench = Bench(folder, folder / "prepared" if "data" in command.needs else stocked.prepared, dict(command.changes))
    for part in command.needs:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(stocked.folder / part, folder / part)
    (folder / "cwd").mkdir()
    return bench


def compare(name: str, whole: Bench, bench: Bench) -> None:
    """Check that a command left the same results as without a stop."""
    if name == "sweep":
        return assert_same_sweep(whole, bench)
    if name in ("train-source", "adapt"):
        stage = {"train-source": "source", "adapt": "adapt-jaffe"}[name]
        assert_same_run(whole.runs / stage, bench.runs / stage)
        return None
    kept: Callable[[Bench], dict[str, bytes]] = {
        "prepare": lambda b: made(b.folder / "prepared", b),
        "evaluate": lambda b: made(b.runs, b),
    }.get(name.removesuffix(" by two"), lambda b: made(b.folder / "cwd", b))
    one, other = kept(whole), kept(bench)
    assert one.keys() == other.keys()
    assert not [file for file in one if one[file] != other[file]]


def made(folder: Path, bench: Bench) -> dict[str, bytes]:
    """Return every file below a folder, without names of the bench and times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.suffix == ".pt2":  # a zip, whose entries contain the time
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl", ".html", ".csv", ".md"):
            text = lasting(data.decode()).replace(str(bench.folder), "")
            data = re.sub(r'"[0-9a-f]{32,64}"', '"digest"', text).encode()  # of paths, among others
        found[str(path.relative_to(folder))] = b"" if path.suffix == ".html" else data
    return found


def litter(folder: Path) -> list[str]:
    """Return the temporary files left by an interrupted write."""
    return [str(path) for path in folder.rglob("*") if re.search(r"\.(tmp|partial|part)$|^\.(?!lock$)", path.name)]


def answered(command: Command, bench: Bench) -> bool:
    """Return whether a command with --resume was stopped after it had moved its files into place."""
    left = {path.name for path in (bench.folder / "cwd").iterdir()}
    return command.again == ("--resume",) and left == {"a.jsonl", "a.csv"}


def in_shared_memory(number: int) -> list[str]:
    """Return the files of a session's processes in /dev/shm. Python and joblib put the process id in their names."""
    return [name for name in os.listdir("/dev/shm") if re.search(rf"[-_.]{number}[-_.]", name)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_stopped_at_random_ends_the_same(name: str, tmp_path: Path, stocked: Bench, nursery: Nursery) -> None:
    command, draw = COMMANDS[name], random.Random(f"{SEED} {name}")
    starter = Alone(tmp_path) if name.endswith("by two") else nursery

    def start(bench: Bench, stopped: bool) -> int:
        arguments = [a.format(spec=bench.spec, folder=bench.folder) for a in command.arguments]
        return starter.start(*arguments, *(command.again if stopped else ()), folder=bench.folder / "cwd")

    whole = fresh(command, stocked, tmp_path / "whole")
    begun = time.monotonic()
    start(whole, stopped=False)
    code, told = starter.end()
    assert code == 0, told
    lasts = time.monotonic() - begun

    stops, rounds, stopped, bench = 0, 0, False, fresh(command, stocked, tmp_path / "bench-0")
    while stops < command.stops and rounds < 10 * command.stops:
        rounds += 1
        number, begun = start(bench, stopped), time.monotonic()
        delay = draw.uniform(0, lasts)
        sent = draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        group = sent is signal.SIGINT or draw.random() < 0.3
        while time.monotonic() < begun + delay and not ended(number):
            time.sleep(0.001)
        passed = time.monotonic() - begun
        send(number, sent, group)
        code, told = starter.end(END_S)
        about = f"seed {SEED}, {name}, round {rounds}: {sent.name} after {passed:.2f} s of {lasts:.2f}, said {told!r}"
        left = left_of(number, GONE_S)
        for one in left:
            send(one, signal.SIGKILL, False)
        assert not left, f"{len(left)} processes are left; {about}"
        deadline = time.monotonic() + GONE_S
        while in_shared_memory(number) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not in_shared_memory(number), about
        assert code in (0, 130, -sent, 128 + sent), f"exit code {code}; {about}"
        assert "Traceback" not in told and "unexpected error in fercli" not in told, about
        if code == 0 or answered(command, bench):
            compare(name, whole, bench)
            lasts = min(lasts, max(passed, 0.05))
            stopped, bench = False, fresh(command, stocked, tmp_path / f"bench-{rounds}")
        else:
            stops, stopped = stops + 1, True
    assert stops == command.stops
    number = start(bench, stopped)
    code, told = starter.end()
    assert code == 0, f"seed {SEED}, {name}: the last run ended with {code}: {told}"
    assert not left_of(number, GONE_S)
    compare(name, whole, bench)
    assert not litter(bench.folder)
