"""SIGINT and SIGTERM: finish the step, save, exit with 130. A second signal exits at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from fercli.errors import FercliError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Signal by which a parent passes a stop request on to its workers. They may have received it from the terminal too, so
#: it never counts as a second one. Windows has no SIGUSR1; there SIGTERM is used, which ends the process.
PASSED_ON = getattr(signal, "SIGUSR1", signal.SIGTERM)


class Interrupted(FercliError):
    """The user or the scheduler requested a stop, and the state is saved."""

    exit_code = 130


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`, and calls `pass_on` if it is given.

    `PASSED_ON` does the same, however often it arrives. Within another such context, this one takes over the outer
    request on entry, and hands its own request to the outer one on exit.
    """

    def __init__(self, pass_on: Callable[[], None] | None = None) -> None:
        self.requested = False
        self._pass_on = pass_on
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread can set handlers; in other threads signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in {*_SIGNALS, PASSED_ON}}
        outer = self._outer()
        self.requested = outer is not None and outer.requested
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Work that finished before it checked the request leaves it to the outer context, which may start more work.
        outer = self._outer()
        if self.requested and outer is not None:
            outer.requested = True

    def _outer(self) -> StopRequest | None:
        owner = getattr(self._before.get(signal.SIGINT), "__self__", None)
        return owner if isinstance(owner, StopRequest) else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number != PASSED_ON:
            raise KeyboardInterrupt
        self.requested = True
        if self._pass_on is not None:
            self._pass_on()
