"""Claims: which of several processes, on any machines that share a disk, does a piece of a sweep's work.

A claim is a small file next to a stage's folder, ``.NAME.claim-N``. It holds the claimant (host, process, SLURM job)
and a heartbeat count. The claiming process increments the count every `BEAT_S` seconds and removes the file when it is
done. The lock of the folder itself (`fercli.files.only_one`) also keeps two commands out of one folder, as far as the
disk supports locks. A claim additionally says who is at work and does not outlive its machine. It needs only one thing
of the disk: that exactly one process can create a file (``O_EXCL``, which NFS has supported since version 3).

**When a claim is dead.** Either its process is gone: same machine, same boot, same process namespace, and no process
with that number and start time. Or its content has not changed while this process has watched it for `DEAD_S` seconds.
These are counted by this process's own clock, and a gap between two looks counts for at most `BEAT_S`. So no two clocks
are compared. If this process sleeps or the disk hangs for an hour, the first look afterwards does not mistake a live
claim for a dead one.

**How a claim is taken**, so that exactly one of any number of processes gets it:

1. Read all claims of the stage. If one is alive, stop.
2. Create the file with the next number, using ``O_EXCL``. If it exists, stop: another process was faster.
3. Read all claims again (NFS rereads a folder in which its client has just created a file). If there is a claim that
   was not found dead in step 1 with exactly this content, remove this process's file and stop.
4. Remove the dead claims. The claim is held.

Suppose X and Y hold a stage at once, and X created its file first. When Y reached step 3, X's file existed, since X
holds the stage. So Y found that very claim dead in step 1. But X is alive and its content is unique: a contradiction.
All processes that find the same dead claim try the same number in step 2, so one of them wins at once. A process that
dies between two steps leaves a dead claim.

**A live process that is taken for dead** (suspended for minutes, or cut off from the disk) finds at its next heartbeat
that its file is gone. It exits at once, before it writes any more. Until then the folder's lock keeps the other out.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fercli import console
from fercli.errors import FercliError
from fercli.files import beside, cannot_write, to_disk

#: Seconds between heartbeats, and seconds without one after which a claim is dead.
BEAT_S, DEAD_S = 10.0, 120.0
#: Error numbers for a file that another machine has removed, on NFS too.
_GONE = (errno.ENOENT, errno.ESTALE)
_NUMBER = re.compile(r"\.claim-([0-9]{1,9})$")


class Claim:
    """A claim that this process holds: a context manager that releases it. Made by `take`."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self._path, self._about = path, about
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="fercli-claim", daemon=True)
        self._thread.start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_ours():
                self._path.unlink()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_S):
            try:
                ours = self._is_ours()
                if ours:
                    self._about["beats"] += 1
                    with self._path.open("r+b") as file:
                        file.write(_content(self._about))
                        to_disk(file)
            except OSError as problem:
                if problem.errno not in _GONE:  # the disk is full or unavailable for the moment
                    continue
                ours = False
            if not ours and not self._done.is_set():
                console.error(
                    f"{self._path} was taken over: this process was inactive for more than {DEAD_S:.0f} s, and another "
                    "process continues its work"
                )
                os._exit(1)

    def _is_ours(self) -> bool:
        return _about(self._path.read_bytes()).get("token") == self._about["token"]


def take(stage: Path, dead: Collection[bytes] = ()) -> Claim | None:
    """Claim the work in a stage's folder, which need not exist.

    Args:
        dead: contents of dead claims, from `Watch.look`. Claims whose process is gone are recognised here.

    Returns:
        The claim, or None if another process has it.

    Raises:
        FercliError: the claim cannot be written.
    """
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(
            f"cannot create {stage.parent}: {problem.strerror}", "set paths.runs to a writable folder"
        ) from None
    found = _claims(stage)
    if not all(content in dead or _is_gone(content) for content in found.values()):
        return None
    number = 1 + max((int(_NUMBER.search(path.name)[1]) for path in found), default=0)
    path, about = stage.with_name(f"{_start(stage)}{number}"), _myself()
    try:
        with path.open("xb") as file:
            file.write(_content(about))
            to_disk(file)
    except FileExistsError:
        return None
    except OSError as problem:
        raise cannot_write(path, problem) from None
    others = {other: content for other, content in _claims(stage).items() if other != path}
    if any(found.get(other) != content for other, content in others.items()):
        path.unlink(missing_ok=True)
        return None
    for other in others:
        other.unlink(missing_ok=True)
    return Claim(path, about)


class Look(NamedTuple):
    """The state of a stage's claims, as a `Watch` found it.

    Attributes:
        holder: the process that holds the claim, in words; empty if none does.
        left: the process that held it and died, in words.
        dead: contents of the dead claims, for `take`.
    """

    holder: str
    left: str
    dead: list[bytes]


class Watch:
    """Remembers for how long other processes' claims have not changed, by this process's clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float, float]] = {}

    def look(self, stage: Path) -> Look:
        """Look at a stage's claims. Call it repeatedly."""
        alive, dead = [], []
        for path, content in _claims(stage).items():
            now = time.monotonic()
            before, still, looked = self._seen.get(path, (None, 0.0, now))
            still = still + min(now - looked, BEAT_S) if before == content else 0.0
            self._seen[path] = (content, still, now)
            (dead if still > DEAD_S or _is_gone(content) else alive).append(content)
        return Look("; ".join(map(_words, alive)), "; ".join(map(_words, dead)), dead)


def _start(stage: Path) -> str:
    """The prefix of the file names of a stage's claims."""
    return beside(stage.with_name(f".{stage.name}"), ".claim-").name


def _claims(stage: Path) -> dict[Path, bytes]:
    """The claims of a stage and their contents. A claim that is just being created may be empty."""
    start, found = _start(stage), {}
    try:
        names = os.listdir(stage.parent)
    except OSError:
        return {}
    for name in sorted(names):
        if name.startswith(start) and _NUMBER.search(name):
            path = stage.with_name(name)
            try:
                found[path] = path.read_bytes()
            except OSError as problem:  # released in the meantime
                if problem.errno not in _GONE:
                    raise
    return found


def _myself() -> dict[str, Any]:
    environment = os.environ
    job = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
    task = environment.get("SLURM_ARRAY_TASK_ID", "")
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "job": f"{job}_{task}" if job and task else job,
        "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "where": _where(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
        "beats": 0,
    }


def _content(about: dict[str, Any]) -> bytes:
    """The content of a claim. Its length does not depend on the count, so each heartbeat overwrites the last."""
    return json.dumps({**about, "beats": f"{about['beats']:012d}"}).encode()


def _about(content: bytes) -> dict[str, Any]:
    try:
        about = json.loads(content)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _words(content: bytes) -> str:
    about = _about(content)
    if "process" not in about:
        return "an unknown process"
    job = f", job {about['job']}" if about.get("job") else ""
    return console.brief(f"process {about['process']} on {about.get('host')}{job}")


def _is_gone(content: bytes) -> bool:
    """Whether a claim's process is known to be gone. Known only where its process number has the same meaning here."""
    about = _about(content)
    process = about.get("process")
    if not about.get("where") or about["where"] != _where() or not about.get("started") or not isinstance(process, int):
        return False
    started = _started(process)
    if started is not None:
        return started != about["started"]
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _state(process) in ("Z", "X")


@lru_cache(maxsize=1)
def _where() -> str:
    """Identifies the machine, its boot and the process namespace; empty if the system does not provide them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(process: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on (see proc(5)); empty if there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _state(process: int) -> str:
    return next(iter(_stat(process)), "")


def _started(process: int) -> str | None:
    """When a process started, in ticks since boot; None if it does not exist or has ended."""
    fields = _stat(process)
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X", "x") else None
