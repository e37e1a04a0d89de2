"""Silence where C libraries print to stderr, past Python and past any setting of their own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_saved: int | None = None


@contextmanager
def mute_stderr() -> Iterator[None]:
    """Send file descriptor 2 of this process to nowhere within the block.

    May be nested and entered by several threads: the first to enter redirects, the last to leave restores.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside, _saved
    with _lock:
        _inside += 1
        if _inside > 1:
            return
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            _saved = os.dup(2)
        except (OSError, ValueError):
            _saved = None  # there is no stderr to be silenced
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def _leave() -> None:
    global _inside, _saved
    with _lock:
        _inside -= 1
        if _inside == 0 and _saved is not None:
            os.dup2(_saved, 2)
            os.close(_saved)
            _saved = None
