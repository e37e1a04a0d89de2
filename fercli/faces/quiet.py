"""Silence C libraries that print to stderr directly, bypassing Python, and have no setting to prevent it."""

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
    """Redirect file descriptor 2 of this process to the null device within the block.

    May be nested and entered by several threads: the first to enter redirects, the last to leave restores.
    """
    global _inside, _saved
    with _lock:
        _inside += 1
        if _inside == 1:
            _saved = _redirected()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _saved is not None:
                os.dup2(_saved, 2)
                os.close(_saved)


def _redirected() -> int | None:
    """Redirect stderr to the null device; return a copy of the old descriptor, or None if there is no stderr."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError):
        return None
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return saved
