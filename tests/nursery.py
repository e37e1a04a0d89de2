"""Commands in separate processes that start at once, because they are forked from a process with everything loaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

#: For each line it reads, {"arguments", "folder", "output", "file_size"}, it forks a process that leads its own
#: session. Loading everything for each of thirty kills would take minutes. It prints the process's number and, after
#: another line, its exit status.
_PROGRAM = """
import faulthandler, json, os, resource, signal, sys
import fercli.engine.stages, fercli.sweep, fercli.sweep.aggregate, fercli.predict.run, fercli.export.write
from fercli.__main__ import run
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(asked["folder"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(asked["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(nothing, 0), os.dup2(output, 1), os.dup2(output, 2)
        faulthandler.register(signal.SIGUSR1)
        if asked["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_size"],) * 2)
        sys.argv = ["fercli", *asked["arguments"]]
        try:
            run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # exit handlers of torch and joblib may hang in a forked process
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts one command at a time. Commands that run side by side each need their own nursery."""

    def __init__(self, folder: Path):
        self._output = folder / "output"
        path = os.pathsep.join(part for part in sys.path if part)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def start(self, *arguments: str | Path, folder: Path = Path(), file_size: int = 0) -> int:
        """Start a command.

        Args:
            arguments: the arguments after ``fercli``.
            folder: the command's working folder; by default the caller's.
            file_size: the largest size in bytes of a file that it may write; 0 is unlimited.

        Returns:
            The number of its process, which is also that of its session.
        """
        asked = {"arguments": list(map(str, arguments)), "folder": str(folder.absolute())}
        asked |= {"output": str(self._output), "file_size": file_size}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        self._number = int(self._process.stdout.readline())
        return self._number

    def end(self, within_s: float = 120) -> tuple[int, str]:
        """Wait for the command. Returns its exit code (-9 if it was killed) and its output.

        A command that has not ended after `within_s` seconds is killed. Its last output then shows where it hung.
        """
        deadline = time.monotonic() + within_s
        while not ended(self._number) and time.monotonic() < deadline:
            time.sleep(0.002)
        if not ended(self._number):
            os.kill(self._number, signal.SIGUSR1)
            time.sleep(0.5)
            os.killpg(self._number, signal.SIGKILL)
        print(file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        return code, self._output.read_text(errors="replace")

    def close(self) -> None:
        """End the nursery."""
        self._process.stdin.close()
        self._process.wait(30)


class Alone:
    """Starts commands as a shell does, which takes seconds. For commands that start processes themselves."""

    def __init__(self, folder: Path):
        self._output = folder / "output"

    def start(self, *arguments: str | Path, folder: Path = Path()) -> int:
        """See `Nursery.start`."""
        path = os.pathsep.join(part for part in sys.path if part)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fercli", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder.absolute(),
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                start_new_session=True,
            )
        return self._process.pid

    def end(self, within_s: float = 120) -> tuple[int, str]:
        """See `Nursery.end`."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
            return code, f"(did not end within {within_s} s) {self._output.read_text(errors='replace')}"
        return code, self._output.read_text(errors="replace")


def ended(number: int) -> bool:
    """Whether a process has ended, whether or not it has been waited for."""
    return _stat(number)[0] in ("", "Z")


def left_of(session: int, within_s: float = 0) -> list[int]:
    """The processes of a session that have not ended after `within_s` seconds at most."""
    deadline = time.monotonic() + within_s
    while True:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        left = [n for n in numbers if _stat(n)[1] == session and not ended(n)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.05)


def _stat(number: int) -> tuple[str, int]:
    """The state and the session of a process; ("", 0) if it does not exist."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    return fields[0], int(fields[3])


def send(number: int, sent: signal.Signals, whole_session: bool) -> None:
    """Send a signal to a process, or to all of its session, as a terminal does."""
    with suppress(ProcessLookupError):
        (os.killpg if whole_session else os.kill)(number, sent)
