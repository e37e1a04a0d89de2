"""``python -m fercli``, and the command `fercli` itself.

Everything is imported inside `run`, so that Ctrl-C during imports and a module that fails to import also print one
line.
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
    """Run the command line; any failure prints one line, or the traceback with ``--debug``."""
    atexit.register(_end_in_silence)  # registered first, so it runs last
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
        # Python's final garbage collection takes a second or two once torch is loaded, and the process ends anyway.
        gc.freeze()


def _end_in_silence() -> None:
    """Discard what libraries print to stderr while the interpreter shuts down: no user can act on it.

    Under Python 3.14, triton prints hundreds of lines about objects that were not garbage-collected.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _open_streams() -> None:
    """Reopen stdin, stdout and stderr where the shell has closed them (``<&-``, ``>&-``, ``2>&-``).

    Otherwise the next file opened would get that descriptor number: a store could be mistaken for stderr and written
    to. A reopened stdin is empty, and a reopened stderr discards everything. A reopened stdout rejects every write, so
    that lost results are reported, as they are on a full disk.
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
        setattr(sys, name, open(descriptor, mode, closefd=False, encoding="utf-8"))  # noqa: SIM115, open until the process ends


def _leave_deleted_folder() -> None:
    """Leave a working folder that has been deleted: Intel's MKL ends a process in such a folder.

    Work with absolute paths continues. The folder changed to contains none of the user's files and no file can be
    created in it, just as in the deleted one.
    """
    try:
        os.getcwd()
    except OSError:
        with contextlib.suppress(OSError):
            os.chdir("/proc/self/ns")


def _heed_signals() -> None:
    """Let SIGINT and SIGTERM stop this process and its children, even if it was started with them ignored.

    Shells start a script's background commands (``&``) with SIGINT ignored, and Python keeps that setting. Only
    SIGKILL would then end a training, and its last steps would be lost.
    """
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def _told(problem: Exception) -> str:
    """Return the one-line message for an error that no command handles.

    It is a library that cannot be loaded, an operating-system error (which names a file), or a bug in fercli.
    """
    from fercli.doctor.software import unloadable

    broken = unloadable(problem)
    if broken is not None:
        return f"{broken.check} {broken.found}; to fix it: {broken.fix}"
    if isinstance(problem, OSError) and problem.strerror:
        named = ": ".join(str(part) for part in (problem.filename, problem.strerror) if part)
        return f"{named}; run the same command with --debug to see where"
    if isinstance(problem, UnicodeEncodeError):
        # A path in the spec, where file names use the locale's encoding.
        return (
            f"{problem.object!r:.200} has characters that the locale's encoding ({problem.encoding}) lacks; "
            "set PYTHONUTF8=1"
        )
    where = "".join(f" ({at.filename}:{at.lineno})" for at in traceback.extract_tb(problem.__traceback__)[-1:])
    said = f"{type(problem).__name__}: {' '.join(str(problem).split())}{where}"
    return f"{said}; this is an unexpected error in fercli: run the same command with --debug for details"


def _leave(text: str, code: int) -> None:
    try:
        from fercli.console import error

        error(text)
    except Exception:  # rich itself may have failed to load
        sys.stderr.write(f"error: {text}\n")
    ranks = sys.modules.get("fercli.engine.distributed")
    if ranks is not None:
        ranks.end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
