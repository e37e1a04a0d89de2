"""SIGINT and SIGTERM: finish the step, save, leave with 130. A second signal leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from fercli.errors import FercliError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: By it a parent passes a request on to its workers. They may have had it from the terminal too, so it never counts as
#: a second one. Windows has no such signal; there it is the one that ends a process.
PASSED_ON = getattr(signal, "SIGUSR1", signal.SIGTERM)


class Interrupted(FercliError):
    """The user or the scheduler asked for a stop and the state is saved."""

    exit_code = 130


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only sets `requested`, and calls `pass_on` if there is one.

    So does `PASSED_ON`, however often it comes. Within another such context it begins as requested where that one is,
    and leaves its own request to it.
    """

    def __init__(self, pass_on: Callable[[], None] | None = None) -> None:
        self.requested = False
        self._pass_on = pass_on
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Handlers can be set in the main thread only; elsewhere signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in {*_SIGNALS, PASSED_ON}}
        outer = self._outer()
        self.requested = outer is not None and outer.requested
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # Work that came to its own end before it looked leaves the request to those who would begin more.
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
