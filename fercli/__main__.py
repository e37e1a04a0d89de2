"""``python -m fercli``, and the command `fercli` itself.

Everything is imported inside `run`, so that Ctrl-C while modules load, and a module that cannot be loaded, leave one
line too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import traceback


def run() -> None:
    """Run the command line; whatever goes wrong leaves one line, and with ``--debug`` the trace."""
    atexit.register(_end_in_silence)  # the first that is registered is the last that runs
    _open_streams()
    _leave_deleted_folder()
    _heed_signals()
    try:
        from fercli.cli import main

        main(prog_name="fercli")
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        _leave("stopped", 130)
    except Exception as problem:
        if "--debug" in sys.argv:
            raise
        _leave(_told(problem), 1)
    finally:
        # Python's last search for garbage takes a second or two once torch is loaded, and the process ends anyway.
        gc.freeze()


def _end_in_silence() -> None:
    """Keep what libraries print while the interpreter ends from stderr: it is nothing that a user can put right.

    Under Python 3.14 triton counts, in hundreds of lines, the objects that are left where no garbage was searched for.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _open_streams() -> None:
    """Open what the shell has closed of stdin, stdout and stderr (``<&-``, ``>&-``, ``2>&-``).

    Else the next file that is opened would get its number: a store would be taken for stderr, and be written to. An
    opened stdin is empty and an opened stderr takes all. An opened stdout refuses whatever is printed, so that results
    that are lost are reported, as those of a full disk are.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        descriptor = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if descriptor != number:
            try:
                os.fstat(number)
            except OSError:
                descriptor = os.dup2(descriptor, number)
        os.set_inheritable(descriptor, True)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(descriptor, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115, as long as we live


def _leave_deleted_folder() -> None:
    """Work on, with absolute paths, where the working folder has been deleted: Intel's MKL ends such a process.

    The folder gone to has no file of a user's name and takes none, as the deleted one.
    """
    try:
        os.getcwd()
    except OSError:
        with contextlib.suppress(OSError):
            os.chdir("/proc/self/ns")


def _heed_signals() -> None:
    """Let SIGINT and SIGTERM stop this process, and those it starts, also where it was started to ignore them.

    Shells start what a script puts into the background (``&``) with SIGINT ignored, and Python leaves it so: then
    nothing but SIGKILL would end a training, and its last steps would be lost.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def _told(problem: Exception) -> str:
    """The line for an error that no command foresaw.

    A library that cannot be loaded, the system's error, which names a file, or a mistake of ours.
    """
    from fercli.doctor.software import unloadable

    broken = unloadable(problem)
    if broken is not None:
        return f"{broken.check} {broken.found}; to fix it: {broken.fix}"
    if isinstance(problem, OSError) and problem.strerror:
        named = ": ".join(str(part) for part in (problem.filename, problem.strerror) if part)
        return f"{named}; the same command with --debug shows where"
    if isinstance(problem, UnicodeEncodeError):
        # A path of the spec, where names of files are in the terminal's encoding.
        return (
            f"{problem.object!r:.200} has signs that {problem.encoding} lacks, the locale's encoding; set PYTHONUTF8=1"
        )
    where = "".join(f" ({at.filename}:{at.lineno})" for at in traceback.extract_tb(problem.__traceback__)[-1:])
    said = f"{type(problem).__name__}: {' '.join(str(problem).split())}{where}"
    return f"{said}; fercli did not expect this: the same command with --debug shows more"


def _leave(text: str, code: int) -> None:
    try:
        from fercli.console import error

        error(text)
    except Exception:  # rich itself may be what cannot be loaded
        sys.stderr.write(f"error: {text}\n")
    ranks = sys.modules.get("fercli.engine.distributed")
    if ranks is not None:
        ranks.end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
