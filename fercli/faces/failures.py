"""Temporary failures (too little memory, a disk error), as opposed to faults of the image itself.

A store keeps the reason why an image was rejected. A temporary failure must never become such a reason.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fercli.errors import FercliError, TransientError

_NO_MEMORY = (
    "cannot be processed just now (too little memory); free some memory or use fewer workers (fercli prepare --set "
    "prepare.workers=1, fercli predict --workers 1) and run the same command again"
)
#: Faults of the file itself, which remain until it is changed. Any other system error may be temporary.
_OF_THE_FILE = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
)
#: OpenCV's code for "Insufficient memory".
_OPENCV_NO_MEMORY = -4
#: How decoders, LiteRT and the system's library loader report a lack of memory, whatever exception they raise.
_SAYS_MEMORY = re.compile(
    r"(out of|insufficient|not enough|too little|no more) memory|memory exhausted|bad_alloc|alloc\w* failed|"
    r"failed to map segment|(could not|couldn't|cannot|can't|failed to|unable to) (re)?allocate",
    re.IGNORECASE,
)


def may_pass(failure: BaseException) -> str | None:
    """Return the message for a temporary failure, to be read after the image's name; None for a permanent one."""
    if isinstance(failure, OSError) and failure.errno is not None and failure.errno != errno.ENOMEM:
        if failure.errno in _OF_THE_FILE:
            return None
        return f"cannot be read just now ({failure.strerror}); run the same command again to resume"
    of_memory = (
        isinstance(failure, MemoryError)
        or getattr(failure, "errno", None) == errno.ENOMEM
        or getattr(failure, "code", None) == _OPENCV_NO_MEMORY
        or _SAYS_MEMORY.search(str(failure)) is not None
    )
    return _NO_MEMORY if of_memory else None


def memory_left(size: int) -> bool:
    """Return whether `size` bytes can be allocated now.

    Called after a failure, because libwebp, OpenJPEG, libaom, OpenCV's libjpeg and XNNPACK do not report that they
    ran out of memory.
    """
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


def reason(failure: Exception, name: str | Path) -> str:
    """Return why this one image cannot be processed, to be read after its name.

    Raises:
        TransientError: too little memory or a disk error; names the image.
        Exception: `failure` itself if the image is not the cause: the failure already says what to do (FercliError),
            or a library cannot be loaded.
    """
    if isinstance(failure, FercliError | ImportError):
        raise failure
    passing = may_pass(failure)
    if passing is not None:
        raise TransientError(f"{name} {passing}") from failure
    said = " ".join(str(failure).split())
    return f"cannot be processed ({type(failure).__name__}{f': {said:.200}' if said else ''})"


@contextmanager
def naming(picture: str | Path) -> Iterator[None]:
    """Turn a temporary failure into a TransientError that names the image; let all others through."""
    try:
        yield
    except FercliError:
        raise
    except Exception as failure:
        reason = may_pass(failure)
        if reason is None:
            raise
        raise TransientError(f"{picture} {reason}") from failure
